"""Batches: each image once per pass, the same for the same seed, whatever the number of processes."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from mrcnn.data import Augmentation, InstanceDataset, Sample, batches
from mrcnn.data.records import Annotation, Contents, ImageRecord

AUGMENTATION = Augmentation(vflip=0.5, scale=(0.8, 1.2), crop=(12, 12), brightness=0.1)


def dataset(sizes: list[tuple[int, int]]) -> InstanceDataset:
    generator = np.random.default_rng(0)
    records = []
    for image_id, (height, width) in enumerate(sizes):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        annotation = Annotation(1, 1, (2, 2, 4, 4), 16, [[2, 2, 6, 2, 6, 6, 2, 6]], False)
        records.append(ImageRecord(image_id, f"{image_id}", pixels, height, width, (annotation,)))
    return InstanceDataset(Contents(records, ["background", "thing"], [0, 1], []), name="made up")


SEVEN = [(16, 20)] * 7


def ids(loaded: list[list[Sample]]) -> list[list[int]]:
    return [[sample.image_id for sample in batch] for batch in loaded]


def flat(lists: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def assert_equal(first: list[list[Sample]], second: list[list[Sample]]) -> None:
    assert ids(first) == ids(second)
    for one, other in zip(flat(first), flat(second), strict=True):
        assert torch.equal(one.image, other.image)
        for key in one.target:
            assert torch.equal(one.target[key], other.target[key])


def test_each_image_once_per_pass() -> None:
    loaded = list(batches(dataset(SEVEN), 3, steps=7, seed=0))
    assert [len(batch) for batch in loaded] == [3] * 7
    order = flat(ids(loaded))
    passes = [order[start : start + 7] for start in range(0, 21, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_seed() -> None:
    runs = [list(batches(dataset(SEVEN), 2, steps=6, seed=s, augmentation=AUGMENTATION)) for s in (1, 1, 2)]
    assert_equal(runs[0], runs[1])
    assert ids(runs[0]) != ids(runs[2])


def test_repeated_image_is_augmented_anew() -> None:
    (batch,) = batches(dataset([(16, 20)]), 4, steps=1, seed=0, augmentation=AUGMENTATION)
    assert len({sample.image.sum().item() for sample in batch}) == 4


def test_resume_gives_the_remaining_batches() -> None:
    data = dataset(SEVEN)
    whole = list(batches(data, 2, steps=8, seed=3, augmentation=AUGMENTATION))
    rest = list(batches(data, 2, steps=8, seed=3, augmentation=AUGMENTATION, start_step=5))
    assert_equal(whole[5:], rest)
    assert list(batches(data, 2, steps=8, seed=3, start_step=8)) == []


def test_processes_change_nothing() -> None:
    data = dataset(SEVEN)
    here = list(batches(data, 2, steps=5, seed=4, augmentation=AUGMENTATION))
    there = list(batches(data, 2, steps=5, seed=4, augmentation=AUGMENTATION, num_workers=2))
    assert_equal(here, there)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(batches(dataset(SEVEN), 2, steps=3, seed=0, augmentation=AUGMENTATION))
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_by_aspect() -> None:
    data = dataset([(16, 20), (20, 16), (16, 20), (20, 16), (18, 18), (20, 16)])
    loaded = list(batches(data, 2, steps=30, seed=0, group_by_aspect=True))
    for batch in loaded:
        assert len({sample.image.shape[1] > sample.image.shape[2] for sample in batch}) == 1
    counts = Counter(flat(ids(loaded)))
    assert all(9 <= counts[image_id] <= 11 for image_id in range(6))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but was 0"),
        ({"start_step": -1}, "start_step must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(dataset(SEVEN), **{"batch_size": 2, "steps": 1, "seed": 0} | arguments)  # type: ignore[arg-type]


def test_empty_data_set() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        batches(dataset([]), 2, steps=1, seed=0)

"""Endless shuffled batches, the same for the same seed whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mrcnn.data.dataset import InstanceDataset, Sample
from mrcnn.data.records import Contents
from mrcnn.data.transforms import Augmentation, augment

Draw = tuple[int, int]  # index of the image, number of the draw since the start


def batches(
    dataset: InstanceDataset,
    batch_size: int,
    *,
    steps: int,
    seed: int,
    augmentation: Augmentation | None = None,
    num_workers: int = 0,
    group_by_aspect: bool = False,
    start_step: int = 0,
) -> Iterator[list[Sample]]:
    """Gives batches of samples, shuffled without replacement in each pass over the data set.

    A pass may end inside a batch, which then goes on with the next pass. What a draw gives depends only on
    the seed and its number, so runs agree whatever `num_workers` is, and a run may resume at any step.

    Args:
        dataset: what to draw from.
        batch_size: samples per batch.
        steps: the step to end before; `steps - start_step` batches are given.
        seed: decides the order and the augmentation.
        augmentation: applied to each sample if given.
        num_workers: processes that read and augment; 0 does it in this one.
        group_by_aspect: batches hold only upright or only wide images, which wastes less padding.
        start_step: batches already used, which are passed over without reading an image.

    Raises:
        ValueError: the data set is empty or a number is out of its range.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("start_step", start_step, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but was {value}")
    if len(dataset) == 0:
        raise ValueError("dataset must hold at least one image, but is empty")
    groups = [int(width >= height) if group_by_aspect else 0 for height, width in dataset.image_sizes]
    return _load(dataset, _draws(groups, batch_size, seed), steps, seed, augmentation, num_workers, start_step)


def _load(
    dataset: InstanceDataset,
    draws: Iterator[list[Draw]],
    steps: int,
    seed: int,
    augmentation: Augmentation | None,
    num_workers: int,
    start_step: int,
) -> Iterator[list[Sample]]:
    if num_workers > 0:  # each has a cache of its own
        share = dataset.cache_bytes // num_workers
        contents = Contents(dataset.records, dataset.class_names, dataset.category_ids, dataset.problems)
        dataset = InstanceDataset(contents, name=dataset.name, cache_bytes=share)
    loader: DataLoader[Sample] = DataLoader(
        _Augmented(dataset, augmentation, seed),
        batch_sampler=_Batches(list(islice(draws, start_step, max(start_step, steps)))),
        num_workers=num_workers,
        collate_fn=list,
        # Its own generator: by default the loader draws from torch's global one, and so would change the
        # model's.
        generator=torch.Generator(),
    )
    yield from loader


def _draws(groups: Sequence[int], batch_size: int, seed: int) -> Iterator[list[Draw]]:
    """Batches of draws without end; `groups` gives the group of each image."""
    order = np.random.default_rng(seed)
    waiting: dict[int, list[Draw]] = {group: [] for group in set(groups)}
    number = 0
    while True:
        for index in order.permutation(len(groups)).tolist():
            batch = waiting[groups[index]]
            batch.append((index, number))
            number += 1
            if len(batch) == batch_size:
                yield batch
                waiting[groups[index]] = []


class _Batches:
    """A list as a batch sampler."""

    def __init__(self, batches: list[list[Draw]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Augmented(Dataset[Sample]):
    """The data set under the augmentation that a draw's number decides."""

    def __init__(self, dataset: InstanceDataset, augmentation: Augmentation | None, seed: int) -> None:
        self._dataset = dataset
        self._augmentation = augmentation
        self._seed = seed

    def __getitem__(self, draw: Draw) -> Sample:
        index, number = draw
        sample = self._dataset[index]
        if self._augmentation is None:
            return sample
        # 63 bits: torch takes no more from a Python integer.
        state = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        return augment(sample, self._augmentation, torch.Generator().manual_seed(int(state)))

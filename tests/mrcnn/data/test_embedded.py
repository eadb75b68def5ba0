"""The embedded image: whole, and cut into halves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrcnn.data
from mrcnn.data import nuclei_dataset

FOLDER = Path(mrcnn.data.__file__).parent / "nuclei"
LABELS = np.asarray(Image.open(FOLDER / "mask2d.png")).astype(np.int64)
PICTURE = np.asarray(Image.open(FOLDER / "img2d.png"))


def test_whole_image() -> None:
    dataset = nuclei_dataset("all")
    assert dataset.class_names == ["background", "nucleus"]
    sample = dataset[0]
    assert len(sample.target["boxes"]) == 125
    masks = sample.target["masks"].numpy()
    values = np.unique(LABELS)[1:]
    np.testing.assert_array_equal(masks, LABELS[None] == values[:, None, None])


@pytest.mark.parametrize(("part", "columns"), [("left", slice(0, 256)), ("right", slice(256, 512))])
def test_halves(part: str, columns: slice) -> None:
    sample = nuclei_dataset(part)[0]
    np.testing.assert_array_equal((sample.image[0] * 255).round().numpy(), PICTURE[:, columns])
    half = LABELS[:, columns]
    kept = [value for value in np.unique(half[half > 0]) if (half == value).sum() >= min(10, (value == LABELS).sum())]
    masks = sample.target["masks"].numpy()
    np.testing.assert_array_equal(masks, half[None] == np.array(kept)[:, None, None])
    for mask, box in zip(masks, sample.target["boxes"].tolist(), strict=True):
        rows, cols = np.nonzero(mask)
        assert box == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]


def test_remnants_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nuclei that the line cuts stay only in a half with enough of their pixels; whole ones always stay."""
    cut = set(np.unique(LABELS[:, 255])) & set(np.unique(LABELS[:, 256])) - {0}
    left_areas = sorted(int((LABELS[:, :256] == value).sum()) for value in cut)
    before = len(nuclei_dataset("left")[0].target["boxes"])
    monkeypatch.setattr("mrcnn.data.embedded.MIN_PIXELS", left_areas[-1] + 1)
    whole = set(np.unique(LABELS[:, :256])) - set(np.unique(LABELS[:, 256:]))
    assert len(nuclei_dataset("left")[0].target["boxes"]) == len(whole) < before


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match=r"part must be one of .*'left'.* but was 'top'"):
        nuclei_dataset("top")  # type: ignore[arg-type]


def test_licence_is_there() -> None:
    assert "BSD 3-Clause" in (FOLDER / "LICENSE.txt").read_text()

"""The data set that comes with the package: one fluorescence image of cell nuclei, annotated by hand.

From the 2018 Data Science Bowl (BBBC038, CC0), as redistributed with StarDist (BSD-3-Clause,
nuclei/LICENSE.txt).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mrcnn.data.dataset import InstanceDataset
from mrcnn.data.images import load_rgb
from mrcnn.data.label_maps import label_map_annotations, read_label_map
from mrcnn.data.masks import label_map_rles
from mrcnn.data.records import Contents, ImageRecord

Part = Literal["left", "right", "all"]

# A nucleus cut by the line between the halves stays in a half with at least this many pixels.
MIN_PIXELS = 10
_FOLDER = Path(__file__).with_name("nuclei")
_COLUMNS = {"left": slice(0, 256), "right": slice(256, 512), "all": slice(0, 512)}


def nuclei_dataset(part: Part = "all") -> InstanceDataset:
    """The nuclei image of 512 × 512, or one half of it, 512 high and 256 wide, as a data set of one.

    Raises:
        ValueError: `part` is none of "left", "right", "all".
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {get_args(Part)}, but was {part!r}")
    columns = _COLUMNS[part]
    pixels = np.ascontiguousarray(load_rgb(_FOLDER / "img2d.png")[:, columns])
    labels = read_label_map(_FOLDER / "mask2d.png")
    inside = labels[:, columns]
    whole_area, area = (
        np.bincount(labels.ravel()),
        np.bincount(inside.ravel(), minlength=int(labels.max()) + 1),
    )
    remnant = (area < whole_area) & (area < MIN_PIXELS)
    annotations = label_map_annotations(label_map_rles(np.where(remnant[inside], 0, inside)))
    height, width = inside.shape
    record = ImageRecord(1, f"nuclei-{part}.png", pixels, height, width, annotations)
    contents = Contents([record], ["background", "nucleus"], [0, 1], [])
    return InstanceDataset(contents, name=f"nuclei ({part})")

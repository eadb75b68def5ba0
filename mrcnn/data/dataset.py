"""The data set that training and evaluation read: images with boxes, labels and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mrcnn.data.images import load_rgb, to_tensor
from mrcnn.data.masks import to_masks
from mrcnn.data.problems import Problem
from mrcnn.data.records import Contents, ImageRecord

CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Sample:
    """One image and its objects, as the model takes them.

    Attributes:
        image: float32 [3, H, W] in 0..1.
        target: "boxes" float32 [G, 4] (x1, y1, x2, y2 in pixels), "labels" int64 [G] in 1..K, "masks" uint8
            [G, H, W] in 0..1. G may be 0. Crowd regions are not in it.
        image_id: as in the source.
        file_name: as in the source.
    """

    image: Tensor
    target: dict[str, Tensor]
    image_id: int
    file_name: str


class InstanceDataset(Dataset[Sample]):
    """Images with instances, from any source that `open_dataset` reads.

    Attributes:
        name: what the data set is called in tables.
        records: what was read from the source, one entry per image.
        class_names: index 0 is "background".
        category_ids: the source's category id of each label; index 0 is 0.
        problems: items that were left out.
        image_ids: ids of the images, in the order of the indices.
        image_sizes: (height, width) of the images, likewise.
        cache_bytes: samples are kept in memory up to this size.
    """

    def __init__(self, contents: Contents, *, name: str, cache_bytes: int = CACHE_BYTES) -> None:
        """Takes what a reader gives.

        Args:
            contents: images and annotations, already checked.
            name: what the data set is called in tables.
            cache_bytes: samples are kept in memory up to this size.
        """
        self.name = name
        self.records: list[ImageRecord] = contents.records
        self.class_names: list[str] = contents.class_names
        self.category_ids: list[int] = contents.category_ids
        self.problems: list[Problem] = contents.problems
        self.image_ids = [record.image_id for record in self.records]
        self.image_sizes = [(record.height, record.width) for record in self.records]
        self.cache_bytes = cache_bytes
        self._cache: dict[int, Sample] = {}
        self._cache_room = cache_bytes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The image at this index.

        Its tensors may be shared with later calls: make new ones instead of changing them.

        Raises:
            ImageError: its file went missing or was damaged since the data set was opened.
        """
        if index in self._cache:
            return self._cache[index]
        sample = _read(self.records[index])
        nbytes = sum(tensor.nbytes for tensor in (sample.image, *sample.target.values()))
        if nbytes <= self._cache_room:
            self._cache[index] = sample
            self._cache_room -= nbytes
        return sample

    def subset(
        self, indices: Sequence[int] | None = None, *, image_ids: Sequence[int] | None = None
    ) -> InstanceDataset:
        """The images at these indices, or with these ids, in the order given.

        Raises:
            ValueError: neither or both are given, or an id is unknown.
            IndexError: an index is out of range.
        """
        if (indices is None) == (image_ids is None):
            raise ValueError("give either indices or image_ids")
        if image_ids is not None:
            position = {image_id: index for index, image_id in enumerate(self.image_ids)}
            unknown = [image_id for image_id in image_ids if image_id not in position]
            if unknown:
                raise ValueError(f"image_ids must be ids of images of {self.name}, but {unknown[:5]} are not")
            indices = [position[image_id] for image_id in image_ids]
        records = [self.records[index] for index in indices or ()]
        contents = Contents(records, self.class_names, self.category_ids, [])
        return InstanceDataset(contents, name=self.name, cache_bytes=self.cache_bytes)

    def coco_ground_truth(self) -> dict[str, Any]:
        """The data set as COCO JSON would give it, crowd regions included, for pycocotools' COCO."""
        # COCOeval notes the ids of matched annotations and reads id 0 as "no match", so 0 is replaced.
        spare_id = 1 + max((a.annotation_id for record in self.records for a in record.annotations), default=0)
        return {
            "info": {"description": self.name},
            "licenses": [],
            "images": [
                {"id": r.image_id, "file_name": r.file_name, "height": r.height, "width": r.width} for r in self.records
            ],
            "annotations": [
                {
                    "id": a.annotation_id or spare_id,
                    "image_id": record.image_id,
                    "category_id": self.category_ids[a.label],
                    "bbox": list(a.bbox),
                    "area": a.area,
                    "segmentation": a.segmentation,
                    "iscrowd": int(a.is_crowd),
                }
                for record in self.records
                for a in record.annotations
            ],
            "categories": [
                {"id": category, "name": name}
                for category, name in zip(self.category_ids[1:], self.class_names[1:], strict=True)
            ],
        }


def _read(record: ImageRecord) -> Sample:
    size = record.height, record.width
    pixels = record.pixels if isinstance(record.pixels, np.ndarray) else load_rgb(record.pixels, size)
    objects = [annotation for annotation in record.annotations if not annotation.is_crowd]
    # In float64 until the end, so that a box that ends at the border of the image does so exactly.
    boxes = torch.tensor([a.bbox for a in objects], dtype=torch.float64).reshape(-1, 4)
    corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)
    limit = torch.tensor([record.width, record.height] * 2, dtype=torch.float64)
    target = {
        "boxes": corners.clamp(min=torch.zeros_like(limit), max=limit).float(),
        "labels": torch.tensor([a.label for a in objects], dtype=torch.int64),
        "masks": torch.from_numpy(to_masks([a.segmentation for a in objects], *size)),
    }
    return Sample(to_tensor(pixels), target, record.image_id, record.file_name)

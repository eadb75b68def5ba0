"""Small data and a small model that stand in for real ones where only the machinery around them is tested."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools
from torch import nn

from mrcnn.config import ModelConfig
from mrcnn.data import open_dataset

CATEGORIES = {4: "round", 9: "square"}  # ids with gaps


class StandIn(nn.Module):
    """Takes and gives what Mask R-CNN does, but fast; its losses depend on chance, as the real ones do."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.config = ModelConfig(name="stand_in", num_classes=num_classes)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, num_classes)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images, targets=None, mask_format="prob"):
        if self.training:
            self.seen += 1
            chosen = torch.cat([image[:, None, :8, :8] for image in images], dim=1)
            chosen = chosen.permute(1, 0, 2, 3)[torch.randint(len(images), (4,))]
            logits = self.head(self.norm(self.conv(chosen)).mean(dim=(2, 3)))
            labels = torch.stack([t["labels"].float().sum() for t in targets]).mean()
            return {"loss_classifier": logits.square().mean() * labels, "loss_mask": logits.abs().mean()}
        mask = {"size": list(images[0].shape[-2:]), "counts": "0"}
        found = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return [found | {"scores": torch.zeros(0), "masks": [mask][:0]} for _ in images]


class Clairvoyant(nn.Module):
    """Finds exactly what is annotated in the images of a data set, in the form that was asked for."""

    def __init__(self, dataset):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.samples = [dataset[i] for i in range(len(dataset))]

    def forward(self, images, targets=None, mask_format="prob"):
        assert not self.training
        assert mask_format == "rle"
        return [self.find(image) for image in images]

    def find(self, image):
        (target,) = (s.target for s in self.samples if torch.equal(s.image, image))
        masks = [rle_tools.encode(np.asfortranarray(m.numpy())) for m in target["masks"]]
        return {
            "boxes": target["boxes"],
            "labels": target["labels"],
            "scores": torch.linspace(0.95, 0.55, len(masks)),
            "masks": [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in masks],
        }


def write_shapes(folder, count=3, seed=0, categories=CATEGORIES):
    """A COCO data set of discs and squares on noise; every image differs. Gives the path of its JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :64]
    images, annotations = [], []
    for number in range(1, count + 1):
        pixels = random.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        for place, category in enumerate(categories):
            y, x, radius = random.integers(12, 36), 11 + 20 * place, random.integers(6, 10)
            if place % 2 == 0:
                mask = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            else:
                mask = (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
            pixels[mask] += 150
            rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number * 10,
                    "category_id": category,
                    "bbox": rle_tools.toBbox(rle).tolist(),
                    "area": int(mask.sum()),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
        images.append({"id": number * 10, "file_name": f"{number:04}.png", "height": 48, "width": 64})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }
    path = folder / "shapes.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def shapes(tmp_path):
    """Three images, two objects each."""
    return open_dataset(write_shapes(tmp_path / "shapes"))


@pytest.fixture
def make_shapes():
    """`write_shapes`."""
    return write_shapes


@pytest.fixture
def clairvoyant():
    """The class of models that know the answers."""
    return Clairvoyant


@pytest.fixture
def stand_in():
    """A function that makes the stand-in model, always with the same weights."""

    def make(num_classes=3):
        torch.manual_seed(0)
        return StandIn(num_classes)

    return make

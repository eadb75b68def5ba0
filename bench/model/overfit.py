"""Eight photos learned by heart: whether training works at all, and how fast it is beside torchvision's."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.peers.detectors import r18_fpn_gn
from mrcnn import build_model
from mrcnn.data import InstanceDataset, batches, open_dataset
from mrcnn.engine.evaluate import evaluate
from mrcnn.engine.recipes import TrainConfig, recipe_for
from mrcnn.engine.train import train

STEPS = 600
PEER_STEPS = 60  # every step is the same work, so a part of them tells the time of one
PHOTOS = 8
BATCH = 2
PRESET = "mask_rcnn_r18_fpn_gn"


@dataclass(frozen=True)
class Result:
    """Figures on the photos trained on, and the seconds of a step in both."""

    ap: float
    ap50: float
    step_seconds: float
    peer_step_seconds: float


def measure(tiny_coco: Path) -> Result:
    """Trains ours for `STEPS` and torchvision for `PEER_STEPS` of the same kind."""
    everything = open_dataset(tiny_coco / "annotations" / "instances_train2017.json", tiny_coco / "train2017")
    photos = everything.subset(image_ids=sorted(everything.image_ids)[:PHOTOS])
    recipe = recipe_for(photos, PRESET)
    config = replace(recipe.train, steps=STEPS, batch_size=BATCH)
    torch.manual_seed(config.seed)
    model = build_model(PRESET, num_classes=len(photos.class_names), **recipe.model)
    with tempfile.TemporaryDirectory() as out:
        result = train(model, photos, config, Path(out))
    figures, _ = evaluate(result.model, photos, category_ids=photos.category_ids)
    segm = figures["segm"]
    return Result(segm["AP"], segm["AP50"], result.seconds / STEPS, _peer_seconds(photos, config) / PEER_STEPS)


def _peer_seconds(photos: InstanceDataset, train_config: TrainConfig) -> float:
    """torchvision's time for `PEER_STEPS` as plain as they can be: same photos, batch size and optimizer.

    Its images have the preset's size, a short side of 288 pixels, which is smaller than ours by the recipe.
    """
    torch.manual_seed(train_config.seed)
    peer = r18_fpn_gn(build_model(PRESET, num_classes=len(photos.class_names)).config).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=train_config.lr, weight_decay=train_config.weight_decay)
    start = time.perf_counter()
    for samples in batches(photos, BATCH, steps=PEER_STEPS, seed=train_config.seed):
        losses = peer([sample.image for sample in samples], [sample.target for sample in samples])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), train_config.clip_norm)
        optimizer.step()
    return time.perf_counter() - start

"""Time of the whole model beside torchvision's, with the same weights."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from bench.peers.detectors import calibrate, r50_fpn
from bench.side_by_side import side_by_side
from mrcnn import build_model, load_weights
from mrcnn.data import read_image


def inference(photos: Path, rounds: int = 5) -> dict[str, float]:
    """Median seconds for one photo resized to 800 x 1088, "ours" and torchvision's in its settings."""
    torch.manual_seed(0)
    photo = _photo_of(photos, 800, 1088)
    peer = r50_fpn()
    calibrate(peer, photo)
    ours = build_model("mask_rcnn_r50_fpn").eval()
    load_weights(ours, peer.state_dict())
    channels_last = copy.deepcopy(peer).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return side_by_side(
            {
                "ours": lambda: ours([photo]),
                "torchvision, contiguous": lambda: peer([photo]),
                "torchvision, channels last": lambda: channels_last([photo]),
            },
            rounds,
        )


def _photo_of(folder: Path, height: int, width: int) -> Tensor:
    first = min((folder / "val2017").glob("*.jpg"))
    image = read_image(first)[None]
    return torch.nn.functional.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)[0]

"""The run-length kernels, compiled and run on the virtual GPU: byte for byte pycocotools' of the pasted mask."""

import pytest
import torch
from masks_to_encode import BOXES, IMAGE, SHAPES, encoded

import kernels
from bench.virtual_gpu import Options
from bench.virtual_gpu.intercept import active
from kernels.paste_masks import Rule

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("options", [Options(), Options(reverse=True, quantum=1)], ids=["in order", "reversed"])
@pytest.mark.parametrize("rule", ["torchvision", "centers"])
def test_encode_masks(rule: Rule, options: Options) -> None:
    for shape, dtype in (("noise", torch.float32), ("stripes", torch.bfloat16)):
        masks = SHAPES[shape](len(BOXES)).to(dtype)
        with kernels.use("triton"), active(options=options) as record:
            seen = kernels.encode_masks(masks, BOXES, IMAGE, 0.5, rule)
            wanted = encoded(masks, BOXES, IMAGE, 0.5, rule)
        assert seen == wanted
        names = [launch.kernel for launch in record.launches]
        assert names[:3] == ["_edges_kernel", "_edges_kernel", "_runs_kernel"]
        assert record.counters.atomic_requests == 0


@pytest.mark.parametrize("number", range(5))
def test_every_configuration(number: int) -> None:
    masks = SHAPES["noise"](len(BOXES))
    with kernels.use("triton"), active(choose=lambda _, configs: configs[min(number, len(configs) - 1)]):
        assert kernels.encode_masks(masks, BOXES, IMAGE, 0.0, "centers") == encoded(masks, BOXES, IMAGE, 0.0, "centers")
        assert kernels.encode_masks(masks, BOXES, IMAGE) == encoded(masks, BOXES, IMAGE, 0.5, "torchvision")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", ["torchvision", "centers"])
def test_dtypes_of_boxes(rule: Rule, dtype: torch.dtype) -> None:
    """Far from 0, where half precision has steps of a pixel and more; eager and compiled paste the same."""
    boxes = torch.tensor([[1101.3, 1, 1123, 7], [300, 1, 322, 7], [5, 1, 19, 9]]).to(dtype)
    masks = SHAPES["stripes"](len(boxes))
    with kernels.use("eager"):
        wanted = encoded(masks, boxes, (12, 1130), 0.37, rule)
    with kernels.use("triton"), active():
        assert kernels.encode_masks(masks, boxes, (12, 1130), 0.37, rule) == wanted
        assert encoded(masks, boxes, (12, 1130), 0.37, rule) == wanted

"""The packages come up, and run, where there is no GPU, no driver and no triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_TRITON = "import sys; sys.modules['triton'] = None\n"
EVERY_OPERATION = """
import torch, kernels
features = torch.rand(1, 2, 8, 8, requires_grad=True)
rois = torch.tensor([[0.0, 1, 1, 6, 6]])
boxes, scores, labels = rois[:, 1:], torch.tensor([0.5]), torch.zeros(1, dtype=torch.int64)
pooled = kernels.roi_align(features, rois, 2)
pooled = pooled + kernels.multiscale_roi_align([features, features[:, :, ::2, ::2]], rois, 2, [1.0, 0.5])
pooled = pooled + kernels.roi_pool(features, rois, 2)
pooled.sum().backward()
assert features.grad.any()
assert kernels.nms(boxes, scores, 0.5).tolist() == [0]
assert kernels.batched_nms(boxes, scores, labels, 0.5).tolist() == [0]
assert kernels.segmented_nms(boxes[None], scores[None], 0.5, 2)[0].tolist() == [[0, -1]]
masks = torch.ones(1, 9, 9, dtype=torch.bool)
logits = torch.rand(1, 2, 3, 3, requires_grad=True)
kernels.mask_loss(logits, labels, boxes, masks, labels).backward()
assert logits.grad.any()
kernels.mask_predict_loss(logits, torch.ones(3, 2), torch.zeros(3), labels, boxes, masks, labels).backward()
assert kernels.mask_predict(logits, torch.ones(3, 2), torch.zeros(3), labels).shape == (1, 3, 3)
assert kernels.match_boxes(boxes, boxes[None], torch.tensor([1]))[2].all()
assert kernels.decode_boxes(boxes[None], boxes, scores[None], torch.tensor([[9, 9]]))[0].any()
assert kernels.decode_keypoints(torch.ones(1, 2, 4, 4), boxes)[0].shape == (1, 2, 3)
assert kernels.encode_masks(torch.ones(1, 4, 4), boxes, (9, 9))[0]["size"] == [9, 9]
assert kernels.paste_masks(torch.ones(1, 4, 4), boxes, (9, 9)).any()
assert not any(name.startswith("kernels.gpu") for name in sys.modules)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("first", ["", NO_TRITON], ids=["with triton", "without triton"])
def test_every_operation_runs_without_importing_the_gpu_kernels(first: str) -> None:
    done = run(f"import sys\n{first}{EVERY_OPERATION}")
    assert done.returncode == 0, done.stderr


def test_the_model_is_built_without_triton() -> None:
    done = run(f"{NO_TRITON}import mrcnn\nmodel = mrcnn.build_model('mask_rcnn_r18_fpn_gn', num_classes=2)\n")
    assert done.returncode == 0, done.stderr


def test_the_public_functions() -> None:
    import kernels

    assert sorted(kernels.__all__) == kernels.__all__
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__)

"""16-bit features are loaded as they are: around the kernels no operation of PyTorch converts what is large."""

import pytest
import torch
from public_functions import PUBLIC_FUNCTIONS

from bench.virtual_gpu.intercept import active
from kernels import use
from kernels.gpu import roi_align

pytestmark = pytest.mark.compiled

WITHOUT_FEATURES = ("rasterize_polygons", "pack_masks", "unpack_masks")
# As they come from outside of our operations, and from inside.
CONVERSIONS = ("_to_copy", "to", "float", "type_as")
NUMBER = 6
ROIS_BYTES = NUMBER * 5 * 4


@pytest.mark.parametrize("name", [name for name in PUBLIC_FUNCTIONS if name not in WITHOUT_FEATURES])
def test_nothing_large_is_converted(name: str) -> None:
    """Inside our operations, forward and backward: at most boxes, and numbers of the RoIs."""
    call = PUBLIC_FUNCTIONS[name](NUMBER, torch.bfloat16)
    features = [call.tensors[place] for place in call.large if call.tensors[place].is_floating_point()]
    assert all(each.nbytes > ROIS_BYTES for each in features)
    leaves = [each for each in call.tensors if each.requires_grad]
    with use("triton"), active() as record:
        result = call.function(*call.tensors)
        if leaves:
            first = result[0] if isinstance(result, tuple) else result
            torch.autograd.grad(first, leaves, torch.ones_like(first))
    assert record.launches
    converted = [each for each in record.operations if each.name in CONVERSIONS]
    assert all(each.bytes_read <= ROIS_BYTES for each in converted), converted


def test_a_conversion_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the gradient, inside the operation."""
    backward = roi_align.roi_align_backward
    monkeypatch.setattr(roi_align, "roi_align_backward", lambda grad, *others: backward(grad.float(), *others))
    with pytest.raises(AssertionError, match="bytes_read=324, bytes_written=648"):
        test_nothing_large_is_converted("roi_align")

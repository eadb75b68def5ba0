"""Masks of boxes straight to COCO's run-length encoding of the image, without the pasted masks."""

from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_number, check_whole
from kernels.dispatch import asked_for, run
from kernels.paste_masks import Rule, checked

_MOST_PIXELS = 2**31 - 1  # runs are 32-bit integers


def encode_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    threshold: float = 0.5,
    rule: Rule = "torchvision",
) -> list[dict[str, Any]]:
    """What `pycocotools.mask.encode` makes of each mask that `paste_masks` gives, byte by byte.

    Waits for the device: the text is made on the host. See `mask_runs` for what stays on the device.

    Args:
        masks: probabilities [N, M, M] or [N, 1, M, M] in float32, float16, bfloat16 or float64.
        boxes: [N, 4] as x1, y1, x2, y2 in pixels of the image, in floating point; half precision is taken as float32.
            With a NaN or infinite coordinate nothing is pasted.
        image_size: height and width of the image, which has at most 2^31 - 1 pixels.
        threshold: 0 to 1; see `kernels.paste_masks`.
        rule: how the mask is resized to its box, see `kernels.paste_masks`.

    Returns:
        N times {"size": [height, width], "counts": bytes}, COCO's compressed form.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    runs, counts = mask_runs(masks, boxes, image_size, threshold, rule)
    most = int(counts.max()) if len(counts) else 0
    if most > runs.shape[1]:
        runs, counts = mask_runs(masks, boxes, image_size, threshold, rule, capacity=most)
    texts = _compress(runs[:, :most].cpu(), counts.cpu())
    return [{"size": list(image_size), "counts": text} for text in texts]


def mask_runs(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    threshold: float = 0.5,
    rule: Rule = "torchvision",
    capacity: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Lengths of the runs of each pasted mask, column after column as COCO has them, with a fixed capacity.

    The first run of a mask is outside, the next inside, and so on; the first has length 0 where the image's first
    pixel is inside. Nothing waits for the device. There is no gradient.

    Args:
        masks: see `encode_masks`, as for the following.
        boxes: [N, 4].
        image_size: height and width of the image.
        threshold: 0 to 1.
        rule: how the mask is resized to its box.
        capacity: most runs kept of a mask; None for 2 x width + 1, enough for any mask that is one piece in each
            column. One with holes can have more.

    Returns:
        Runs [N, capacity], int32, zeros after the last one; how many the mask has [N], int64. If that is more than
        `capacity`, the rest is left out.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    masks = checked(masks, boxes, image_size, rule)
    height, width = image_size
    if height * width > _MOST_PIXELS:
        raise ValueError(f"image_size is {image_size}; it must be at most {_MOST_PIXELS} pixels")
    check_number("threshold", threshold, 0, 1)
    if capacity is None:
        capacity = 2 * width + 1
    check_whole("capacity", capacity, 1)
    result: tuple[Tensor, Tensor] = _mask_runs(
        masks.detach(), boxes.detach(), height, width, threshold, rule, capacity, asked_for()
    )
    return result


def _compress(runs: Tensor, counts: Tensor) -> list[bytes]:
    """COCO's text of runs [N, R], of which the first counts [N] are there.

    From the fourth run on, what a run is longer than the last but one is written. A number is cut into groups of five
    bits, the lowest first; a sixth bit says that more follow, the highest of the last group is the sign.
    """
    present = torch.arange(runs.shape[1], device=runs.device) < counts[:, None]
    numbers = runs.to(torch.int64)
    if runs.shape[1] > 3:
        numbers[:, 3:] -= runs[:, 1:-2]
    rest = numbers[present]
    going = torch.ones_like(rest, dtype=torch.bool)
    characters, used = [], []
    while bool(going.any()):
        low, rest = rest & 31, rest >> 5
        more = going & (rest != torch.where(low >= 16, -1, 0))
        characters.append((low + 32 * more + 48).to(torch.uint8))
        used.append(going)
        going = more
    if not used:
        return [b""] * len(counts)
    taken = torch.stack(used, dim=1)
    text = torch.stack(characters, dim=1)[taken].numpy().tobytes()
    lengths = torch.zeros_like(numbers).masked_scatter_(present, taken.sum(dim=1)).sum(dim=1)
    ends = lengths.cumsum(dim=0).tolist()
    return [text[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


@torch.library.custom_op("mrcnn::mask_runs", mutates_args=())
def _mask_runs(
    masks: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    threshold: float,
    rule: str,
    capacity: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    arguments = (masks, boxes, (height, width), threshold, rule, capacity)
    runs, counts = run(implementation, "encode_masks", "mask_runs", masks.device, *arguments)
    return runs, counts


@_mask_runs.register_fake
def _(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, rule: str, capacity: int, *_: Any
) -> tuple[Tensor, Tensor]:
    number = masks.shape[0]
    return masks.new_empty((number, capacity), dtype=torch.int32), masks.new_empty((number,), dtype=torch.int64)

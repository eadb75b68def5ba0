"""Cases of boxes: non-maximum suppression, matching, decoding; and of the keypoints in boxes."""

from functools import cache

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

import kernels
from bench.cases import FULL, Pyramid, Workload, fpn_anchors, keypoint_heatmaps, proposals, rpn_boxes
from bench.kernel_figures.cases.case import Case, Inputs
from bench.peers import operations as peers

IOU_THRESHOLD = 0.7
MIN_SIZE = 1e-3


def segmented_nms(seed: int, workload: Workload = FULL) -> Case:
    """Segments of an RPN; torchvision's form is a call for each, and `batched_nms` where time is taken."""
    max_keep = workload.max_keep

    def make(compute: torch.dtype, layout: str) -> Inputs:
        boxes, scores = rpn_boxes(workload.segments, workload.boxes, seed)
        return {"leaves": [], "boxes": boxes, "scores": scores}

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        keep = torch.full((len(boxes), max_keep), -1, dtype=torch.int64, device=boxes.device)
        for row, segment_boxes, segment_scores in zip(keep, boxes, scores, strict=True):
            kept = torchvision.ops.nms(segment_boxes, segment_scores, IOU_THRESHOLD)[:max_keep]
            row[: len(kept)] = kept
        return keep, (keep >= 0).sum(1)

    def timed_peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        segment = torch.arange(len(boxes), device=boxes.device).repeat_interleave(scores.shape[1])
        return (torchvision.ops.batched_nms(boxes.flatten(0, 1), scores.flatten(), segment, IOU_THRESHOLD),)

    def least(inputs: Inputs) -> dict[str, int]:
        read = sum(each.numel() * each.element_size() for each in (inputs["boxes"], inputs["scores"]))
        return {"forward": read + 8 * len(inputs["boxes"]) * (max_keep + 1)}

    shape = f"{workload.segments} x {workload.boxes}, top {max_keep}"
    return Case(
        "segmented_nms",
        shape,
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: kernels.segmented_nms(inputs["boxes"], inputs["scores"], IOU_THRESHOLD, max_keep),
        peer=peer,
        least=least,
        exact=True,
        timed_peer=timed_peer,
    )


def batched_nms(seed: int, workload: Workload = FULL) -> Case:
    """The levels of an image's RPN as classes. torchvision leaves the order of ties open: of its own the set counts."""

    def make(compute: torch.dtype, layout: str) -> Inputs:
        boxes, scores = rpn_boxes(workload.levels, workload.boxes, seed)
        level = torch.arange(workload.levels).repeat_interleave(workload.boxes)
        return {"leaves": [], "boxes": boxes.flatten(0, 1), "scores": scores.flatten(), "idxs": level}

    def arguments(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, float]:
        return inputs["boxes"], inputs["scores"], inputs["idxs"], IOU_THRESHOLD

    def least(inputs: Inputs) -> dict[str, int]:
        *read, _ = arguments(inputs)
        kept: Tensor = torchvision.ops.batched_nms(*arguments(inputs))
        return {"forward": sum(each.nbytes for each in (*read, kept))}

    return Case(
        "batched_nms",
        f"{workload.levels} x {workload.boxes}",
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: (kernels.batched_nms(*arguments(inputs)),),
        peer=lambda inputs: (peers.batched_nms(*arguments(inputs)),),
        least=least,
        exact=True,
        timed_peer=lambda inputs: (torchvision.ops.batched_nms(*arguments(inputs)),),
    )


def match_boxes(seed: int, workload: Workload = FULL) -> Case:
    """All anchors of the pyramid; torchvision's form is `box_iou` and the RPN's `Matcher`, image by image."""
    images, truths = workload.pyramid.images, workload.truths
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def make(compute: torch.dtype, layout: str) -> Inputs:
        gt_boxes = proposals(workload.pyramid, truths, truths, seed)[:, 1:].reshape(images, truths, 4)
        counts = torch.full((images,), truths)
        return {"leaves": [], "anchors": fpn_anchors(workload.pyramid), "gt_boxes": gt_boxes, "gt_counts": counts}

    def arguments(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        return inputs["anchors"], inputs["gt_boxes"], inputs["gt_counts"]

    def timed_peer(inputs: Inputs) -> tuple[Tensor, ...]:
        return tuple(matcher(torchvision.ops.box_iou(gt_boxes, inputs["anchors"])) for gt_boxes in inputs["gt_boxes"])

    def least(inputs: Inputs) -> dict[str, int]:
        """Of each anchor and image an index in 64 bits, an IoU in 32 and a flag in 8 are written."""
        read = sum(each.nbytes for each in arguments(inputs))
        return {"forward": read + images * len(inputs["anchors"]) * (8 + 4 + 1)}

    number = len(fpn_anchors(workload.pyramid))
    return Case(
        "match_boxes",
        f"{number} anchors, {images} x {truths}",
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: kernels.match_boxes(*arguments(inputs)),
        peer=lambda inputs: peers.match_boxes(*arguments(inputs)),
        least=least,
        exact=True,
        timed_peer=timed_peer,
    )


def decode_boxes(dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """The RPN's best of all levels; torchvision's form decodes, clips and filters an image after the other."""
    images, levels, number = workload.pyramid.images, workload.levels, workload.boxes
    unit, image = (1.0, 1.0, 1.0, 1.0), (800, 1333)  # `rpn_boxes` are of images of 800 x 1344

    def make(compute: torch.dtype, layout: str) -> Inputs:
        anchors, scores = (each.unflatten(0, (images, levels)) for each in rpn_boxes(images * levels, number, seed))
        offsets = 0.3 * torch.randn(anchors.shape, generator=torch.Generator().manual_seed(seed))
        return {
            "leaves": [],
            "offsets": offsets.to(dtype).to(compute),
            "anchors": anchors,
            "scores": scores.to(dtype).to(compute),
            "image_sizes": torch.tensor([image] * images),
        }

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        arguments = (inputs["offsets"], inputs["anchors"], inputs["scores"], inputs["image_sizes"])
        return kernels.decode_boxes(*arguments, min_size=MIN_SIZE)

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        """All boxes, and their scores where they are left."""
        decoded = [_decoded(inputs, index) for index in range(images)]
        scores = torch.full_like(inputs["scores"], float("-inf"))
        for left, own, (_, kept) in zip(scores, inputs["scores"], decoded, strict=True):
            left.view(-1)[kept] = own.flatten()[kept]
        return torch.stack([boxes for boxes, _ in decoded]).view(inputs["offsets"].shape), scores

    def timed_peer(inputs: Inputs) -> tuple[Tensor, ...]:
        """Boxes and scores of those that are left, as the RPN goes on with."""
        results: list[Tensor] = []
        for index in range(images):
            boxes, kept = _decoded(inputs, index)
            results += [boxes[kept], inputs["scores"][index].flatten()[kept]]
        return tuple(results)

    def _decoded(inputs: Inputs, index: int) -> tuple[Tensor, Tensor]:
        """Boxes of an image within it, and which of them have an area."""
        offsets, anchors = (inputs[name][index].flatten(0, 1) for name in ("offsets", "anchors"))
        boxes = torchvision.ops.clip_boxes_to_image(BoxCoder(unit).decode(offsets, [anchors])[:, 0], image)
        return boxes, torchvision.ops.remove_small_boxes(boxes, MIN_SIZE)

    def least(inputs: Inputs) -> dict[str, int]:
        """Boxes are written in float32, as anchors are read; scores in the dtype that they have."""
        offsets, anchors, scores = inputs["offsets"], inputs["anchors"], inputs["scores"]
        return {"forward": offsets.nbytes + 2 * anchors.nbytes + 2 * scores.nbytes}

    shape = f"{images} x {levels} x {number}"
    return Case("decode_boxes", shape, dtype, "contiguous", seed, make, ours, peer, least, timed_peer=timed_peer)


def decode_keypoints(seed: int, workload: Workload = FULL) -> Case:
    """All detections of an image; torchvision's form resizes a heatmap after the other, waiting for its box."""
    size = workload.heatmap_size

    def make(compute: torch.dtype, layout: str) -> Inputs:
        heatmaps, boxes = _detected(seed, workload)
        return {"leaves": [], "heatmaps": heatmaps.to(compute), "boxes": boxes.to(compute)}

    def least(inputs: Inputs) -> dict[str, int]:
        heatmaps, boxes = inputs["heatmaps"], inputs["boxes"]
        return {"forward": heatmaps.nbytes + boxes.nbytes + heatmaps.shape[0] * heatmaps.shape[1] * 4 * 4}

    return Case(
        "decode_keypoints",
        f"{workload.detections} x 17, {size}x{size}",
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: kernels.decode_keypoints(inputs["heatmaps"], inputs["boxes"]),
        peer=lambda inputs: heatmaps_to_keypoints(inputs["heatmaps"], inputs["boxes"]),
        least=least,
    )


@cache
def _detected(seed: int, workload: Workload) -> tuple[Tensor, Tensor]:
    """Heatmaps and boxes of the detections, which take seconds to draw."""
    height, width = workload.image_size
    boxes = proposals(Pyramid(1, height, width), workload.detections, seed=seed)[:, 1:].contiguous()
    return keypoint_heatmaps(boxes, workload.heatmap_size, seed=seed), boxes

"""With torchvision's weights our model gives torchvision's detections, losses and gradients."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import build_peer, calibrated_weights
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN

from mrcnn import MaskRCNN, build_model, load_weights
from mrcnn.data import Sample as Photo
from mrcnn.data import open_dataset
from mrcnn.interop.torchvision import from_torchvision
from mrcnn.preprocess import make_batch, make_targets
from mrcnn.rpn import Proposals
from mrcnn.sampling import Sample

LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


@pytest.fixture
def weights(photos: list[Photo], test_data: Callable[[str], Path]) -> dict[str, Tensor]:
    """torchvision's state dict, calibrated on the second photo: others then do not saturate."""
    return _weights_for(photos[1].image)


@cache
def _weights_for(image: Tensor) -> dict[str, Tensor]:
    return calibrated_weights(image)


def build_pair(
    weights: dict[str, Tensor], dtype: torch.dtype, theirs: dict[str, Any], ours: dict[str, Any]
) -> tuple[TorchvisionMaskRCNN, MaskRCNN]:
    """torchvision's model and ours with the same weights, each with its own names for its settings."""
    peer, model = build_peer(**theirs), build_model("mask_rcnn_r50_fpn", **{"min_size": 320, "max_size": 512, **ours})
    peer.load_state_dict(weights)
    load_weights(model, weights)
    return peer.to(dtype), model.to(dtype).eval()


@torch.no_grad()
def detect(peer: TorchvisionMaskRCNN, model: MaskRCNN, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    expected, result = peer([image])[0], model([image])[0]
    assert torch.equal(result["labels"], expected["labels"]), "another number or order of detections"
    return expected, result


def largest_difference(expected: dict[str, Tensor], result: dict[str, Tensor]) -> dict[str, float]:
    assert all(result[key].shape == expected[key].shape for key in expected)
    return {key: (result[key] - expected[key]).abs().max().item() for key in ("boxes", "scores", "masks")}


@pytest.fixture
def clear_cut_photos(test_data: Callable[[str], Path]) -> list[Photo]:
    dataset = open_dataset(test_data("tiny-coco/annotations/instances_val2017.json"))
    chosen = dataset.subset(image_ids=CLEAR_CUT)
    return [chosen[index] for index in range(len(chosen))]


@pytest.fixture
def pair(weights: dict[str, Tensor]) -> tuple[TorchvisionMaskRCNN, MaskRCNN]:
    """Both models in float32."""
    return build_pair(weights, torch.float32, {}, {})


# Ten photos on which torchvision's 100 scores are at least 2e-5 apart and its two memory formats agree; elsewhere
# scores or overlaps can be so close to each other, or to a threshold, that rounding decides between two right answers.
CLEAR_CUT = (37777, 153299, 184791, 239274, 296649, 297343, 397133, 463730, 480985, 511321)


@pytest.mark.long
def test_detections_are_torchvisions(photos: list[Photo], clear_cut_photos: list[Photo]) -> None:
    """In float32 at torchvision's own sizes and numbers: 800 pixels, 1,000 proposals, 100 detections."""
    paper = {"min_size": 800, "max_size": 1333}
    weights = calibrated_weights(photos[1].image, **paper)
    peer, model = build_pair(weights, torch.float32, paper, paper)
    for photo in clear_cut_photos:
        expected, result = detect(peer, model, photo.image)
        assert len(expected["scores"]) == 100
        assert (expected["scores"][:-1] - expected["scores"][1:]).min() > 1.5e-5, "choose photos anew"
        difference = largest_difference(expected, result)
        assert difference["boxes"] <= 0.01, photo.file_name
        assert difference["scores"] <= 1e-4, photo.file_name
        assert difference["masks"] <= 1e-3, photo.file_name


def test_detections_are_torchvisions_to_the_last_digits(weights: dict[str, Tensor], photos: list[Photo]) -> None:
    """In float64, where a wrong rule cannot hide in rounding noise, with all proposals and detections."""
    size = {"min_size": 160, "max_size": 256}
    peer, model = build_pair(weights, torch.float64, size, size)
    for photo in (photos[1], photos[3]):
        expected, result = detect(peer, model, photo.image.double())
        assert len(expected["scores"]) == 100
        difference = largest_difference(expected, result)
        assert difference["boxes"] <= 1e-8, photo.file_name
        assert difference["scores"] <= 1e-10, photo.file_name
        assert difference["masks"] <= 1e-8, photo.file_name


def test_losses_of_the_same_samples_are_torchvisions(
    pair: tuple[TorchvisionMaskRCNN, MaskRCNN], photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, model = pair
    chosen = [photos[1], photos[3], photos[5]]  # of different size; the last shows no object
    assert [len(photo.target["labels"]) for photo in chosen] == [16, 14, 0]
    with torch.no_grad():
        expected, result = losses_of_both(peer, model, chosen, monkeypatch)
    assert result.keys() == expected.keys() == LOSSES
    for name, loss in expected.items():
        assert loss > 1e-3, name
        assert abs(result[name] - loss) <= 1e-4 * loss, name


def test_gradients_of_the_same_samples_are_torchvisions(
    weights: dict[str, Tensor], photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 for every parameter, though our RPN computes its losses at the sampled anchors only."""
    size = {"min_size": 96, "max_size": 160}
    peer, model = build_pair(
        weights, torch.float64, {**size, "box_batch_size_per_image": 48}, {**size, "roi_samples": 48}
    )
    expected, result = losses_of_both(peer, model, [photos[1], photos[3]], monkeypatch)
    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(result.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    renamed = from_torchvision(gradients, model.config)
    assert renamed.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        scale = renamed[name].abs().max()
        assert scale > 0, name
        assert parameter.grad is not None, name
        assert (parameter.grad - renamed[name]).abs().max() <= 1e-5 * scale, name


class Recorder:
    """Stands in front of torchvision's sampler and remembers what it drew for each image."""

    def __init__(self, sampler: Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]) -> None:
        self.sampler = sampler
        self.kinds: list[Tensor] = []
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def __call__(self, kinds: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = self.sampler(kinds)
        self.kinds = [kind.clamp(max=1).long() for kind in kinds]
        self.drawn = [(p.nonzero()[:, 0], n.nonzero()[:, 0]) for p, n in zip(positive, negative, strict=True)]
        return positive, negative


def losses_of_both(
    peer: TorchvisionMaskRCNN, model: MaskRCNN, chosen: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torchvision's losses and ours of the anchors and RoIs that torchvision draws.

    Besides, what our model makes of an anchor or RoI, positive or negative, must be what torchvision does.
    """
    dtype = next(model.parameters()).dtype
    images = [photo.image.to(dtype) for photo in chosen]
    targets = [photo.target for photo in chosen]
    anchors_drawn, rois_drawn = Recorder(peer.rpn.fg_bg_sampler), Recorder(peer.roi_heads.fg_bg_sampler)
    monkeypatch.setattr(peer.rpn, "fg_bg_sampler", anchors_drawn)
    monkeypatch.setattr(peer.roi_heads, "fg_bg_sampler", rois_drawn)
    theirs: list[Tensor] = []
    handle = peer.rpn.register_forward_hook(lambda module, inputs, output: theirs.extend(output[0]))
    torch.manual_seed(0)
    expected = peer.train()(images, targets)
    handle.remove()
    peer.eval()

    batch = make_batch(images, model.config)
    truth = make_targets(targets, batch, model.config.num_classes)
    features = model.fpn(model.backbone(batch.images))
    anchors = model.rpn.anchors(features, batch)
    proposals = padded(theirs)

    def draw_anchors(kind: Tensor, size: int, fraction: float) -> Sample:
        assert torch.equal(kind, torch.stack(anchors_drawn.kinds))
        return as_sample(anchors_drawn.drawn)

    def draw_rois(kind: Tensor, size: int, fraction: float) -> Sample:
        # Ours has all places for proposals before the ground truth, torchvision's no empty places.
        capacity, drawn = proposals.boxes.shape[1], []
        for image, (boxes, their_kind) in enumerate(zip(theirs, rois_drawn.kinds, strict=True)):
            place = torch.arange(len(their_kind))
            place = torch.where(place < len(boxes), place, place - len(boxes) + capacity)
            assert torch.equal(kind[image][place], their_kind)
            positive, negative = rois_drawn.drawn[image]
            drawn.append((place[positive], place[negative]))
        return as_sample(drawn)

    monkeypatch.setattr("mrcnn.rpn.sample", draw_anchors)
    monkeypatch.setattr("mrcnn.roi_heads.sample", draw_rois)
    result = {
        **model.rpn.losses(features, *model.rpn.sample(anchors, truth)),
        **model.roi_heads.losses(features[:4], model.roi_heads.sample(proposals, truth), truth.masks),
    }
    return expected, result


def padded(boxes: list[Tensor]) -> Proposals:
    """Boxes [R_i, 4] of each image, as our RPN gives them; two places more than any image needs."""
    counts = torch.tensor([len(each) for each in boxes])
    result = boxes[0].new_zeros((len(boxes), int(counts.max()) + 2, 4))
    for image, each in enumerate(boxes):
        result[image, : len(each)] = each
    return Proposals(boxes=result, scores=torch.zeros(result.shape[:2]), counts=counts)


def as_sample(drawn: list[tuple[Tensor, Tensor]]) -> Sample:
    """Positive and negative indices of each image, as our sampler gives them; three places more than are needed."""
    size = max(len(positive) + len(negative) for positive, negative in drawn) + 3
    index, place = torch.zeros((len(drawn), size), dtype=torch.int64), torch.arange(size).expand(len(drawn), -1)
    for image, both in enumerate(drawn):
        index[image, : sum(map(len, both))] = torch.cat(both)
    positives = torch.tensor([[len(positive)] for positive, _ in drawn])
    counts = torch.tensor([[len(positive) + len(negative)] for positive, negative in drawn])
    return Sample(index=index, positive=place < positives, weight=(place < counts).float())

"""Pictures of instances: a translucent mask with its outline, a box and a label for each, Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools
from torch import Tensor

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

_GOLDEN_RATIO = 0.618033988749895
_DARKEST = 0.42  # brightness that every colour has at least, of 1


@dataclass(frozen=True)
class Style:
    """How instances are drawn.

    Attributes:
        fill: opacity of a mask's inside, 0..1.
        boxes: whether boxes are drawn.
        labels: whether names and scores are drawn.
        shortest_side: an image whose short side is shorter, in pixels, is enlarged by a whole factor.
        largest_factor: the largest such factor.
        font_size: height of labels in pixels of the picture.
    """

    fill: float = 0.42
    boxes: bool = True
    labels: bool = True
    shortest_side: int = 600
    largest_factor: int = 4
    font_size: int = 13


def draw_instances(
    image: Tensor,
    instances: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    *,
    score_threshold: float = 0.0,
    style: Style | None = None,
) -> Image.Image:
    """Draws detections or ground truth over an image.

    Args:
        image: [3, H, W] float in 0..1.
        instances: `masks` as RLE dicts, bool or uint8 [D, H, W], or probabilities [D, 1, H, W]; optionally
            `boxes` [D, 4] in pixels as x1, y1, x2, y2, `labels` [D] and `scores` [D].
        class_names: names of the labels, the background first. With one class, labels show the score alone.
        score_threshold: instances with a lower score are left out.
        style: how to draw.

    Returns:
        An RGB picture, `Style.shortest_side` or more on its short side unless that needs more than
        `Style.largest_factor`.
    """
    style = style or Style()
    height, width = image.shape[-2:]
    masks = _bool_masks(instances["masks"], height, width)
    count = len(masks)
    scores = instances.get("scores")
    shown = [i for i in range(count) if scores is None or float(scores[i]) >= score_threshold]
    factor = _factor(min(height, width), style)

    picture = Image.fromarray((image.detach().cpu().clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas = np.asarray(picture, dtype=np.float32).copy()
    colours = distinct_colours(count)
    # Large instances first, so that small ones on top of them stay visible.
    for index in sorted(shown, key=lambda i: -int(masks[i].sum())):
        _blend_mask(canvas, masks[index], colours[index], factor, style.fill)
    picture = Image.fromarray(canvas.astype(np.uint8))

    if "boxes" in instances and (style.boxes or style.labels):
        corners = (torch.as_tensor(instances["boxes"]).double() * factor).tolist()
        texts = _texts(instances, class_names, count)
        marks = [((x1, y1, x2, y2), texts[i], colours[i]) for i in shown for x1, y1, x2, y2 in [corners[i]]]
        _draw_boxes_and_labels(picture, marks, style)
    return picture


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str], gap: int = 12) -> Image.Image:
    """Pictures in a row on white, each with a caption above it."""
    font = ImageFont.load_default(size=18)
    top = 30
    size = (sum(p.width for p in pictures) + gap * (len(pictures) - 1), top + max(p.height for p in pictures))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = 0
    for picture, caption in zip(pictures, captions, strict=True):
        draw.text((left, 4), caption, font=font, fill="black")
        sheet.paste(picture, (left, top))
        left += picture.width + gap
    return sheet


def distinct_colours(count: int) -> list[Colour]:
    """Bright RGB colours, neighbours far apart: hues by the golden angle, in three brightnesses."""
    colours = []
    for index in range(count):
        hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
        saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.85))[index % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        # Blue and violet are dark to the eye at full saturation; white brings them up to the others.
        white = max(0.0, _DARKEST - _brightness(red, green, blue)) / (1 - _brightness(red, green, blue))
        red, green, blue = (channel + white * (1 - channel) for channel in (red, green, blue))
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def _brightness(red: float, green: float, blue: float) -> float:
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _factor(short_side: int, style: Style) -> int:
    return max(1, min(style.largest_factor, -(-style.shortest_side // max(short_side, 1))))


def _bool_masks(masks: Any, height: int, width: int) -> list[BoolArray]:
    if isinstance(masks, Tensor):
        if masks.is_floating_point():
            masks = masks > 0.5
        return list(masks.detach().cpu().reshape(-1, height, width).to(torch.bool).numpy())
    return [np.asarray(rle_tools.decode(rle), dtype=bool) for rle in masks]


def _blend_mask(canvas: FloatArray, mask: BoolArray, colour: Colour, factor: int, fill: float) -> None:
    """Tints a mask's inside and draws its outline, touching only its bounding box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    part = _enlarge(np.pad(part, 2), factor)
    thickness = 1 if factor == 1 else 2
    inner = part
    for _ in range(thickness):
        inner = _erode(inner)
    line = part & ~inner

    # The padding may hang over the canvas on each side; it is empty there.
    y0, x0 = (top - 2) * factor, (left - 2) * factor
    y1, x1 = max(y0, 0), max(x0, 0)
    region = canvas[y1 : y0 + part.shape[0], x1 : x0 + part.shape[1]]
    window = np.s_[y1 - y0 : y1 - y0 + region.shape[0], x1 - x0 : x1 - x0 + region.shape[1]]
    tint = np.array(colour, dtype=np.float32)
    inside, edge = part[window], line[window]
    region[inside] += fill * (tint - region[inside])
    region[edge] = tint


def _enlarge(mask: BoolArray, factor: int) -> BoolArray:
    """A mask enlarged with smooth borders instead of stairs."""
    if factor == 1:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    size = (mask.shape[1] * factor, mask.shape[0] * factor)
    return np.asarray(grey.resize(size, Image.Resampling.BILINEAR)) > 127


def _erode(mask: BoolArray) -> BoolArray:
    """The pixels whose four neighbours are in the mask; what lies beyond the border counts as outside."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _texts(instances: Mapping[str, Any], class_names: Sequence[str] | None, count: int) -> list[str]:
    labels, scores = instances.get("labels"), instances.get("scores")
    texts = []
    for index in range(count):
        words = []
        if labels is not None and class_names is not None and len(class_names) > 2:
            words.append(class_names[int(labels[index])])
        if scores is not None:
            words.append(f"{round(100 * float(scores[index]))}%")
        texts.append(" ".join(words))
    return texts


def _draw_boxes_and_labels(picture: Image.Image, marks: Sequence[tuple[Box, str, Colour]], style: Style) -> None:
    draw = ImageDraw.Draw(picture)
    if style.boxes:
        for (x1, y1, x2, y2), _, colour in marks:
            draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=1)
    if not style.labels:
        return
    font = ImageFont.load_default(size=style.font_size)
    taken: list[Box] = []
    for box, text, colour in marks:
        if not text:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        place = _label_place(box, (right - left + 4, bottom - top + 4), picture.size, taken)
        if place is not None:
            taken.append(place)
            draw.rectangle(place, fill=colour)
            draw.text((place[0] + 2 - left, place[1] + 2 - top), text, font=font, fill="black")


def _label_place(box: Box, size: tuple[float, float], limits: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    """Where a label fits near its box without covering another: above, below, inside; else nowhere."""
    width, height = size
    x = min(max(box[0], 0), limits[0] - width)
    for y in (box[1] - height, box[3], box[1]):
        place = (x, y, x + width, y + height)
        free = all(place[2] <= t[0] or place[0] >= t[2] or place[3] <= t[1] or place[1] >= t[3] for t in taken)
        if free and y >= 0 and y + height <= limits[1]:
            return place
    return None

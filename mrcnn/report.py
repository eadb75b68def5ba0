"""The report of a training: one HTML file that needs nothing else, with its pictures and curves inside."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mrcnn.engine.coco_eval import Figures

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
LOSSES = {
    "loss_classifier": "class of a region",
    "loss_box_reg": "box of a region",
    "loss_mask": "mask of a region",
    "loss_objectness": "object or not (proposals)",
    "loss_rpn_box_reg": "box (proposals)",
}
_MEANINGS = {
    "AP": "average precision, the main figure: mean over how strictly masks must agree (IoU 0.50 to 0.95)",
    "AP50": "precision when half an overlap (IoU 0.50) counts as found",
    "AP75": "precision when a close overlap (IoU 0.75) is asked for",
    "APs": "AP of small objects, under 32 × 32 pixels of area",
    "APm": "AP of medium objects",
    "APl": "AP of large objects, over 96 × 96 pixels",
    "ARs": "AR of small objects",
    "ARm": "AR of medium objects",
    "ARl": "AR of large objects",
}
_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #e3e7ed; --ground: #f7f8fa; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
p { max-width: 46rem; } .soft, figcaption { color: var(--soft); }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1.1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 1.4rem; }
figure { margin: 0; flex: 1 1 320px; min-width: 0; }
figure img, figure svg { width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line);
  background: #fff; display: block; }
figcaption { font-size: .88rem; padding: .35rem .1rem; }
table { border-collapse: collapse; background: #fff; border: 1px solid var(--line); width: 100%; }
th, td { text-align: left; padding: .38rem .8rem; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.main td { font-weight: 700; background: #eef4ff; }
pre { background: #1c2430; color: #e8edf4; padding: .8rem 1rem; border-radius: 8px; overflow-x: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
"""


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        title: its heading.
        introduction: a paragraph on what was trained on what.
        facts: short values with a caption each, shown large.
        figures: the twelve figures for "bbox" and "segm"; empty where nothing was evaluated.
        evaluated_on: what the figures were measured on, as the end of a sentence.
        history: records of `metrics.jsonl`.
        pictures: rows of pictures, each picture with its caption.
        settings: tables of names and values, by their heading.
        next_commands: what to do next and the command for it.
    """

    title: str
    introduction: str
    facts: Sequence[tuple[str, str]]
    figures: Mapping[str, Figures]
    evaluated_on: str
    history: Sequence[Mapping[str, Any]]
    pictures: Sequence[Sequence[tuple[str, Image.Image]]] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    next_commands: Sequence[tuple[str, str]] = ()


def write_report(path: Path, report: Report) -> None:
    """Writes a report as HTML."""
    parts = [f"<h1>{_text(report.title)}</h1>", f"<p>{_text(report.introduction)}</p>", _cards(report.facts)]
    if report.pictures:
        parts.append("<h2>What the model sees</h2>")
        parts += [_picture_row(row) for row in report.pictures]
    if report.figures:
        parts += ["<h2>How good it is</h2>", _figures_table(report.figures, report.evaluated_on)]
    if report.history:
        parts += ["<h2>How training went</h2>", _curves(report.history)]
    if report.next_commands:
        parts.append("<h2>How to go on</h2>")
        parts += [f"<p>{_text(words)}</p><pre>{_text(line)}</pre>" for words, line in report.next_commands]
    if report.settings:
        parts.append("<h2>Settings</h2>")
        parts += [_settings(title, values) for title, values in report.settings.items()]
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(report.title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body>\n</html>\n",
        encoding="utf-8",
    )


def loss_curves(history: Sequence[Mapping[str, Any]]) -> str:
    """The total loss and its five parts over the steps, as one SVG."""
    records = [record for record in history if "loss" in record]
    series = {"total": [(record["step"], record["loss"]) for record in records]}
    for name, words in LOSSES.items():
        series[words] = [(record["step"], record[name]) for record in records if name in record]
    return line_chart(series, "loss")


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, width: int = 640, height: int = 320
) -> str:
    """Lines over steps as an SVG picture, the vertical axis from zero.

    Args:
        series: points (step, value) of each line by its name; non-finite points are left out.
        title: what the vertical axis shows.
        width: in pixels.
        height: in pixels.
    """
    points = {name: [p for p in line if all(map(math.isfinite, p))] for name, line in series.items()}
    points = {name: line for name, line in points.items() if line}
    last = max((x for line in points.values() for x, _ in line), default=1) or 1
    top = max((y for line in points.values() for _, y in line), default=1) or 1
    ticks_y, ticks_x = _ticks(top), _ticks(last)
    top = max(top, ticks_y[-1])
    left, right, above, below = 52, 190, 30, 34  # the names of the lines stand to the right
    inner_width, inner_height = width - left - right, height - above - below

    def place(x: float, y: float) -> str:
        return f"{left + inner_width * x / last:.1f},{above + inner_height * (1 - y / top):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{_text(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="18" font-weight="600" fill="#1c2430">{_text(title)}</text>',
    ]
    for tick in ticks_y:
        x, y = place(0, tick).split(",")
        parts.append(f'<path d="M{x},{y}H{width - right}" stroke="#e3e7ed"/>')
        parts.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#5b6675">{tick:g}</text>')
    for tick in ticks_x:
        x = place(tick, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 16}" text-anchor="middle" fill="#5b6675">{_short(tick)}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 3}" text-anchor="end" fill="#5b6675">step</text>')
    for (name, line), colour in zip(points.items(), _cycle(len(points)), strict=True):
        path = " ".join(place(x, y) for x, y in line)
        if len(line) == 1:
            x, y = path.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-linejoin="round"><title>{_text(name)}</title></polyline>'
        )
    for number, (name, colour) in enumerate(zip(points, _cycle(len(points)), strict=True)):
        row = above + 14 + 17 * number
        parts.append(f'<path d="M{width - right + 12},{row - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{width - right + 36}" y="{row}" fill="#1c2430">{_text(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _cards(facts: Sequence[tuple[str, str]]) -> str:
    cards = [f'<div class="card"><b>{_text(v)}</b><span>{_text(k)}</span></div>' for k, v in facts]
    return f'<div class="cards">{"".join(cards)}</div>'


def _picture_row(row: Sequence[tuple[str, Image.Image]]) -> str:
    figures = [
        f'<figure><img src="{_inline(picture)}" alt="{_text(caption)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for caption, picture in row
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _inline(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((1200, 1200))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _figures_table(figures: Mapping[str, Figures], evaluated_on: str) -> str:
    masks, boxes = figures["segm"], figures["bbox"]
    rows = []
    for name in masks:
        cells = "".join(
            f'<td class="number">{f"{values[name]:.3f}" if values[name] >= 0 else "–"}</td>'
            for values in (masks, boxes)
        )
        meaning = _MEANINGS.get(name) or f"share of objects found with at most {name[2:]} detections an image"
        mark = ' class="main"' if name == "AP" else ""
        rows.append(f"<tr{mark}><td>{name}</td>{cells}<td>{_text(meaning)}</td></tr>")
    return (
        f"<p>COCO's twelve figures, measured on {_text(evaluated_on)}. Each lies between 0 and 1 and more "
        "is better; 1 would be every object found, with an exact mask and no false alarm. IoU is the overlap "
        "of a prediction and the truth: their common area divided by their joint area. AR is average "
        "recall. A dash means that no object has that size.</p>"
        "<table><tr><th>figure</th><th>masks</th><th>boxes</th><th>what it says</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    charts = [loss_curves(history)]
    captions = ["The loss is what training makes smaller: how wrong the model still is, in all and by part."]
    evaluations = [record for record in history if "eval" in record]
    if evaluations:
        names = {"segm": "masks", "bbox": "boxes"}
        lines = {w: [(e["step"], e["eval"][kind]["AP"]) for e in evaluations] for kind, w in names.items()}
        charts.append(line_chart(lines, "AP on the validation data"))
        captions.append("AP on images that are not trained on.")
    figures = [
        f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"
        for chart, caption in zip(charts, captions, strict=True)
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _settings(title: str, values: Mapping[str, Any]) -> str:
    rows = [f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in values.items()]
    return f"<details><summary>{_text(title)}</summary><table>{''.join(rows)}</table></details>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _ticks(largest: float) -> list[float]:
    """About five round numbers from zero up to `largest`."""
    raw = largest / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [round(i * step, 10) for i in range(int(largest / step + 1e-6) + 1)]


def _short(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"

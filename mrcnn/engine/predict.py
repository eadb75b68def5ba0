"""Prediction on picture files: overlays, COCO results, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mrcnn.data.images import ImageError, check_image, list_images, read_image
from mrcnn.data.problems import MAX_LISTED, Problem, write_problems
from mrcnn.engine.evaluate import Results, detect, to_results
from mrcnn.engine.output import ProgressLine, writable_folder, write_json
from mrcnn.visualize import draw_instances

if TYPE_CHECKING:
    from mrcnn.model import MaskRCNN


class PredictionError(ValueError):
    """Pictures that cannot be predicted on; the message names them."""


@dataclass(frozen=True)
class Picture:
    """A file to predict on.

    Attributes:
        path: the file.
        image_id: its id in the results: the number that its name is, if the names of all are different
            numbers, as COCO's are; else its place in the list, from 1.
        overlay: name of its overlay picture, without a suffix.
    """

    path: Path
    image_id: int
    overlay: str


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture: `results` as COCO results, best first."""

    picture: Picture
    height: int
    width: int
    results: Results


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The picture files among files and folders, each folder's in the order of their names.

    Raises:
        PredictionError: if a path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = list_images(path)
            if not inside:
                raise PredictionError(f"{path}: is a folder without pictures.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise PredictionError(f"{path}: does not exist.")
    return list(dict.fromkeys(found))


def check_pictures(paths: Sequence[Path]) -> tuple[list[Picture], list[Problem]]:
    """Decodes every file once, so that a bad one is known before any prediction."""

    def check(path: Path) -> Problem | None:
        try:
            check_image(path)
        except ImageError as error:
            return error.located(str(path))
        return None

    with ThreadPoolExecutor(max_workers=4) as pool:
        problems = list(pool.map(check, paths))
    good = [path for path, problem in zip(paths, problems, strict=True) if problem is None]
    stems = [path.stem for path in good]
    numbered = all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)
    ids = [int(stem) for stem in stems] if numbered else range(1, len(good) + 1)
    distinct = len(set(stems)) == len(stems)  # not so for one stem in different folders or formats
    pictures = [
        Picture(path, image_id, path.stem if distinct else f"{number:05}_{path.stem}")
        for number, (path, image_id) in enumerate(zip(good, ids, strict=True), 1)
    ]
    return pictures, [problem for problem in problems if problem is not None]


def predict(
    model: MaskRCNN,
    paths: Sequence[Path],
    out_dir: Path,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    *,
    score_threshold: float = 0.5,
    skip_bad: bool = False,
    console: Console | None = None,
) -> list[Prediction]:
    """Predicts on picture files.

    Args:
        model: on any device.
        paths: files and folders of pictures.
        out_dir: receives `results.json` (COCO results with RLE), `images.json` (which file each image id is,
            and the categories), `pictures/` with an overlay for each picture and, with `skip_bad`, the
            pictures left out in `skipped.jsonl`.
        class_names: one name per label, the background first.
        category_ids: the category id of each label in the results.
        score_threshold: detections with a lower score are left out, of everything.
        skip_bad: go on without files that cannot be read.
        console: where to show progress; nowhere by default.

    Raises:
        PredictionError: if there is no picture at a path, or a file cannot be read as one and `skip_bad` is
            not given or no picture is left.
        OutputError: if `out_dir` cannot be written.
    """
    files = find_pictures(paths)
    writable_folder(out_dir)
    folder = writable_folder(out_dir / "pictures")
    pictures, problems = check_pictures(files)
    if problems and (not skip_bad or not pictures):
        lines = [f"{len(problems)} of {len(files)} pictures cannot be read:"]
        lines += [f"  {problem}" for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            lines.append(f"  and {len(problems) - MAX_LISTED} more")
        if pictures:
            lines.append("Leave them out with skip_bad=True (--skip-bad).")
        raise PredictionError("\n".join(lines))
    if problems:
        write_problems(problems, out_dir / "skipped.jsonl")

    predictions = []
    with ProgressLine(console or Console(quiet=True), "predicting", len(pictures), unit="images") as progress:
        for picture in pictures:
            image = read_image(picture.path)
            (found,) = detect(model, [image])
            results = [
                result
                for result in to_results(found, picture.image_id, category_ids)
                if result["score"] >= score_threshold
            ]
            overlay = draw_instances(image, found, class_names, score_threshold=score_threshold)
            overlay.save(folder / f"{picture.overlay}.png")
            predictions.append(Prediction(picture, image.shape[1], image.shape[2], results))
            progress.advance()
    write_json(out_dir / "results.json", [result for p in predictions for result in p.results])
    write_json(out_dir / "images.json", _images_json(predictions, class_names, category_ids))
    return predictions


def predictions_table(
    predictions: Sequence[Prediction], class_names: Sequence[str], category_ids: Sequence[int], rows: int = 20
) -> Table:
    """One row per picture, the first `rows` of them, and a total."""
    names = dict(zip(category_ids, class_names, strict=True))
    table = Table(title="Predictions", show_footer=True)
    total = sum(len(p.results) for p in predictions)
    table.add_column("picture", footer=f"{len(predictions)} in all")
    table.add_column("size")
    table.add_column("instances", justify="right", footer=str(total))
    table.add_column("best score", justify="right")
    table.add_column("classes")
    for prediction in predictions[:rows]:
        counts = Counter(names[result["category_id"]] for result in prediction.results)
        best = max((result["score"] for result in prediction.results), default=None)
        table.add_row(
            prediction.picture.path.name,
            f"{prediction.width} × {prediction.height}",
            str(len(prediction.results)),
            "-" if best is None else f"{best:.2f}",
            ", ".join(f"{name} {count}" for name, count in counts.most_common(6)),
        )
    if len(predictions) > rows:
        table.add_row(f"and {len(predictions) - rows} more", "", "", "", "")
    return table


def _images_json(
    predictions: Sequence[Prediction], class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """COCO's lists of images and categories, so that the results can be read without the checkpoint."""
    images = [
        {"id": p.picture.image_id, "file_name": str(p.picture.path), "height": p.height, "width": p.width}
        for p in predictions
    ]
    categories = [{"id": number, "name": name} for number, name in zip(category_ids[1:], class_names[1:], strict=True)]
    return {"images": images, "categories": categories}

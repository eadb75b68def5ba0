"""What can be wrong with a data set, in a form that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One bad item of a data set.

    Attributes:
        kind: short stable name for programs, such as "image-missing" or "polygon-invalid".
        file: the image or annotation file to look at.
        message: what is wrong.
        remedy: what to do about it.
        image_id: id of the image, where one is concerned and known.
        annotation_id: id of the annotation, where one is concerned and known.
    """

    kind: str
    file: str
    message: str
    remedy: str
    image_id: int | None = None
    annotation_id: int | None = None

    def __str__(self) -> str:
        place = self.file
        if self.image_id is not None:
            place += f", image {self.image_id}"
        if self.annotation_id is not None:
            place += f", annotation {self.annotation_id}"
        return f"{place}: {self.message}. {self.remedy}."


class InvalidItem(ValueError):
    """A check failed; the caller, who knows file and ids, makes a `Problem` of it."""

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remedy = remedy

    def located(self, file: str, image_id: int | None = None, annotation_id: int | None = None) -> Problem:
        """The problem, with the place where it was found."""
        return Problem(self.kind, file, self.message, self.remedy, image_id, annotation_id)


class DatasetError(ValueError):
    """A data set cannot be used as it is; the message lists what is wrong and what to do.

    Attributes:
        problems: all problems, also those that the message leaves out for brevity.
    """

    def __init__(self, source: Path, problems: Sequence[Problem], *, skippable: bool) -> None:
        self.source = source
        self.problems = tuple(problems)
        self.skippable = skippable
        super().__init__(describe(source, problems, skippable=skippable))


def describe(source: Path, problems: Sequence[Problem], *, skippable: bool) -> str:
    """The problems as lines of text, the first `MAX_LISTED` of them in full."""
    lines = [f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in the data set {source}:"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems[:MAX_LISTED], start=1)]
    if len(problems) > MAX_LISTED:
        lines.append(f"  ... and {len(problems) - MAX_LISTED} more.")
    if skippable:
        lines.append("Correct them, or leave the bad items out with skip_bad=True (--skip-bad).")
    return "\n".join(lines)


def write_problems(problems: Sequence[Problem], path: Path) -> None:
    """Writes one JSON object per line and problem, with the fields of `Problem`.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(problem)) + "\n" for problem in problems), encoding="utf-8")

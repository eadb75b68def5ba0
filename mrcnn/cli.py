"""The command line: `mrcnn demo`, `train`, `eval`, `predict` and `models`.

Each command is a dataclass: its fields are the arguments and its docstrings the help. The work is done in
`mrcnn.engine.commands`, which is slow to import and therefore imported only when there is work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    OmitSubcommandPrefixes,
    Positional,
    PositionalMetavarFromFieldName,
    subcommand,
)

WIDTH_WITHOUT_TERMINAL = 120


@dataclass(frozen=True)
class Demo:
    """Train on the left half of the image that comes with the package, and test on the right half.

    It shows the whole path in one or two minutes without any data: 512 x 512 pixels of cell nuclei, 125 of
    them outlined by hand. Writes a checkpoint, metrics.json, pictures, loss curves and report.html.
    """

    out: Path = Path("runs/demo")
    """Folder to write to."""
    seed: int = 0
    """Seed of everything random."""
    steps: int | None = None
    """Optimizer steps, instead of the recipe's."""
    device: str | None = None
    """Where to compute, such as cpu or cuda:0. By default the GPU if there is one."""

    def run(self, console: Console) -> None:
        from mrcnn.engine import commands

        commands.demo(self, console)


@dataclass(frozen=True)
class Train:
    """Train on your own images.

    The data are checked first, and every problem is named. What is not given here comes from a recipe that
    suits the size of the data set. Writes checkpoint.safetensors, metrics.jsonl and report.html; with --val
    also metrics.json and pictures.
    """

    data: Positional[Path]
    """COCO JSON file, folder with one, or folder of images with label maps."""
    out: Path
    """Folder to write to."""
    images: Path | None = None
    """Folder of the images; found beside the annotations if not given."""
    val: Path | None = None
    """Data to evaluate on at the end, in the same forms."""
    val_images: Path | None = None
    """Folder of the images of --val."""
    model: str = "mask_rcnn_r18_fpn_gn"
    """Preset; `mrcnn models` lists them."""
    init: Path | None = None
    """Weights to start from: a checkpoint of this library, or a torchvision state dict."""
    resume: bool = False
    """Continue the training in --out; give the same arguments as at its start."""
    skip_bad: bool = False
    """Leave bad images and annotations out, and list them in skipped.jsonl."""
    device: str | None = None
    """Where to compute, such as cpu or cuda:0. By default the GPU if there is one."""
    min_size: int | None = None
    """Length that the short side of each image is resized to, in pixels."""
    max_size: int | None = None
    """Largest length of the long side after resizing."""
    augment: Literal["none", "photos", "overhead"] | None = None
    """How images are varied: not at all, mirrored left for right, or also turned, for microscopes and aircraft."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int | None = None
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """SGD with momentum as in the paper, or AdamW."""
    lr: float | None = None
    """Learning rate after the warm-up."""
    weight_decay: float | None = None
    """Weight decay, on weights only."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights; 0 is no average."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """Arithmetic of the forward pass."""
    seed: int | None = None
    """Seed of everything random."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; one is always written at the end."""
    eval_every: int | None = None
    """Steps between two evaluations on --val."""
    max_seconds: float | None = None
    """Wall time after which training ends by itself."""
    workers: int | None = None
    """Processes that load images; 0 loads in this one."""

    def run(self, console: Console) -> None:
        from mrcnn.engine import commands

        commands.train(self, console)


@dataclass(frozen=True)
class Eval:
    """Compute COCO's twelve figures, for a checkpoint on data or for a file of results.

    Either `mrcnn eval CHECKPOINT DATA`, or `mrcnn eval --annotations GT.json --results DT.json`.
    """

    checkpoint: Positional[Path | None] = None
    """Checkpoint to evaluate."""
    data: Positional[Path | None] = None
    """Data to evaluate on: COCO JSON file, folder with one, or folder of images with label maps."""
    images: Path | None = None
    """Folder of the images; found beside the annotations if not given."""
    annotations: Path | None = None
    """COCO JSON file with the ground truth of --results."""
    results: Path | None = None
    """COCO results to evaluate instead of a checkpoint."""
    iou_type: Literal["bbox", "segm"] = "segm"
    """Overlap of boxes or of masks. A checkpoint's table shows both; --json has this one."""
    max_dets: int = 100
    """Detections counted per image and category; more than COCO's 100 for crowded images."""
    json: Path | None = None
    """File for the figures, as a JSON object by their names."""
    save_results: Path | None = None
    """File for the checkpoint's detections, as COCO results."""
    skip_bad: bool = False
    """Leave bad images and annotations out."""
    device: str | None = None
    """Where to compute, such as cpu or cuda:0. By default the GPU if there is one."""

    def run(self, console: Console) -> None:
        from mrcnn.engine import commands

        commands.evaluate(self, console)


@dataclass(frozen=True)
class Predict:
    """Find and outline objects in pictures.

    Writes an overlay of each picture, results.json (COCO results with RLE masks) and images.json (which
    picture each image id is).
    """

    checkpoint: Positional[Path]
    """Checkpoint of a trained model."""
    paths: Positional[tuple[Path, ...]]
    """Pictures and folders of pictures."""
    out: Path = Path("predictions")
    """Folder to write to."""
    score: float = 0.5
    """Lowest score to keep, in 0..1."""
    skip_bad: bool = False
    """Go on without pictures that cannot be read, and list them in skipped.jsonl."""
    device: str | None = None
    """Where to compute, such as cpu or cuda:0. By default the GPU if there is one."""

    def run(self, console: Console) -> None:
        from mrcnn.engine import commands

        commands.predict(self, console)


@dataclass(frozen=True)
class Models:
    """List the models that can be trained."""

    def run(self, console: Console) -> None:
        from mrcnn.engine import commands

        commands.models(self, console)


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Models, subcommand("models")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the words after `mrcnn`; by default the process's own.

    Returns:
        Exit code: 0, 2 for what the person can correct, which is then said on stderr, or 130 if interrupted.
    """
    try:
        command: Any = tyro.cli(
            Command,
            prog="mrcnn",
            description="Mask R-CNN: train, evaluate and use instance segmentation.",
            args=arguments,
            config=(DisallowNone, FlagCreatePairsOff, OmitSubcommandPrefixes, PositionalMetavarFromFieldName),
        )
    except SystemExit as end:  # help, or arguments that do not parse
        return end.code if isinstance(end.code, int) else 0
    from mrcnn.engine.commands import USER_ERRORS

    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    try:
        command.run(console)
    except USER_ERRORS as error:
        print(f"mrcnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mrcnn: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

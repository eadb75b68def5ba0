"""Any picture file to 8-bit RGB.

Grey, palette, RGBA and CMYK pictures become RGB (transparency is dropped, not composed). Pictures of more
than 8 bits per channel are scaled so that the smallest of 8, 10, 12, 14 and 16 bits that holds their largest
value becomes 0..255: cameras of 12 bits store their values unscaled in 16-bit files, which would otherwise
come out nearly black. Floating-point pictures within 0..1 are scaled by 255.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mrcnn.data.problems import InvalidItem

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

UInt8Array = npt.NDArray[np.uint8]

# What Pillow's decoders raise on damaged files, by experience; UnidentifiedImageError is an OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)
_QUARTER_TURNS = frozenset({5, 6, 7, 8})


class ImageError(InvalidItem):
    """A picture is missing, unreadable, truncated, or not of the expected size.

    Attributes:
        path: the picture.
    """

    def __init__(self, path: Path, kind: str, message: str, remedy: str) -> None:
        super().__init__(kind, message, remedy)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}. {self.remedy}."


def read_image(path: Path) -> Tensor:
    """Reads a picture as a float32 tensor [3, H, W] in 0..1, upright as its EXIF orientation says.

    Raises:
        ImageError: the file is missing, not a picture, or truncated.
    """
    return to_tensor(load_rgb(path))


def to_tensor(pixels: UInt8Array) -> Tensor:
    """[H, W, 3] in 0..255 to float32 [3, H, W] in 0..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def load_rgb(path: Path, size: tuple[int, int] | None = None) -> UInt8Array:
    """Reads a picture as [H, W, 3] in 0..255.

    Args:
        path: the picture.
        size: (height, width) that annotations refer to. The EXIF orientation is followed unless only the
            pixels as stored have this size: some annotation tools show pictures upright, others as stored.

    Raises:
        ImageError: the file is missing, not a picture, truncated, or not of this size.
    """
    with open_image(path) as image:
        image.load()
        _, turned = _orient(path, (image.height, image.width), _orientation(image), size)
        if turned:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)


def check_image(path: Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Decodes a picture to find damage, and gives the (height, width) that `load_rgb` would.

    JPEG is decoded at an eighth of its size, which reads every byte in half the time.

    Raises:
        ImageError: as `load_rgb`.
    """
    with open_image(path) as image:
        stored = image.height, image.width
        if image.format in {"JPEG", "MPO"}:
            image.draft(image.mode, (1, 1))
            image.load()
        else:
            image.load()
            # Pillow turns TIFF upright while it loads.
            stored = image.height, image.width
        used, _ = _orient(path, stored, _orientation(image), size)
        return used


def list_images(folder: Path) -> list[Path]:
    """The picture files of a folder by their suffix, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")


def _orient(
    path: Path, stored: tuple[int, int], orientation: int, size: tuple[int, int] | None
) -> tuple[tuple[int, int], bool]:
    """The (height, width) that a picture is used at, and whether its EXIF orientation is followed.

    Raises:
        ImageError: it has not the given size, upright or as stored.
    """
    upright = stored[::-1] if orientation in _QUARTER_TURNS else stored
    if size is None or upright == size:
        return upright, orientation != 1
    if stored == size:
        return stored, False
    raise ImageError(
        path,
        "image-size",
        f"the file is {upright[1]} × {upright[0]} pixels (width × height), the annotations are for "
        f"{size[1]} × {size[0]}",
        "Use the picture that was annotated, or scale the annotations to this one",
    )


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens a picture, and turns whatever its decoder raises into an `ImageError`."""
    kind = "image-unreadable"
    try:
        with Image.open(path) as image:
            yield image
    except InvalidItem:
        raise
    except FileNotFoundError:
        remedy = "Put it there, or remove it from the data set"
        raise ImageError(path, "image-missing", "the picture is missing", remedy) from None
    except UnidentifiedImageError:
        remedy = "Convert it to PNG or JPEG"
        raise ImageError(path, kind, "this is not a picture that can be read", remedy) from None
    except Image.DecompressionBombError as error:
        remedy = "Cut it into tiles"
        raise ImageError(path, kind, f"the picture is too large ({error})", remedy) from None
    except _DECODE_ERRORS as error:
        remedy = "Get the file again, or remove it from the data set"
        raise ImageError(path, kind, f"the picture is truncated or damaged ({error})", remedy) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or it is nonsense."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _to_rgb(image: Image.Image) -> UInt8Array:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bits(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in {"P", "PA"}:
        # A palette may hold transparency, which a direct conversion to RGB warns about.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _to_8_bits(values: npt.NDArray[Any]) -> UInt8Array:
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    peak = float(numbers.max(initial=0.0))
    depths = [255.0, 1023.0, 4095.0, 16383.0, 65535.0]
    if values.dtype.kind == "f":
        depths.insert(0, 1.0)
    white = next((depth for depth in depths if peak <= depth), peak)
    return np.rint(numbers * (255.0 / white)).astype(np.uint8)

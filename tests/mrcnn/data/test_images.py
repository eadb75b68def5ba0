"""Pictures of every kind become the RGB that is in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrcnn.data import read_image
from mrcnn.data.images import ImageError, check_image, list_images, load_rgb

# 3 rows of 2 pixels, every channel of every pixel different.
RGB = np.array(
    [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]], [[130, 140, 150], [160, 170, 180]]],
    dtype=np.uint8,
)
GREY = RGB[:, :, 0]
# What each EXIF orientation (TIFF 6.0, tag 274) makes of stored rows and columns.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def save(path: Path, image: Image.Image, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
        image.save(path, exif=exif)
    else:
        image.save(path)
    return path


def test_rgb_and_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(load_rgb(path), RGB)
    tensor = read_image(path)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    expected = np.moveaxis(RGB, 2, 0).astype(np.float64) / 255
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-7)


def test_grey_is_repeated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    np.testing.assert_array_equal(load_rgb(path), np.stack([GREY] * 3, axis=2))


def test_one_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY > 50))
    np.testing.assert_array_equal(load_rgb(path)[:, :, 1], np.where(GREY > 50, 255, 0))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((3, 2), 7, dtype=np.uint8)])
    path = save(tmp_path / "a.png", Image.fromarray(rgba))
    np.testing.assert_array_equal(load_rgb(path), RGB)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None)
    image = image.convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([1, 2, 3, 40, 50, 60, 200, 210, 220])
    image.save(tmp_path / "a.png", transparency=b"\x00\xff\x80")
    expected = np.array([[[1, 2, 3], [40, 50, 60]], [[200, 210, 220], [40, 50, 60]]])
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.tif", "<i4"), ("a.pgm", "<u2")],
)
def test_sixteen_bits(tmp_path: Path, name: str, dtype: str) -> None:
    """257 × v in 16 bits is the grey v in 8 bits; little and big endian, 16 and 32 bits per value."""
    values = (GREY.astype(np.int64) * 257).astype(dtype)
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[dtype]
    image = Image.frombytes(mode, (2, 3), values.tobytes())
    path = save(tmp_path / name, image)
    np.testing.assert_array_equal(load_rgb(path), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize(("peak", "white"), [(255, 255), (256, 1023), (4000, 4095), (16000, 16383)])
def test_camera_depth(tmp_path: Path, peak: int, white: int) -> None:
    """Values of a camera with fewer bits than the file are scaled by the bits they need."""
    values = np.array([[0, peak // 2, peak]], dtype=np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    expected = [round(255 * v / white) for v in (0, peak // 2, peak)]
    assert load_rgb(path)[0, :, 0].tolist() == expected


def test_float_picture(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0, np.nan, -3.0]], dtype=np.float32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert load_rgb(path)[0, :, 2].tolist() == [0, 128, 255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    path = save(tmp_path / name, Image.fromarray(RGB), orientation)
    expected = UPRIGHT[orientation](RGB)
    np.testing.assert_array_equal(load_rgb(path), expected)
    assert check_image(path) == expected.shape[:2]


def test_exif_in_jpeg(tmp_path: Path) -> None:
    left_white = np.zeros((16, 32, 3), dtype=np.uint8)
    left_white[:, :16] = 255
    path = save(tmp_path / "a.jpg", Image.fromarray(left_white), 6)  # 6: the stored left is the top
    upright = load_rgb(path)
    assert upright.shape == (32, 16, 3)
    assert upright[:15].min() > 200
    assert upright[17:].max() < 50
    assert check_image(path) == (32, 16)


def test_annotated_size_decides_about_exif(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), 6)
    np.testing.assert_array_equal(load_rgb(path, (3, 2)), RGB)
    np.testing.assert_array_equal(load_rgb(path, (2, 3)), UPRIGHT[6](RGB))
    assert check_image(path, (3, 2)) == (3, 2)
    assert check_image(path, (2, 3)) == (2, 3)
    for function in (load_rgb, check_image):
        with pytest.raises(ImageError, match=r"3 × 2 pixels.*are for 5 × 4"):
            function(path, (4, 5))


def test_ambiguous_orientation_is_followed(tmp_path: Path) -> None:
    square = RGB[:2]
    path = save(tmp_path / "a.png", Image.fromarray(square), 3)
    np.testing.assert_array_equal(load_rgb(path, (2, 2)), square[::-1, ::-1])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_truncated(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / name, Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for function in (check_image, load_rgb):
        with pytest.raises(ImageError, match="truncated or damaged") as caught:
            function(path)
        assert caught.value.kind == "image-unreadable"


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(noise))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ImageError):
        check_image(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"not a picture|truncated or damaged"):
        check_image(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "none.png"
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == (f"{path}: the picture is missing. Put it there, or remove it from the data set.")
    with pytest.raises(ImageError):
        read_image(tmp_path)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ImageError, match="too large"):
        check_image(path)


def test_nonsense_in_exif_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), 77)
    np.testing.assert_array_equal(load_rgb(path), RGB)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", "._a.jpg", "d.tiff"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "d.tiff"]

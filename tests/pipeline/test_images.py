"""Pictures of every kind become the same bytes, or are refused in one line."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import load_image
from PIL import Image

from i2am.pipeline.recording.images import size_of, to_uint8
from i2am.storage.errors import ConfigError, InputError, NotFound, ShapeMismatch

RAMP = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10) * 4
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)
SHAPE = np.zeros((6, 10), bool)
SHAPE[1:4, 2:7] = True
WHITE = np.uint8(255) * SHAPE[..., None]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_is_turned_as_load_image_turns_it(tmp_path: Path, orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{format.lower()}"
    Image.fromarray(COLOURS).save(path, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    expected = load_image(str(path))
    np.testing.assert_array_equal(to_uint8("source", path), np.asarray(expected))
    with Image.open(path) as unread:
        np.testing.assert_array_equal(to_uint8("reference", unread), np.asarray(expected))
    assert size_of(path) == expected.size


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "a.tiff")
    pgm = b"P5 10 6 65535\n" + deep.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(pgm)
    for image in (deep, *(tmp_path / name for name in ("a.png", "a.tiff", "a.pgm"))):
        np.testing.assert_array_equal(to_uint8("source", image), RAMP[..., None])
    odd = np.array([[0, 127, 128, 65535]], np.uint16)
    assert to_uint8("source", odd).ravel().tolist() == [0, 0, 0, 255]
    assert to_uint8("source", np.array([[129, 300]], np.uint16)).ravel().tolist() == [1, 1]
    with pytest.raises(
        ShapeMismatch, match=r"uint16 in \[0, 236\]; scale it"
    ):  # 8 bits kept in 16, or night?
        to_uint8("source", RAMP.astype(np.uint16))


def test_palettes_and_alpha_as_load_image_reads_them(tmp_path: Path) -> None:
    alpha = np.dstack([COLOURS, RAMP])
    clear = Image.fromarray(COLOURS).quantize(16)
    pictures = {
        "rgba": Image.fromarray(alpha),
        "palette": Image.fromarray(COLOURS).quantize(16),
        "grey and alpha": Image.fromarray(np.dstack([RAMP, RAMP])),
        "cmyk": Image.fromarray(COLOURS).convert("CMYK"),
    }
    for name, picture in pictures.items():
        path = tmp_path / (name + (".tiff" if name == "cmyk" else ".png"))
        picture.save(path)
        expected = np.asarray(load_image(str(path)))
        for image in (path, picture):
            np.testing.assert_array_equal(to_uint8("source", image), expected)
    clear.save(tmp_path / "clear.png", transparency=3)
    expected = np.asarray(load_image(str(tmp_path / "clear.png")))
    np.testing.assert_array_equal(to_uint8("source", tmp_path / "clear.png"), expected)
    np.testing.assert_array_equal(to_uint8("source", alpha), COLOURS)


def test_tensors_put_their_channels_first() -> None:
    first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(COLOURS, -1, 0)))
    for tensor in (
        first,
        first[None],
        first.float() / 255,
        first.permute(1, 2, 0),
        (first / 255).requires_grad_(),
    ):
        np.testing.assert_array_equal(to_uint8("source", tensor), COLOURS)
    assert to_uint8("source", (first / 255).bfloat16()).shape == COLOURS.shape
    np.testing.assert_array_equal(to_uint8("mask", torch.from_numpy(SHAPE)[None]), WHITE)
    np.testing.assert_array_equal(to_uint8("source", np.moveaxis(COLOURS, -1, 0)), COLOURS)
    with pytest.raises(
        ShapeMismatch, match=r"got ndarray \(3, 8, 3\); tensor.permute"
    ):  # either may be first
        to_uint8("source", torch.zeros(3, 8, 3))
    with pytest.raises(ShapeMismatch, match=r"float32 in \[-1"):  # what a VAE takes
        to_uint8("source", first / 127.5 - 1)


def palette(image: Image.Image, colours: list[int]) -> Image.Image:
    image = Image.fromarray(np.asarray(image)).convert("L")
    paletted = Image.frombytes("P", image.size, image.tobytes())
    paletted.putpalette(colours)
    return paletted


GREY = [level for level in range(256) for _ in range(3)]
ONES = Image.fromarray(SHAPE.astype(np.uint8))
MASKS: dict[str, Callable[[], Any]] = {
    "bool": lambda: SHAPE,
    "0 and 1": lambda: SHAPE.astype(np.uint8),
    "0 and 1 in PIL": lambda: ONES,
    "0 and 255": lambda: WHITE,
    "int64 of 0 and 1": lambda: SHAPE.astype(np.int64),
    "int64 of 0 and 255": lambda: SHAPE * np.int64(255),
    "16 bits": lambda: SHAPE * np.uint16(65535),
    "16 bits in PIL": lambda: Image.fromarray(SHAPE * np.uint16(65535)),
    "floats": lambda: SHAPE.astype(np.float64),
    "half floats": lambda: torch.from_numpy(SHAPE).half(),
    "one bit": lambda: Image.fromarray(SHAPE),
    "grey in RGB": lambda: np.repeat(WHITE, 3, 2),
    "a palette of black and white": lambda: palette(ONES, [0, 0, 0, 255, 255, 255]),
    "a grey palette of 0 and 1": lambda: palette(ONES, GREY),
    "opaque": lambda: Image.fromarray(np.repeat(WHITE, 3, 2)).convert("RGBA"),
    "the same shape in alpha": lambda: np.repeat(WHITE, 4, 2),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", ["mask", "reference_mask", "warped_mask"])
def test_masks_that_are_understood(kind: str, name: str, tmp_path: Path) -> None:
    mask = MASKS[kind]()
    np.testing.assert_array_equal(to_uint8(name, mask), WHITE)
    if isinstance(mask, Image.Image):
        mask.save(tmp_path / "m.png")
        np.testing.assert_array_equal(to_uint8(name, tmp_path / "m.png"), WHITE)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "empty": (lambda: np.zeros((6, 10), np.uint8), "a mask that is empty; .* got values from 0 to 0"),
    "full": (lambda: np.ones((6, 10), bool), "a mask that is full; .* got values from True to True"),
    "dark": (lambda: WHITE // 3, "a mask that is empty; .* got values from 0 to 85"),
    "labels": (lambda: SHAPE.astype(np.uint8) * 2, "a mask that is empty; .* got values from 0 to 2"),
    "floats to 255": (lambda: WHITE.astype(np.float32), r"float32 in \[0.0, 255.0\]; scale it"),
    "not a number": (lambda: np.where(SHAPE, np.nan, 0.0), r"float64 in \[nan, nan\]"),
    "negative": (lambda: SHAPE.astype(np.int64) - 1, r"int64 in \[-1, 0\]"),
    "alpha over white": (
        lambda: Image.fromarray(np.dstack([np.full((6, 10, 3), 255, np.uint8), WHITE])),
        "a mask with a shape in its alpha channel",
    ),
    "an erased part": (
        lambda: np.dstack([np.repeat(WHITE, 3, 2), ~WHITE]),
        "a mask with a shape in its alpha channel",
    ),
    "a transparent palette": (
        lambda: transparent(palette(ONES, [255, 255, 255, 255, 255, 255])),
        "a mask with a shape in its alpha channel",
    ),
    "red labels": (lambda: palette(ONES, [0, 0, 0, 128, 0, 0]), "a mask in colours; .* differ by 128"),
    "white on blue": (lambda: palette(ONES, [0, 0, 255, 255, 255, 255]), "a mask in colours"),
}


def transparent(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return Image.open(buffer)


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_are_refused(kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(ShapeMismatch, match=words) as caught:
        to_uint8("mask", make())
    assert "\n" not in str(caught.value)


def test_a_file_is_one_picture_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (4, 4), 9 * n) for n in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as film, pytest.raises(ConfigError, match="got several in one file"):
        to_uint8("source", film)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="image b.png does not exist"):
        to_uint8("source", "b.png")
    with pytest.raises(NotFound, match="diffusers.utils.load_image"):
        to_uint8("source", "https://example.org/b.png")
    os.mkfifo("pipe")
    for path in ("pipe", "."):
        with pytest.raises(ConfigError, match="expected a file"):
            to_uint8("source", path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match="a picture that PIL reads whole"):
        to_uint8("source", "text.png")
    for nothing in (None, [], np.zeros((0, 4)), [[1], [1, 2]], "\0"):
        with warnings.catch_warnings(), pytest.raises(InputError, match="expected"):
            to_uint8("source", nothing)

"""Data sets made to hurt: paths out of their folder, files without end, pictures that would fill memory."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from i2am.flows.datasets import images, table
from i2am.flows.datasets.common import MAX_BYTES, check_ids
from i2am.flows.datasets.images import read_image
from i2am.flows.datasets.open import open_samples
from i2am.flows.datasets.table import MAX_COLUMNS, MAX_ROW, read_table
from i2am.pipeline.recording.images import size_of
from i2am.storage.errors import ConfigError, InputError, NotFound
from tests.flows.conftest import Outcome, spawn
from tests.flows.test_datasets import picture, settings

LEAVING = [
    "../secret.png",
    "/etc/hostname",
    "a/../../secret.png",
    "link.png",
    "linked/secret.png",
    "loop",
    "a\0b",
    "x" * 5000,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set beside a picture that is not part of it, with links to it."""
    picture(tmp_path / "secret.png")
    data = tmp_path / "data"
    picture(data / "r.png")
    (data / "a").mkdir()
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "linked").symlink_to(tmp_path)
    (data / "loop").symlink_to(data / "loop")
    return data


def refused(samples: dict[str, Any], words: str) -> None:
    """One printable line, short whatever came in."""
    with pytest.raises(InputError, match=words) as caught:
        open_samples(settings(samples))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", LEAVING)
@pytest.mark.parametrize("kind", ["csv", "parquet", "coco"])
def test_a_path_that_leaves_the_folder(folder: Path, path: str, kind: str) -> None:
    file = folder / f"m.{kind}"
    samples: dict[str, Any] = {"manifest": str(file)}
    if kind == "coco":
        content = {
            "images": [{"id": 1, "file_name": path, "width": 8, "height": 12}],
            "annotations": [{"image_id": 1, "bbox": [0, 0, 4, 4]}],
        }
        file.write_text(json.dumps(content))
        samples = {"coco": {"annotations": str(file), "images": str(folder)}}
    elif kind == "csv":
        file.write_text(f"id,reference\nx,{path}\n")
    else:
        pl.DataFrame({"id": ["x"], "reference": [path]}).write_parquet(file)
    refused(samples, "expected a path inside .*data; got one outside|loop does not exist|x does not exist")


def test_viton_hd_that_leaves_its_root(folder: Path) -> None:
    samples = {"viton_hd": {"root": str(folder)}}
    for name in ("image", "cloth", "agnostic-mask"):
        (folder / "test" / name).mkdir(parents=True)
    pairs = folder / "test_pairs.txt"
    for line in (
        "../../../secret.png r.png",
        "/etc/hostname r.png",
        f"{'x' * 5000} r.png",
        "a.png /etc/hostname",
    ):
        pairs.write_text(line + "\n")
        refused(samples, "got one outside|does not exist|at most 200 bytes")
    pairs.unlink()
    pairs.symlink_to("/etc/passwd")  # a line of it would stand in the error
    refused(samples, r"list of pairs 'test_pairs\.txt'; expected a path inside")
    pairs.unlink()
    pairs.write_text("secret.png secret.png\n")
    (folder / "test").rename(folder / "elsewhere")
    (folder / "test").symlink_to(folder.parent)
    refused(samples, "split 'test'; expected a path inside")


def test_a_prompt_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "small/a.png")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "small/a.txt").symlink_to(tmp_path / "secret")
    found = open_samples(settings({"low_resolution": {"folder": str(tmp_path / "small")}}))
    with pytest.raises(ConfigError, match="got one outside"):
        found.load("a")
    (tmp_path / "small/a.txt").unlink()
    (tmp_path / "small/a.txt").write_text("x" * 100_000)
    with pytest.raises(ConfigError, match="prompt .* at most 65536 bytes"):
        found.load("a")


@pytest.mark.parametrize("kind", ["manifest", "image", "pairs", "annotations"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_pipes_and_devices_do_not_block(folder: Path, kind: str, what: str) -> None:
    name = {"manifest": "m.csv", "image": "i.png", "pairs": "test_pairs.txt", "annotations": "c.json"}[kind]
    path = folder / name
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    (folder / "n.csv").write_text("id,reference\nx,i.png\n")
    samples: dict[str, Any] = {
        "manifest": {"manifest": str(path)},
        "image": {"manifest": str(folder / "n.csv")},
        "pairs": {"viton_hd": {"root": str(folder)}},
        "annotations": {"coco": {"annotations": str(path), "images": str(folder)}},
    }[kind]
    refused(samples, r"expected a file; got a (pipe|device|folder)|does not exist|got one outside")


CELL = "x" * 200_000
TABLES = {
    "a huge cell": (f"id,reference\n{CELL},r.png\n", "field larger than field limit"),
    "an open quote": ('id,reference\n"' + "x\n" * 1000, "unexpected end of data"),
    "a huge row": (
        "id,reference\n" + ('"' + "x" * 100_000 + '",') * 20 + "\n",
        f"a row of more than {MAX_ROW} characters",
    ),
    "a row of many lines": (
        "id,reference\n" + '"\n",' * 500_000 + "\n",
        f"a row of more than {MAX_ROW} characters",
    ),
    "a million columns": (
        "id,reference" + ",c" * 1_000_000 + "\nx,r.png\n",
        f"a row of more than {MAX_ROW} characters",
    ),
    "many columns": (
        "id,reference," + ",".join(f"c{n}" for n in range(5000)) + "\n",
        f"5002 columns; at most {MAX_COLUMNS}",
    ),
    "two of a name": ("id,reference,id\nx,r.png,y\n", "two columns of one name"),
    "a longer row": ("id,reference\nx,r.png,more\n", "line 2 has 3 cells under 2 columns"),
    "no text": ("id,reference\n\udcff,r.png\n", "invalid start byte|can't decode"),
    "escape in an id": (
        "id,reference\n\x1b[2J,r.png\n",
        r"sample id; expected text without control .*'\\x1b\[2J'",
    ),
    "a long id": (f"id,reference\n{'x' * 300},r.png\n", "at most 200 bytes"),
    "an empty id": ("id,reference\n,r.png\n", "expected a non-empty text"),
    "an id twice": ("id,reference\n" + "x,r.png\n" * 2, "'x' more than once"),
    "a huge seed": (f"id,reference,seed\nx,r.png,{'9' * 30}\n", "seed; expected an integer from 0"),
    "a seed of many digits": (
        f"id,reference,seed\nx,r.png,{'9' * 5000}\n",
        "seed; expected an integer from 0",
    ),
    "a negative seed": ("id,reference,seed\nx,r.png,-1\n", "seed; expected an integer from 0"),
}


@pytest.mark.parametrize("name", TABLES)
def test_csv(folder: Path, name: str) -> None:
    text, words = TABLES[name]
    (folder / "m.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused({"manifest": str(folder / "m.csv")}, words)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_table_of_a_gigabyte(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 1 << 30)
    refused({"manifest": str(folder / name)}, f"at most {MAX_BYTES} bytes; got more")


def test_hostile_ids_that_are_text_are_kept(folder: Path) -> None:
    ids = ["<script>1</script>", "..", "../x", "a/b", "\u202e", "[red]", "e\u0301"]
    pl.DataFrame({"id": ids, "reference": ["r.png"] * len(ids)}).write_csv(folder / "m.csv")
    assert list(open_samples(settings({"manifest": str(folder / "m.csv")})).ids) == ids


def test_csv_means_what_it_meant(folder: Path) -> None:
    """Quotes, a byte order mark, line ends of all kinds, empty lines, short rows."""
    text = '\ufeffid,reference,prompt\r\n007,r.png,"a ""b"", c\nd"\r\n\r\n8,r.png\r\n'
    (folder / "m.csv").write_bytes(text.encode())
    found = open_samples(settings({"manifest": str(folder / "m.csv")}))
    assert found.ids == ("007", "8")
    assert [found.load(id).texts for id in found.ids] == [{"prompt": 'a "b", c\nd'}, {}]


def parquet(path: Path, frame: pl.DataFrame) -> Path:
    frame.write_parquet(path)
    return path


def test_parquet_of_absurd_sizes(folder: Path) -> None:
    """A few kilobytes that stand for gigabytes: of rows, of text, of columns."""
    path = folder / "m.parquet"
    samples = {"manifest": str(path)}
    parquet(path, pl.DataFrame({"id": ["a" * 2_000_000] * 1000}))
    assert path.stat().st_size < 10_000
    refused(samples, "more than 268435456 bytes of text")
    parquet(path, pl.DataFrame({f"c{n}": [1] for n in range(1000)}))
    refused(samples, f"1000 columns; at most {MAX_COLUMNS}")
    parquet(path, pl.DataFrame({"id": ["a"] * 3_000_000, "reference": ["r.png"] * 3_000_000}))
    assert len(read_table(path, 7)) == 7
    parquet(path, pl.DataFrame({"id": ["a", "b"], "reference": ["r.png"] * 2, "seed": [1.0, float("inf")]}))
    refused(samples, "seed; expected an integer from 0")


def test_parquet_that_lies_ends_its_reader_and_not_us(folder: Path) -> None:
    """Random bytes of a table: read, or refused in one line. Some would end this process."""
    buffer = io.BytesIO()
    pl.DataFrame({"id": ["a", "b"] * 50, "reference": ["r.png"] * 100, "n": range(100)}).write_parquet(buffer)
    raw, chance = buffer.getvalue(), random.Random(1)
    path = folder / "m.parquet"
    kept = 0
    for _ in range(12):
        changed = bytearray(raw)
        for _ in range(chance.choice([1, 2, 8])):
            changed[chance.randrange(len(raw))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            kept += len(read_table(path, None)) == 100
        except ConfigError as error:
            assert "expected a table with a heading" in str(error)  # noqa: PT017 - either is right
    assert kept < 12


def test_parquet_whose_reader_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(folder / "m.parquet", pl.DataFrame({"id": ["a"]}))
    monkeypatch.setattr(table, "PARQUET_SECONDS", 0.01)
    with pytest.raises(ConfigError, match=r"takes more than 0\.01 s"):
        read_table(path, None)
    monkeypatch.undo()
    monkeypatch.setattr(table.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="no Parquet that can be read in bounded memory"):
        read_table(path, None)


def test_no_module_of_the_working_directory_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(folder / "m.parquet", pl.DataFrame({"id": ["a"]}))
    for name in ("polars", "i2am", "json"):
        (folder / f"{name}.py").write_text("open('owned', 'w')\n")
    monkeypatch.chdir(folder)
    assert read_table(path, None) == [{"id": "a"}]
    assert not (folder / "owned").exists()


def test_the_search_for_an_id_that_stands_twice_is_not_quadratic() -> None:
    ids = [f"s{n}" for n in range(200_000)]
    with pytest.raises(ConfigError, match="'s199999' more than once"):
        check_ids([*ids, ids[-1]], "list")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(columns: int, rows: int, data: bytes = b"", more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PICTURES = {
    "a bomb": (png(50_000, 50_000, zlib.compress(bytes(1 << 20))), "exceeds limit|at most 67108864 pixels"),
    "a smaller bomb": (png(10_000, 9_000), "at most 67108864 pixels|exceeds limit"),
    "just too large": (png(8193, 8192), "at most 67108864 pixels; got 8193×8192"),
    "a bomb of words": (
        png(4, 4, zlib.compress(bytes(52)), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)))),
        "expected a picture that PIL reads",
    ),
    "no pixels": (png(4, 4), "expected a picture that PIL reads whole"),
    "no size": (png(0, 4), "expected a picture that PIL reads"),
    "a text": (b"id,reference\n", "expected a picture that PIL reads"),
    "nothing": (b"", "expected a picture that PIL reads"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "expected a picture",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("warned", [True, False])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(tmp_path: Path, name: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, words = PICTURES[name]
    (tmp_path / "a.png").write_bytes(data)
    if not warned:  # the command line ignores warnings
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ConfigError, match=words) as caught:
        read_image(tmp_path / "a.png", "source")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_pictures_cut_short_or_changed(tmp_path: Path, format: str) -> None:
    """Every format that is read: whole it is read; cut or changed it is read or one error of ours."""
    buffer = io.BytesIO()
    Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 20).convert("RGB").save(buffer, format)
    raw, chance = buffer.getvalue(), random.Random(2)
    path = tmp_path / "a"
    path.write_bytes(raw)
    assert read_image(path, "source").size == size_of(path) == (24, 16)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ConfigError):
        read_image(path, "source")
    for _ in range(150):
        changed = bytearray(raw)
        for _ in range(chance.choice([1, 4])):
            changed[chance.randrange(min(len(raw), 200))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            assert read_image(path, "mask").mode == "L"
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_pictures_are_refused(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (8, 8), (40 * n, 0, 0)) for n in range(4)]
    frames[0].save(tmp_path / "a", format, save_all=True, append_images=frames[1:])
    with pytest.raises(ConfigError, match="expected one picture; got several"):
        read_image(tmp_path / "a", "source")


def test_an_upscaled_picture_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", 100, 100)
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100 * 16)
    for scale, fits in ((4, True), (5, False)):
        low = {"low_resolution": {"folder": str(tmp_path), "scale": scale, "multiple": 1}}
        found = open_samples(settings(low))
        if fits:
            assert found.load("a").images["source"].size == (400, 400)
        else:
            with pytest.raises(
                ConfigError, match="upscaled image; expected at most 160000 pixels; got 500×500"
            ):
                found.load("a")


def image(**changes: str) -> str:
    """COCO's text with one image; values as they stand in JSON."""
    fields = {"id": "1", "file_name": '"r.png"', "width": "8", "height": "12"} | changes
    inner = ", ".join(f'"{key}": {value}' for key, value in fields.items())
    return f'{{"images": [{{{inner}}}], "annotations": []}}'


def box(numbers: str) -> str:
    return f'{{"images": [], "annotations": [{{"image_id": 1, "bbox": [{numbers}]}}]}}'


ANNOTATIONS = {
    "deep": ('{"images": ' + "[" * 200_000, "RecursionError"),
    "deep elsewhere": ('{"info": ' + "[" * 100_000 + "]" * 100_000 + "}", "RecursionError"),
    "a list": ("[]", "expected COCO"),
    "no text": ('"\ud800"', "expected text in UTF-8"),
    "infinite id": (image(id="1e999"), "OverflowError"),
    "id of many digits": (image(id="9" * 5000), "expected COCO"),
    "infinite width": (image(width="1e999"), "a width and a height from 1"),
    "no width": (image(width="null"), "TypeError"),
    "width that is no number": (image(width="NaN"), "a width and a height from 1"),
    "infinite box": (box("0, 0, 1e999, 1"), "a bbox has four numbers"),
    "a long box": (box("1," * 100_000 + "1"), "a bbox has four numbers"),
    "no name": (image().replace("file_name", "x"), "KeyError"),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_coco(folder: Path, name: str) -> None:
    text, words = ANNOTATIONS[name]
    (folder / "c.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused({"coco": {"annotations": str(folder / "c.json"), "images": str(folder)}}, words)


def test_coco_of_a_terabyte(folder: Path) -> None:
    (folder / "c.json").touch()
    os.truncate(folder / "c.json", 1 << 40)
    refused(
        {"coco": {"annotations": str(folder / "c.json"), "images": str(folder)}}, "annotation file .* at most"
    )


def test_the_command_says_it_in_one_line(
    i2am: Callable[..., Outcome], config: Callable[..., Path], folder: Path
) -> None:
    (folder / "m.csv").write_text("id,reference\nx,../secret.png\n")
    i2am("capture", config(samples={"manifest": str(folder / "m.csv")}), "--direct").refused(
        "got one outside"
    )


def test_a_device_as_manifest_is_refused_in_a_process_of_little_memory(
    config: Callable[..., Path], folder: Path
) -> None:
    (folder / "m.csv").symlink_to("/dev/zero")
    spawn("capture", config(samples={"manifest": str(folder / "m.csv")}), "--direct").refused(
        "zero; expected|ending"
    )
    with pytest.raises(NotFound):
        read_table(folder / "n.csv", None)

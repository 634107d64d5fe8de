"""Wrong input: one line that says what, expected, got and remedy; exit status 2; never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2am.storage.format.signed_json import canonical, signed
from tests.flows.conftest import Outcome, spawn, write_run

I2am = Callable[..., Outcome]
READERS = [
    ("inspect",),
    ("verify",),
    ("imacs",),
    ("maps", "--out", "F.npz"),
    ("analyze", "--out", "D", "--direct"),
]


def ids(command: tuple[str, ...]) -> str:
    return command[0]


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_store_that_is_not_there(i2am: I2am, tmp_path: Path, command: tuple[str, ...]) -> None:
    i2am(command[0], tmp_path / "nothing.zarr", *command[1:]).refused(
        "no run at .*nothing.zarr; check the path"
    )


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_folder_that_is_no_store(i2am: I2am, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "notes.txt").write_text("not a store")
    i2am(command[0], tmp_path, *command[1:]).refused("is not a run; expected a directory with zarr.json")


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_file_that_is_no_store(i2am: I2am, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "run.zarr").write_text("not a store")
    i2am(command[0], tmp_path / "run.zarr", *command[1:]).refused("run.zarr")


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_zarr_group_of_somebody_else(i2am: I2am, tmp_path: Path, command: tuple[str, ...]) -> None:
    import zarr

    zarr.create_group(tmp_path / "other.zarr", attributes={"other": 1})
    i2am(command[0], tmp_path / "other.zarr", *command[1:]).refused("is not a run")


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_store_of_a_newer_format(i2am: I2am, run: Path, command: tuple[str, ...]) -> None:
    root = run / "zarr.json"
    document = json.loads(root.read_text())
    attributes = {key: value for key, value in document["attributes"]["i2am"].items() if key != "digest"}
    document["attributes"]["i2am"] = signed(attributes | {"format": 2})
    root.write_bytes(canonical(document))
    i2am(command[0], run, *command[1:]).refused("format; expected at most 1; got 2; install a newer i2am")


@pytest.mark.parametrize("command", READERS, ids=ids)
def test_a_store_that_may_not_be_read(run: Path, command: tuple[str, ...]) -> None:
    (run / "zarr.json").chmod(0)
    spawn(command[0], run, *command[1:], mortal=True).refused("(may not|permission|refused).*")


@pytest.mark.parametrize("command", READERS[2:], ids=ids)
def test_an_empty_run(i2am: I2am, tmp_path: Path, command: tuple[str, ...]) -> None:
    empty = write_run(tmp_path / "empty.zarr", commit=0)
    i2am(command[0], empty, *command[1:]).refused("holds no committed sample; .*0 of 3 declared")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "fin"], r"unknown layer 'fin'; expected one of 'deep', 'fine'; did you mean 'fine'\?"),
        (["--sample", "d"], r"unknown sample 'd'; expected one of 'a', 'b', 'c'"),
        (["--direction", "r2gg"], r"unknown direction 'r2gg'; expected one of .*; did you mean 'r2g'\?"),
        (["--level", "heads"], r"unknown level 'heads'; expected one of .*; did you mean 'head'\?"),
        (["--steps", "9"], r"step"),
        (["--steps", "a"], r"--steps; expected indices such as 3 or 0,4, or a slice"),
        (["--heads", "5"], r"head"),
        (["--size", "0"], r"--size; expected ROWSxCOLUMNS"),
        (["--level", "specific"], r"at; expected a region at the specific level"),
        (["--level", "specific", "--at", "99,0"], r"99"),
        (["--level", "specific", "--at", "1"], r"--at; expected row,column"),
        (["--level", "time", "--time-groups", "0"], r"--time-groups"),
        (["--out", "F.jpg"], r"expected a name that ends in .npz, .zarr or .png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_questions_that_make_no_sense(
    i2am: I2am, run: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    i2am("maps", run, "--out", tmp_path / "F.npz", *options).refused(words)
    assert not (tmp_path / "F.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["maps"], r"Missing argument 'RUN\.\.\.'; see i2am --help"),
        (["maps", "x", "--ot", "F.npz"], "No such option: --ot"),
        (["demo", "--samples", "0"], "'--samples': Input should be greater than or equal to 1; see"),
        (["demo", "--samples", "many"], "'--samples': Input should be a valid integer"),
        (["capture", "c.yaml", "--prefect", "--direct"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(i2am: I2am, words: list[str], message: str) -> None:
    i2am(*words).refused(message)


def test_an_output_that_exists(i2am: I2am, run: Path, tmp_path: Path) -> None:
    for name in ("F.npz", "F.png", "F.zarr"):
        (tmp_path / name).write_text("precious")
        i2am("maps", run, "--out", tmp_path / name).refused(f"{name} exists")
        assert (tmp_path / name).read_text() == "precious"
    (tmp_path / "out" / "tables").mkdir(parents=True)
    i2am("analyze", run, "--out", tmp_path / "out", "--direct").refused(
        "exists and was not written by a study"
    )


def test_an_output_in_a_folder_that_is_not_there(i2am: I2am, run: Path, tmp_path: Path) -> None:
    i2am("maps", run, "--out", tmp_path / "no" / "F.npz").refused("no does not exist; make it first")


def test_an_output_that_may_not_be_written(run: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    spawn("maps", run, "--out", closed / "F.npz", mortal=True).refused("cannot write into .*closed")
    spawn("analyze", run, "--out", closed / "D", mortal=True).refused("closed")
    spawn("demo", "--out", closed / "D", mortal=True).refused("closed.*permission denied")


def test_a_disk_that_is_full(run: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        spawn("inspect", run, "--json", stdout=full).refused("no space left on the disk")


def test_a_reader_that_leaves_is_no_error(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    outcome = spawn("inspect", run, stdout=write)
    os.close(write)
    assert (outcome.status, outcome.err) == (141, "")


class TestCapture:
    """Configurations that cannot be captured."""

    def test_a_configuration_that_is_not_there(self, i2am: I2am, tmp_path: Path) -> None:
        i2am("capture", tmp_path / "c.yaml", "--direct").refused("c.yaml does not exist; .*i2am demo --out")

    def test_a_typo(self, i2am: I2am, config: Callable[..., Path]) -> None:
        i2am("capture", config(bath_size=2)).refused(r"unknown key 'bath_size'; did you mean 'batch_size'\?")

    def test_both_ways_of_running(self, i2am: I2am, config: Callable[..., Path]) -> None:
        i2am("capture", config(), "--prefect", "--direct").refused("at most one of them")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"adapter": "nope"}, r"unknown adapter 'nope'; expected one of"),
            ({"layers": ["unet.up"]}, r"unknown layer 'unet.up'"),
            ({"steps": "7"}, r"step"),
            (
                {"call": {"num_inference_step": 2}},
                r"call 'num_inference_step'; .*did you mean 'num_inference_steps'\?",
            ),
            ({"device": "gpu"}, r"device; expected cpu, cuda, .*; got 'gpu'"),
            ({"device": "cuda:99"}, r"device; expected one of \d+ CUDA devices; got cuda:99"),
            ({"inputs": {"picture": "source"}}, r"unknown argument of ReferencePainter's call 'picture'"),
            (
                {"pipeline": {"kind": "factory", "function": "no_such_module:build"}},
                r"no module named 'no_such_module'",
            ),
            (
                {"pipeline": {"kind": "factory", "function": "tests.flows.tiny:bild"}},
                r"did you mean 'build'\?",
            ),
            (
                {"pipeline": {"kind": "factory", "function": "tests.flows.tiny:not_a_pipeline"}},
                r"expected a callable pipeline; got int",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_the_pipeline_cannot_do(
        self,
        i2am: I2am,
        config: Callable[..., Path],
        tmp_path: Path,
        changes: dict[str, object],
        words: str,
    ) -> None:
        i2am("capture", config(**changes), "--direct", "--quiet").refused(words)
        assert not (tmp_path / "tiny.zarr").exists()

    @pytest.mark.parametrize(
        ("location", "words"),
        [
            ("./nowhere", "nowhere does not exist"),
            (".", "expected a PaintByExamplePipeline with safetensors"),
        ],
    )
    def test_a_checkpoint_that_is_none(
        self, i2am: I2am, config: Callable[..., Path], tmp_path: Path, location: str, words: str
    ) -> None:
        manifest(tmp_path)
        pipeline = {"kind": "pretrained", "location": location, "class": "PaintByExamplePipeline"}
        file = config(pipeline=pipeline, samples={"manifest": "m.csv"})
        i2am("capture", file, "--direct", "--quiet").refused(words)

    def test_an_unknown_pipeline_class(self, i2am: I2am, config: Callable[..., Path], tmp_path: Path) -> None:
        manifest(tmp_path)
        pipeline = {"kind": "pretrained", "location": ".", "class": "PaintByExamplePipelin"}
        file = config(pipeline=pipeline, samples={"manifest": "m.csv"})
        i2am("capture", file, "--direct", "--quiet").refused(r"did you mean 'PaintByExamplePipeline'\?")

    def test_an_output_that_is_no_run(self, i2am: I2am, config: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "tiny.zarr").mkdir()
        (tmp_path / "tiny.zarr" / "thesis.tex").write_text("precious")
        i2am("capture", config(), "--direct", "--quiet").refused("tiny.zarr")
        assert (tmp_path / "tiny.zarr" / "thesis.tex").read_text() == "precious"

    def test_a_disk_that_cannot_hold_the_run(
        self, i2am: I2am, config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("i2am.storage.writing.plan.free_bytes", lambda path: 1000)
        words = r"does not fit its disk; expected at least .* kB free; got 1 kB free"
        i2am("capture", config(), "--direct", "--quiet").refused(words)
        assert not (tmp_path / "tiny.zarr").exists()
        i2am("plan", config()).refused(words)


def manifest(
    folder: Path, table: str = "id,reference,source,mask\nx,r.png,s.png,m.png\n", mask: int = 16
) -> None:
    """Write a manifest ``m.csv`` of one sample, with its images."""
    (folder / "m.csv").write_text(table)
    for name, size in (("r.png", 16), ("s.png", 16), ("m.png", mask)):
        Image.fromarray(np.eye(size, dtype=np.uint8) * 255).save(folder / name)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "id,reference,source,mask\nx,r.png,s.png,m.png\nx,r.png,s.png,m.png\n",
            r"expected each id once; got 'x'",
        ),
        ("id,reference,source\nx,r.png,s.png\n", r"unknown column in .*'mask'.*add a column 'mask'"),
        ("name,reference,source,mask\nx,r.png,s.png,m.png\n", r"add a column 'id'"),
        ("id,reference,source,mask\nx,q.png,s.png,m.png\n", r"sample 'x': image .*q.png does not exist"),
        ("id,reference,source,mask\nx,../r.png,s.png,m.png\n", r"expected a path inside .*; got one outside"),
        ("id,reference,source,mask\nx,/etc/passwd,s.png,m.png\n", r"expected a path inside"),
        (
            "id,reference,source,mask\nx,r.png,s.png,\n",
            r"expected an image in column 'mask'; got an empty cell",
        ),
        ("id,reference,source,mask,seed\nx,r.png,s.png,m.png,one\n", r"seed; expected an integer .*'one'"),
        ("id,reference,source,mask\nx,m.csv,s.png,m.csv\n", r"expected a picture that PIL reads"),
        ("id,reference,source,mask\n", r"expected at least one row; got none"),
        ("", r"expected a table with a heading"),
    ],
)
def test_manifests(i2am: I2am, config: Callable[..., Path], tmp_path: Path, table: str, words: str) -> None:
    manifest(tmp_path, table)
    inputs = {"image": "source", "mask_image": "mask", "reference_image": "reference"}
    i2am("capture", config(samples={"manifest": "m.csv"}, inputs=inputs), "--direct", "--quiet").refused(
        words
    )


def test_a_mask_of_another_size(i2am: I2am, config: Callable[..., Path], tmp_path: Path) -> None:
    manifest(tmp_path, mask=24)
    words = r"sample 'x': mask; expected the source's size, 16×16 pixels; got 24×24; resize the mask"
    i2am("capture", config(samples={"manifest": "m.csv"}), "--direct", "--quiet").refused(words)


def test_a_symbolic_link_out_of_the_manifests_folder(
    i2am: I2am, config: Callable[..., Path], tmp_path: Path
) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    manifest(inside)
    (inside / "r.png").rename(tmp_path / "secret.png")
    (inside / "r.png").symlink_to(tmp_path / "secret.png")
    file = config(samples={"manifest": "data/m.csv"})
    i2am("capture", file, "--direct", "--quiet").refused("expected a path inside .*data; got one outside")

"""Stores that lie, signed and all: refused in one line, memory bounded, nothing outside touched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.storage.errors import DamagedRun, DamagedSample, DamageError, I2AMError, InputError
from tests.storage.forge import forge_record
from tests.storage.forge import forge_root as forge
from tests.storage.synthetic import LAYERS, TIMESTEPS, fill, write_run

BILLION = 10**9
DOWN, MID = "down.0.attn2", "mid.attn2"


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "undamaged.zarr"
    write_run(path, ("a", "b"))
    return path


@pytest.fixture
def copy(undamaged, tmp_path):
    return Path(shutil.copytree(undamaged, tmp_path / "r.zarr"))


def put(name, value, layer=0):
    return lambda own: own["layers"][layer].__setitem__(name, value)


def arrays(name, value, kind="query", layer=DOWN):
    return lambda own: own["arrays"][layer][kind].__setitem__(name, value)


LIES = {
    "heads": put("heads", BILLION),
    "head_dim": put("head_dim", BILLION),
    "gen_grid": put("gen_grid", [BILLION, BILLION]),
    "gen_grid, long": put("gen_grid", [1, BILLION]),
    "ref_grid": put("ref_grid", [BILLION, 1]),
    "ref_prefix": put("ref_prefix", BILLION),
    "a number beyond all floats": put("scale", 10**400),
    "a scale of 0": put("scale", 0),
    "heads as a text": put("heads", "4"),
    "heads as a truth": put("heads", True),
    "negative heads": put("heads", -4),
    "a layer that leads out": put("name", "../../up"),
    "a layer with a slash": put("name", "a/b"),
    "an empty layer": put("name", ""),
    "a huge tile": put("tile", [0, 0, 1, 1, BILLION, BILLION]),
    "a chunk of gigabytes": arrays("chunk", [1, 5, 4, 24, 8 * BILLION]),
    "a negative chunk": arrays("chunk", [1, -5, 4, 24, 8]),
    "a shard of many heads": arrays("shard", [1, 5, 4 * BILLION, 24, 8]),
    "a shard beyond the steps": arrays("shard", [1, 5 * BILLION, 4, 24, 8]),
    "a codec of its own": arrays("codec", "pickle"),
    "no chunk": arrays("chunk", []),
    "an image": lambda own: own["images"].__setitem__("mask", [BILLION, BILLION, 4]),
    "an image that leads out": lambda own: own["images"].__setitem__("../x", [1, 1, 1]),
    "metadata elsewhere": lambda own: own["metadata"].__setitem__("../../etc/passwd", "0" * 64),
    "metadata of a device": lambda own: own["metadata"].__setitem__("/dev/zero", "0" * 64),
    "no metadata": lambda own: own.__setitem__("metadata", {}),
    "samples as one text": lambda own: own.__setitem__("samples", "ab"),
    "samples twice": lambda own: own.__setitem__("samples", ["a", "a"]),
    "samples as numbers": lambda own: own.__setitem__("samples", [1, 2]),
    "samples with control characters": lambda own: own.__setitem__("samples", ["a", "\x1b[2Jb"]),
    "no sample": lambda own: own.__setitem__("samples", []),
    "no step": lambda own: own.__setitem__("timesteps", []),
    "steps as texts": lambda own: own.__setitem__("timesteps", ["1"] * 5),
    "a step beyond all floats": lambda own: own.__setitem__("timesteps", [10**400] * 5),
    "a run without id": lambda own: own.__setitem__("run_id", 7),
    "a layer twice": lambda own: own["layers"].append(own["layers"][0]),
    "layers as a number": lambda own: own.__setitem__("layers", 3),
    "arrays as a list": lambda own: own.__setitem__("arrays", []),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_no_run_can_have_is_refused_when_it_is_opened(copy, lie):
    forge(copy, LIES[lie])
    with pytest.raises(DamagedRun) as caught:
        i2am.open_run(copy)
    assert len(str(caught.value).splitlines()) == 1
    assert not i2am.verify(copy).ok
    with pytest.raises(DamagedRun):
        i2am.resume_run(copy)


CLAIMS = {
    "fewer bytes": lambda d: d["files"].update({k: {**v, "bytes": 10} for k, v in d["files"].items()}),
    "more bytes": lambda d: d["files"].update({k: {**v, "bytes": BILLION} for k, v in d["files"].items()}),
    "negative bytes": lambda d: d["files"].update({k: {**v, "bytes": -1} for k, v in d["files"].items()}),
    "bytes as a text": lambda d: d["files"].update({k: {**v, "bytes": "9"} for k, v in d["files"].items()}),
    "a file elsewhere": lambda d: d["files"].update({"../../etc/passwd": {"bytes": 1, "xxh3": "0" * 32}}),
    "files as a list": lambda d: d.__setitem__("files", []),
    "an image of terabytes": lambda d: d["images"]["mask"].__setitem__("shape", [BILLION, 1000, 1]),
    "an image that leads out": lambda d: d["images"].__setitem__("../mask", d["images"]["mask"]),
    "another index": lambda d: d.__setitem__("index", 1),
    "another sample": lambda d: d.__setitem__("sample", "../b"),
}


@pytest.mark.parametrize("lie", CLAIMS)
def test_records_that_lie_are_refused_before_memory_is_taken(copy, lie):
    forge_record(copy, CLAIMS[lie])
    run = i2am.open_run(copy)
    with pytest.raises(DamagedSample):
        run.read(DOWN, "a")
    with pytest.raises(DamageError):
        run.check("a")
    assert not i2am.verify(copy).ok
    run.read(DOWN, "b")


def test_documents_are_read_up_to_a_bound(copy, monkeypatch):
    with (copy / "commits/a.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(DamagedSample, match="more than"):
        i2am.open_run(copy).record("a")
    with (copy / "zarr.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedRun, match="more than"):
        i2am.open_run(copy)
    assert not i2am.verify(copy).ok


def test_nested_documents_end_in_one_line(copy):
    (copy / "commits/a.json").write_bytes(b"[" * 200_000 + b"]" * 200_000)
    with pytest.raises(DamagedSample):
        i2am.open_run(copy).record("a")
    (copy / "zarr.json").write_bytes(b'{"attributes":{"i2am":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_002)
    with pytest.raises(I2AMError):
        i2am.open_run(copy)


def test_a_bomb_of_compression_is_refused(tmp_path):
    """Zeros shrink to nothing: a small file may claim much, which is refused before memory is taken."""
    path = tmp_path / "r.zarr"
    spec = i2am.LayerSpec("x", 4, 64, (64, 64), (2, 2), dtype="float32", representation="factors")
    with (
        i2am.create_run(path, [spec], range(4), ["a"], codec="blosc-zstd-bitshuffle") as writer,
        writer.sample("a") as sink,
    ):
        zeros = np.zeros((4, 4096, 64), np.float32)
        for step in range(4):
            sink.put("x", step, query=zeros, key=zeros[:, :4])
    size = sum(file.stat().st_size for file in path.rglob("c.*"))
    assert size < 20_000
    i2am.open_run(path).read("x", "a")

    def grow(own):
        own["layers"][0]["heads"] = 4096
        for kind in own["arrays"]["x"].values():
            kind["shard"][2] = 4096

    forge(path, grow)
    with pytest.raises((DamagedSample, InputError)):
        i2am.open_run(path).read("x", "a")


def test_more_than_the_machine_has_is_not_read_at_once(copy, monkeypatch):
    monkeypatch.setattr("i2am.storage.reading.array_reader.physical_memory", lambda: 1000)
    with pytest.raises(InputError, match="read fewer steps or heads at a time"):
        i2am.open_run(copy).read(DOWN, "a")


def test_lies_cost_little_memory(copy, tmp_path):
    """All of the above in a process that may take little: none of it is killed, or fails for memory."""
    script = (
        "import resource, sys, pathlib, shutil\n"
        "from tests.storage import test_hostile as t\n"
        "import i2am\n"
        "source, place = map(pathlib.Path, sys.argv[1:])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1536 << 20,) * 2)\n"
        "def ask(path):\n"
        "    try:\n"
        "        run = i2am.open_run(path)\n"
        "        run.check('a')\n"
        "        for layer in run.layers:\n"
        "            run.read(layer, 'a'); run.scores(layer)[0, 0].compute()\n"
        "        return False\n"
        "    except i2am.I2AMError:\n"
        "        return True\n"
        "for number, (forge, lies) in enumerate(((t.forge, t.LIES), (t.forge_record, t.CLAIMS))):\n"
        "    for name, lie in lies.items():\n"
        "        path = place / f'{number}.zarr'\n"
        "        shutil.rmtree(path, ignore_errors=True)\n"
        "        shutil.copytree(source, path)\n"
        "        forge(path, lie)\n"
        "        assert ask(path), name\n"
        "        assert not i2am.verify(path).ok, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def outside(tmp_path):
    """A folder that is none of the store's business."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("a.json", "lock", "x.tmp", "c.0.0.0.0.0", "precious"):
        (folder / name).write_text("precious")
    return folder


def untouched(folder):
    return {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("a.json", "lock", "x.tmp", "c.0.0.0.0.0", "precious"), "precious"
    )


FOLDERS = ["attention", f"attention/{DOWN}", f"attention/{DOWN}/query", "images", "images/mask", "commits"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_a_link_is_not_entered(copy, tmp_path, folder):
    """Also where what it points to is a faithful copy."""
    shutil.move(copy / folder, tmp_path / "elsewhere")
    (copy / folder).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(DamageError, match="symbolic link"):
        run = i2am.open_run(copy)
        run.check("a")
        run.read(DOWN, "a")
        run.image("mask", "a")
    report = None
    try:
        report = i2am.verify(copy)
    except DamageError:
        return
    assert not report.ok


@pytest.mark.parametrize("file", ["zarr.json", "commits/a.json", f"attention/{DOWN}/query/c.0.0.0.0.0"])
@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "device"])
def test_a_file_that_is_none_is_not_read(copy, tmp_path, file, kind, monkeypatch):
    shutil.move(copy / file, tmp_path / "elsewhere")
    if kind == "link":
        (copy / file).symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(copy / file)
    elif kind == "device":
        (copy / file).symlink_to("/dev/zero")
    else:
        monkeypatch.chdir((copy / file).parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as end:
            end.bind((copy / file).name)
    with pytest.raises(DamageError, match="is not part of a store|is damaged"):
        run = i2am.open_run(copy)
        run.record("a")
        run.read(DOWN, "a")
    assert not i2am.verify(copy).ok


def test_the_run_itself_may_be_reached_by_a_link(copy, tmp_path):
    (tmp_path / "link.zarr").symlink_to(copy)
    run = i2am.open_run(tmp_path / "link.zarr")
    run.read(DOWN, "a")
    assert i2am.verify(tmp_path / "link.zarr").ok


def test_clearing_up_never_follows_a_link(copy, tmp_path):
    folder = outside(tmp_path)
    (copy / ".staging").symlink_to(folder)
    with pytest.raises(DamagedRun, match="symbolic link"):
        i2am.resume_run(copy)
    assert untouched(folder)
    (copy / ".staging").unlink()
    (copy / ".staging").mkdir()
    for name in ("a", "b", "loose.tmp"):
        (copy / ".staging" / name).symlink_to(folder)
    i2am.resume_run(copy).close()
    assert untouched(folder)


@pytest.mark.parametrize("linked", [".staging/c", f"attention/{DOWN}/query", "commits", "images/mask"])
def test_writing_never_follows_a_link(tmp_path, linked):
    path, folder = tmp_path / "r.zarr", outside(tmp_path)
    with i2am.create_run(path, LAYERS, TIMESTEPS, ["c"], image_shapes={"mask": (2, 2, 1)}) as writer:
        if (path / linked).is_dir():
            shutil.rmtree(path / linked)
        (path / linked).parent.mkdir(exist_ok=True)
        (path / linked).symlink_to(folder, target_is_directory=True)
        with pytest.raises(DamagedRun, match="symbolic link"), writer.sample("c") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))
            sink.put_image("mask", np.zeros((2, 2, 1), np.uint8))
        assert untouched(folder)
        (path / linked).unlink()
    assert untouched(folder)


def test_a_derived_store_is_not_written_through_a_link(copy, tmp_path):
    from i2am.analysis.marginals.store import open_marginals

    folder = outside(tmp_path)
    run = i2am.open_run(copy)
    cache = open_marginals(run)
    cache.load_or_compute(run.layers[DOWN], "a")
    place = Path(str(copy).replace(".zarr", ".marginals.zarr"))
    shutil.rmtree(place / MID, ignore_errors=True)
    (place / MID).symlink_to(folder, target_is_directory=True)
    with pytest.raises(DamagedRun, match="symbolic link"):
        open_marginals(i2am.open_run(copy)).load_or_compute(run.layers[MID], "a")
    assert untouched(folder)


def test_what_no_reader_would_open_is_not_written(tmp_path, monkeypatch):
    """The bounds of readers are the writer's too."""
    monkeypatch.setattr("i2am.storage.writing.create.MAX_ROOT", 20_000)
    for place in (tmp_path / "r.zarr", "memory://too-large/r.zarr"):
        with pytest.raises(InputError, match="root document of the run; expected at most 20,000"):
            i2am.create_run(place, LAYERS, TIMESTEPS, ["a"], {"note": "x" * 20_000})
        with pytest.raises(i2am.NotFound):
            i2am.open_run(place)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr("i2am.storage.writing.sink.MAX_RECORD", 4000)
    with i2am.create_run(tmp_path / "s.zarr", LAYERS, TIMESTEPS, ["a"]) as writer:
        with (
            pytest.raises(InputError, match="its commit record; expected at most 4,000"),
            writer.sample("a") as sink,
        ):
            fill(sink, LAYERS, range(len(TIMESTEPS)))
            sink.annotate(note="x" * 4000)
        assert writer.missing == ("a",)
    assert i2am.verify(tmp_path / "s.zarr").notes == ("1 of 1 declared samples are not committed",)


def test_a_lazy_array_of_millions_of_blocks_is_refused(copy, monkeypatch):
    monkeypatch.setattr("i2am.storage.reading.dask_arrays.MAX_BLOCKS", 1)
    with pytest.raises(InputError, match="as one lazy array; expected at most 1 blocks"):
        i2am.open_run(copy).scores(DOWN)
    i2am.open_run(copy).read(DOWN, "a")

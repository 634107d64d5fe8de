"""Clocks that jump by hours and years in the middle: nothing that is right depends on the time of day."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from i2am.storage.errors import AlreadyExists
from i2am.storage.tools.verify import verify
from i2am.storage.writing.atomic_directory import atomic_directory
from i2am.storage.writing.create import create_run
from tests.flows.conftest import ROOT, write_run
from tests.integration.clock import HOUR, YEAR, Clock, jumpy_clock
from tests.integration.forks import Forks, forks
from tests.integration.test_durability import arrays
from tests.integration.test_faults import COUNT, records, settings
from tests.integration.test_faults import check as check_run
from tests.storage.synthetic import LAYERS, TIMESTEPS


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return jumpy_clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def server(clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    with forks(settings(folder, folder / "run.zarr"), folder, clock.env) as made:
        yield made


def test_the_clock_does_jump(clock: Clock) -> None:
    command = [sys.executable, "-c", "import datetime; print(datetime.datetime.now(datetime.UTC).year)"]
    years = []
    for jump in (0, 5 * YEAR):
        clock.set(jump)
        done = subprocess.run(command, env={**os.environ, **clock.env}, capture_output=True, check=True)
        years.append(int(done.stdout))
    clock.set(0)
    assert years[1] - years[0] in (4, 5)


def test_captures_that_are_interrupted_and_resumed_while_the_clock_jumps(
    server: Forks, clock: Clock, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed" / "run.zarr"
    undisturbed.parent.mkdir()
    assert server.run("capture", settings(tmp_path, undisturbed), "--direct", "--quiet").status == 0
    run = tmp_path / "jumped" / "run.zarr"
    run.parent.mkdir()
    command = ("capture", settings(tmp_path, run), "--direct", "--quiet")
    with clock.jumping() as jumps:
        capture = server.start(*command)
        capture.until(lambda: records(run) >= 2)
        os.kill(capture.pid, 9)
        assert capture.wait().status == -9
        done = server.run(*command)
    assert done.status == 0, done.err
    assert len(jumps) > 20
    check_run(run, arrays(undisturbed))
    at = [json.loads(record.read_text())["committed"][:13] for record in run.glob("commits/*.json")]
    assert len(at) == COUNT
    assert len(set(at)) > 1  # the jumps did reach the writers


def test_an_analysis_while_the_clock_jumps(server: Forks, clock: Clock, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.zarr")
    same = shutil.copytree(run, tmp_path / "same.zarr")
    command = ("analyze", run, "--out", tmp_path / "out", "--direct", "--quiet", "--json")
    with clock.jumping():
        done = server.run(*command)
        again = server.run(*command)
    assert (done.status, again.status) == (0, 0), (done.err, again.err)
    assert all(seconds >= 0 for seconds in done.json["seconds"].values())
    assert server.run("analyze", same, "--out", tmp_path / "calm", "--direct", "--quiet").status == 0
    for table in sorted((tmp_path / "calm/tables").iterdir()):
        assert pl.read_parquet(table).equals(pl.read_parquet(tmp_path / "out/tables" / table.name)), table


CREATE = "import sys, i2am; from tests.storage.synthetic import LAYERS, TIMESTEPS\n"
CREATE += "i2am.create_run(sys.argv[1], LAYERS, TIMESTEPS, ['a']).close()"


@pytest.mark.parametrize("jump", [-YEAR, 26 * HOUR, YEAR])
def test_what_a_living_process_creates_is_left_alone_whatever_the_clock_says(
    clock: Clock, tmp_path: Path, jump: int
) -> None:
    root = tmp_path / "run.zarr"
    left = tmp_path / ".run.zarr.new/.staging/dead"
    left.mkdir(parents=True)  # of a process that has gone, with a time in the future
    os.utime(left, (2e10, 2e10))
    clock.set(jump)
    with (
        pytest.raises(AlreadyExists, match="another process has just created it"),
        atomic_directory(root) as made,
    ):
        (made / "zarr.json").write_text("mine")
        os.utime(made, (0, 0))
        command = [sys.executable, "-c", CREATE, str(root)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **clock.env}, check=True)
        assert (made / "zarr.json").read_text() == "mine"
        assert not left.exists()
    clock.set(0)
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
    assert verify(root).ok


def test_what_a_killed_creation_left_goes_with_the_next(tmp_path: Path) -> None:
    root = tmp_path / "run.zarr"
    script = "import os, sys\nfrom pathlib import Path\n"
    script += (
        "from i2am.storage.writing.atomic_directory import atomic_directory\n"
        "with atomic_directory(Path(sys.argv[1])) as made:\n    (made / 'x').write_text('x'); os._exit(9)"
    )
    command = [sys.executable, "-c", script, str(root)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".run.zarr.new"]
    create_run(root, LAYERS, TIMESTEPS, ["a"]).close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]

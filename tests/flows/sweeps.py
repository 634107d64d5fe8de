"""Sweeps in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from i2am.flows.sweep.gpu_lock import FOLDER
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import ROOT
from tests.flows.prefect_api import descendants, wait_for

COUNT = 6
WORKER = "i2am.flows.sweep.worker_main"


def sweep_config(config: Callable[..., Path], **changes: Any) -> Path:
    """The tiny capture with COUNT samples in shards of 2; ``arguments`` are those of ``tiny.build``."""
    arguments = changes.pop("arguments", {})
    gpu = "_gpu" if "gpus" in changes.get("sweep", {}) else ""
    pipeline = {"kind": "factory", "function": f"tests.flows.tiny{gpu}:build", "arguments": arguments}
    if gpu:
        changes["device"] = "cuda"
    sweep = {"workers": 2, "shard": 2, "backoff": 0.1, "patience": 1} | changes.pop("sweep", {})
    settings = {"pipeline": pipeline, "samples": {"scenes": {"count": COUNT}}, "sweep": sweep}
    return config(**(settings | changes))


class Sweep:
    """A sweep that runs."""

    def __init__(self, file: Path, *words: object, env: dict[str, str] | None = None) -> None:
        self.run = Path(words[words.index("--out") + 1] if "--out" in words else file.parent / "tiny.zarr")
        self.gpus = (yaml.safe_load(file.read_text()).get("sweep") or {}).get("gpus") or []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "i2am", "sweep", str(file), "--json", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": "", **(env or {}), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def commits(self) -> list[Path]:
        return sorted(self.run.glob("commits/*.json"))

    def until(self, commits: int) -> None:
        """Wait until so many samples are committed."""

        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return len(self.commits()) >= commits

        wait_for(there)

    def children(self, words: str) -> list[int]:
        return [pid for pid, command in descendants(self.process.pid).items() if words in command]

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: exit status, standard output and error."""
        out, err = self.process.communicate(timeout=240)
        assert "Traceback" not in err
        return self.process.returncode, out, err

    def valid(self, samples: int = COUNT) -> None:
        """So many samples are committed, each undamaged, and nothing else is there."""
        assert len(open_run(self.run).samples) == samples
        assert verify(self.run).ok
        assert not (self.run / ".staging").exists()
        assert not list(self.run.rglob("*.partial"))


@contextmanager
def sweeps() -> Iterator[Callable[..., Sweep]]:
    """Start sweeps that are gone at the end of the block."""
    started: list[Sweep] = []

    def start(*words: Any, **options: Any) -> Sweep:
        started.append(Sweep(*words, **options))
        return started[-1]

    try:
        yield start
    finally:
        for sweep in started:
            sweep.process.kill()
            sweep.process.wait()
            for pipe in (sweep.process.stdout, sweep.process.stderr):
                assert pipe is not None
                pipe.close()
        for gpu in (gpu for sweep in started for gpu in sweep.gpus):  # other tests hold locks of their own
            (FOLDER / f"i2am-gpu-{gpu}.lock").unlink(missing_ok=True)

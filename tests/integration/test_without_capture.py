"""An installation without the extra "capture": its public name says what to install, and all others work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("asked", ["i2am.capture", "from i2am import capture"])
def test_capture_names_its_extra_in_one_line(asked):
    code = f"""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError(f"No module named {{name!r}}", name="torch")

    sys.meta_path.insert(0, Absent())
    import i2am
    i2am.attribution_maps, i2am.open_run, i2am.verify
    try:
        {asked}
    except ImportError as error:
        print(type(error).__name__, "|", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "MissingDependency | i2am.capture needs torch; pip install 'i2am[capture]'\n"

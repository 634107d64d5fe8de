"""Configurations made to hurt: one line each, in bounded time and memory, and nothing of them is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig
from i2am.storage.configuration.bounded_file import read_bounded
from i2am.storage.configuration.yaml_file import MAX_BYTES
from i2am.storage.errors import ConfigError, NotFound
from tests.flows.conftest import Outcome

BASE = "out: a.zarr\npipeline: embedded\nsamples: {scenes: {count: 2}}\n"
HOSTILE = {
    "lists": ("[" * 100_000, "nested too deeply"),
    "mappings": ("{a: " * 30_000, "nested too deeply"),
    "dashes": ("- " * 60_000, "nested too deeply"),
    "questions": ("? " * 60_000, "nested too deeply"),
    "indents": ("".join(" " * depth + "a:\n" for depth in range(490)), "nested too deeply"),
    "many values": ("[" + "a," * 60_000 + "]", "got a list"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(12_000)), "unknown key 'k0'"),
    "object": (
        BASE + "call: !!python/object/apply:os.mkdir [owned]\n",
        "constructor for the tag .*os.mkdir",
    ),
    "module": (BASE + "call: !!python/module:this ''\n", "constructor for the tag"),
    "own tag": ("%TAG ! tag:evil,2026:\n---\n!x {}\n", "constructor for the tag 'tag:evil,2026:x'"),
    "long tag": (BASE + f"call: !{'x' * 100_000} 1\n", "constructor for the tag '!x+"),
    "timestamp": (BASE + "call: !!timestamp x\n", "not valid YAML"),
    "boolean": (BASE + "call: !!bool x\n", "not valid YAML"),
    "merge": (BASE + "call: {<<: {a: 1}, b: 2}\n", "could not determine a constructor .*merge"),
    "value": (BASE + "call: {=: 1}\n", "could not determine a constructor"),
    "huge key": (BASE + f"? {'k' * 90_000}\n: 1\n", r"unknown key 'k+\.\.\."),
    "huge key twice": (BASE + f"? {'k' * 40_000}\n: 1\n" * 2, r"duplicate key 'k+\.\.\."),
    "list as key": (BASE + "? [a]\n: 1\n", "unhashable key"),
    "number as key": (BASE + "1: 2\n", "keys should be strings"),
    "digits": (BASE + f"seed: {'9' * 5000}\n", "Exceeds the limit"),
    "fewer digits": (BASE + f"seed: {'9' * 4000}\n", r"'seed'; expected .*; got 9+\.\.\."),
    "hexadecimal": (BASE + "seed: 0xffffffffffffffffffff\n", "'seed'"),
    "huge float": (BASE + "sweep: {backoff: 1e999}\n", "expected a finite number; got inf"),
    "long float": (BASE + f"sweep: {{backoff: {'1' * 100_000}.}}\n", "expected a finite number; got inf"),
    "not a number": (BASE + "timesteps: [.nan, 1]\n", "expected a finite number; got nan"),
    "many scenes": (BASE.replace("count: 2", "count: 99999999999"), "less than or equal to 1000000"),
    "NUL": ('out: "a\\0b"\n', "a NUL character"),
    "raw NUL": ("out: a\0b\n", "unacceptable character #x0000"),
    "beyond Unicode": (BASE + 'adapter: "\\UFFFFFFFF"\n', "not valid YAML"),
    "escape": (BASE + '"\\e[2J": 1\n', r"unknown key '\\x1b\[2J'"),
    "two documents": (BASE + "---\na: 1\n", "found another document"),
    "comments": ("#\n" * 60_000, "got an empty file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, words = HOSTILE[name]
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert path.stat().st_size <= MAX_BYTES
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        load_capture(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800 + len(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\0a", BASE.encode("utf-16"), b"out: \xc3\x28", b"out: \xed\xa0\x80"]
)
def test_other_encodings(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match="expected UTF-8 text; got other bytes"):
        load_capture(tmp_path / "c.yaml")


def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for; a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    for name, words in {
        "pipe": "expected a file; got a pipe",
        "loop": "expected a file; got Too many levels of symbolic links",
        "zero": "expected a file; got a device",
        ".": "expected a file; got a folder",
        "sparse": f"expected at most {MAX_BYTES} bytes; got more",
        "x" * 5000: "expected a file; got File name too long",
        "a\0b": "expected a file; got embedded null byte",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_capture(tmp_path / name)
    with pytest.raises(NotFound, match="gone does not exist"):
        load_capture(tmp_path / "gone")


def test_a_link_to_a_file_will_do(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/c.yaml").write_text(BASE)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "there/c.yaml")
    assert load_capture(tmp_path / "link.yaml").out == str(tmp_path / "there/a.zarr")


def test_never_more_is_read_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    assert read_bounded(path, "file", 100) == b"x" * 100
    with pytest.raises(ConfigError, match="at most 99 bytes; got more"):
        read_bounded(path, "file", 99)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        read_bounded(tmp_path, "file", 99)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"out": "x" * 5000 + ".zarr"},
        {"out": "loop/a.zarr"},
        {"samples": {"manifest": "loop"}},
        {"samples": {"manifest": "m" * 5000 + ".csv"}},
        {"samples": {"low_resolution": {"folder": "loop"}}},
        {"pipeline": {"kind": "factory", "function": "a." * 5000 + "b:c"}},
    ],
)
def test_paths_that_lead_nowhere_are_one_line(
    i2am: Callable[..., Outcome], config: Callable[..., Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    i2am("capture", config(**changes), "--direct", "--quiet").refused("i2am: ")


def test_the_schema_of_a_configuration_allows_no_infinity() -> None:
    with pytest.raises(ValueError, match="finite"):
        CaptureConfig.model_validate(
            {
                "out": "a",
                "pipeline": "embedded",
                "samples": {"scenes": {"count": 1}},
                "timesteps": [float("inf")],
            }
        )

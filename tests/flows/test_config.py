"""Configuration files: what is read, and what is refused with which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import AnalysisConfig, CaptureConfig
from i2am.flows.config.selections import parse_indices, parse_region, parse_size, selected
from i2am.storage.configuration.yaml_file import MAX_BYTES, load_config, parse_config
from i2am.storage.errors import ConfigError, I2AMError, NotFound

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = "out: a.zarr\npipeline: embedded\nsamples: {scenes: {count: 3}}\n"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("capture-*.yaml")), ids=lambda p: p.stem)
def test_every_capture_example_is_valid(path: Path) -> None:
    config = load_capture(path)
    assert Path(config.out).is_absolute()
    assert config.samples.manifest is None or config.samples.manifest.is_absolute()


def test_there_is_an_example_of_each_kind() -> None:
    kinds = {load_capture(path).pipeline.kind for path in EXAMPLES.glob("capture-*.yaml")}
    assert kinds == {"embedded", "pretrained", "factory"}


def test_the_analysis_example_is_valid() -> None:
    config = load_config(EXAMPLES / "analysis.yaml", AnalysisConfig)
    assert selected(config.steps) == slice(None, None, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "bath_size: 3", r"unknown key 'bath_size'; did you mean 'batch_size'\?$"),
        (GOOD.replace("count", "cuont"), r"unknown key 'samples\.scenes\.cuont'; did you mean 'count'\?$"),
        (GOOD.replace("out:", "ouput:"), r"unknown key 'ouput'; did you mean 'out'\?$"),
        (GOOD + "zzz: 1", r"unknown key 'zzz'; those of the file are adapter, "),
        (
            GOOD.replace("embedded", "{kind: pretrained, location: x, clas: Y}"),
            r"unknown key 'pipeline\.clas'; did you mean 'class'\?$",
        ),
        (
            GOOD.replace("embedded", "embeded"),
            r"'pipeline'; expected one of 'embedded', 'pretrained', 'factory'; got 'embeded'$",
        ),
        (
            GOOD.replace("embedded", "{location: x}"),
            r"missing key 'pipeline\.kind'; add it",
        ),
        (
            GOOD.replace("embedded", "{kind: factory, function: build}"),
            r"'pipeline\.function'; expected .*; got 'build'$",
        ),
        (
            GOOD.replace("count: 3", "count: zero"),
            r"'samples\.scenes\.count'; expected a valid integer.*; got 'zero'$",
        ),
        (
            GOOD.replace("count: 3", "count: 0"),
            r"'samples\.scenes\.count'; expected greater than or equal to 1; got 0$",
        ),
        (GOOD + "steps: {a: 1}", r"'steps'; expected indices such as 3 or 0,4, or a slice"),
        (GOOD + "steps: '0:9:0'", r"'steps'; expected .*step other than 0; got '0:9:0'$"),
        (GOOD + "heads: 1.5", r"'heads'; expected indices"),
        (GOOD + "roles: [un conditional]", r"'roles\.0'; expected .*pattern.*; got 'un conditional'$"),
        (
            GOOD + "inputs: {image: sau-ce}",
            r"'inputs\.image'; expected .*pattern.*; got 'sau-ce'$",
        ),
        (
            GOOD.replace("{scenes: {count: 3}}", "{}"),
            r"'samples'; expected exactly one of scenes, manifest, .* and webdataset; got \{\}$",
        ),
        ("out: x", r"missing key 'pipeline'; add it"),
        ("- a", r"expected keys and values such as 'out: run\.zarr'; got a list"),
        ("", r"expected keys and values .*; got an empty file"),
        ("out: 1\nout: 2", r"not valid YAML in line 2: duplicate key 'out'"),
        ("a: [", r"not valid YAML in line 1"),
        ("[" * 5000, r"not valid YAML"),
        (
            "out: !!python/object/apply:os.system [true]",
            r"not valid YAML in line 1: could not determine a constructor for the tag",
        ),
        ("a: \x00", r"not valid YAML"),
    ],
)
def test_errors_are_one_line_each(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(text, CaptureConfig, "c.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("c.yaml")
    assert len(str(caught.value)) < 500


def test_values_are_read_as_written() -> None:
    text = (
        GOOD + "steps: 1:10\nheads: 0, 3\n"
        "call: {a: 1e-3, b: 2.5, c: -3, d: .5, e: 2026-01-01, f: 010, g: 'no', h: 1.2.3}"
    )
    config = parse_config(text, CaptureConfig, "c.yaml")
    assert config.steps == "1:10"  # YAML 1.1 alone would make it 70
    assert config.heads == [0, 3]
    assert config.call == {
        "a": 0.001, "b": 2.5, "c": -3, "d": 0.5, "e": "2026-01-01", "f": 10, "g": "no", "h": "1.2.3"
    }  # fmt: skip


def test_paths_are_read_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "c.yaml"
    file.write_text(
        "out: runs/a.zarr\nsamples: {manifest: data/m.csv}\n"
        "pipeline: {kind: pretrained, location: model, class: X}\n"
    )
    config = load_capture(file)
    assert config.out == str(tmp_path / "runs" / "a.zarr")
    assert config.samples.manifest == tmp_path / "data" / "m.csv"
    assert config.pipeline.kind == "pretrained"
    assert config.pipeline.location == str(tmp_path / "model")


def test_urls_and_hub_ids_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "out: s3://bucket/a.zarr\nsamples: {manifest: m.csv}\n"
        "pipeline: {kind: pretrained, location: org/model, class: X}\n"
    )
    config = load_capture(file)
    assert config.out == "s3://bucket/a.zarr"
    assert config.pipeline.kind == "pretrained"
    assert config.pipeline.location == "org/model"
    assert load_capture(file, out="memory://b.zarr").out == "memory://b.zarr"
    assert load_capture(file, out="b.zarr").out == str(Path.cwd() / "b.zarr")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.yaml does not exist; correct the path"):
        load_config(tmp_path / "nothing.yaml", CaptureConfig)
    with pytest.raises(ConfigError, match="expected a file; got a folder"):
        load_config(tmp_path, CaptureConfig)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=f"expected at most {MAX_BYTES} bytes"):
        load_config(large, CaptureConfig)
    other = tmp_path / "other.yaml"
    other.write_bytes(os.urandom(64) + b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_config(other, CaptureConfig)


@given(st.text(max_size=200))
def test_no_text_is_more_than_a_config_error(text: str) -> None:
    with pytest.raises(I2AMError) as caught:  # no such text is a whole configuration
        parse_config(text, CaptureConfig, "c.yaml")
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(-50, 50), min_size=1))
def test_a_list_of_indices_survives_the_command_line(numbers: list[int]) -> None:
    assert parse_indices("--steps", ",".join(map(str, numbers))) == numbers


@given(*(st.none() | st.integers(-9, 9) for _ in range(2)), st.none() | st.integers(1, 4))
def test_a_slice_selects_what_python_selects(start: int | None, stop: int | None, step: int | None) -> None:
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    axis = list(range(7))
    index = parse_indices("--steps", text)
    assert isinstance(index, slice)
    assert axis[index] == axis[start:stop:step]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1:2:3:4", "1.5"])
def test_other_selections_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--steps; expected indices"):
        parse_indices("--steps", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,8", (12, 8)),
        ("2, 3,9,12", (2, 3, 9, 12)),
        ("1,2;3,4", [(1, 2), (3, 4)]),
        ("reference_mask", "reference_mask"),
    ],
)
def test_regions(text: str, expected: object) -> None:
    assert parse_region("--at", text) == expected


@pytest.mark.parametrize("text", ["12", "1,2,3", "1,2;3", "a b", "", "1;2"])
def test_other_regions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--at; expected row,column such as 12,8"):
        parse_region("--at", text)


def test_sizes() -> None:
    assert parse_size("--size", "64x48") == (64, 48)
    assert parse_size("--size", "64") == (64, 64)
    for text in ("0", "64x", "axb", "-3", "64x0"):
        with pytest.raises(ConfigError, match="--size; expected ROWSxCOLUMNS"):
            parse_size("--size", text)

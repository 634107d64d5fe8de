"""Pruned copies: what is kept is the same to the bit, rounding is bounded, interruptions are taken up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from i2am.storage.errors import AlreadyExists, InputError, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run
from i2am.storage.tools.prune import MANTISSA, prune, round_bits
from i2am.storage.tools.verify import verify
from i2am.storage.writing.create import create_run

SAMPLES = ("a", "b", "c")


@pytest.fixture
def source(tmp_path: Path) -> Run:
    rng = np.random.default_rng(3)
    specs = [
        LayerSpec("factors", 4, 8, (4, 4), (3, 3), ref_prefix=1, dtype="float16", scale=0.3, lse=True),
        LayerSpec(
            "moving", 2, 8, (8, 8), (3, 3), representation="factors", static_key=False, dtype="float32"
        ),
        LayerSpec("scores", 4, 8, (8, 8), (1, 2), representation="scores", dtype="bfloat16"),
    ]
    path = tmp_path / "source.zarr"
    with create_run(
        path, specs, [9, 7, 5, 3], SAMPLES, {"model": "m"}, image_shapes={"mask": (8, 8, 1)}
    ) as run:
        for sample in SAMPLES:
            with run.sample(sample) as sink:
                sink.annotate(seed=5)
                sink.put_image("mask", rng.integers(0, 255, (8, 8, 1), dtype=np.uint8))
                for spec in specs:
                    for step in range(4):
                        sink.put(spec.name, step, **given_arrays(spec, step, rng))
    return open_run(path)


def given_arrays(spec: LayerSpec, step: int, rng: np.random.Generator) -> dict[str, Any]:
    def draw(*shape: int) -> np.ndarray[Any, Any]:
        drawn = rng.normal(size=shape).astype("float32" if spec.dtype == "bfloat16" else spec.dtype)
        return round_bits(drawn, 7) if spec.dtype == "bfloat16" else drawn

    if spec.representation == "scores":
        return {"scores": draw(spec.heads, spec.gen, spec.ref)}
    made = {"query": draw(spec.heads, spec.gen, spec.head_dim)}
    if step == 0 or not spec.static_key:
        made["key"] = draw(spec.heads, spec.ref, spec.head_dim)
    if spec.lse:
        made["lse"] = draw(spec.heads, spec.gen).astype(np.float32)
    return made


def test_what_is_kept_is_the_same_to_the_bit(source: Run, tmp_path: Path) -> None:
    made = prune(
        source, tmp_path / "p.zarr", samples=["c", "a"], layers=["f*", "scores"], steps=[3, 1], heads=[2, 0]
    )
    assert verify(tmp_path / "p.zarr").ok
    assert made.samples == ("a", "c")
    assert (tuple(made.layers), made.timesteps) == (("factors", "scores"), (3, 7))
    assert made.attrs["model"] == "m"
    for sample in made.samples:
        for layer in made.layers:
            old = np.asarray(source.read(layer, sample, [3, 1], [2, 0]).logits())
            np.testing.assert_array_equal(np.asarray(made.read(layer, sample).logits()), old)
        np.testing.assert_array_equal(made.image("mask", sample), source.image("mask", sample))
        assert made.record(sample)["annotations"] == {"seed": 5}
    at = [source.samples.index(s) for s in made.samples]
    old = np.asarray(source.lse("factors"))[at][:, [3, 1]][:, :, [2, 0]]
    np.testing.assert_array_equal(np.asarray(made.lse("factors")), old)


def test_everything_is_kept_by_default(source: Run, tmp_path: Path) -> None:
    made = prune(source, tmp_path / "p.zarr")
    for layer in source.layers:
        np.testing.assert_array_equal(np.asarray(made.scores(layer)), np.asarray(source.scores(layer)))


def test_rounding_makes_it_smaller(source: Run, tmp_path: Path) -> None:
    made = prune(source, tmp_path / "p.zarr", bits=3)
    old, new = source.read("moving", "a"), made.read("moving", "a")
    assert old.query is not None
    assert new.query is not None
    np.testing.assert_array_equal(new.query, round_bits(old.query, 3))
    assert not np.array_equal(new.query, old.query)
    size = [sum(f["bytes"] for f in run.record("a")["files"].values()) for run in (source, made)]
    assert size[1] < 0.8 * size[0]


def test_an_interrupted_pruning_goes_on(source: Run, tmp_path: Path) -> None:
    def interrupt(sample: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "p.zarr", on_sample=interrupt)
    assert open_run(tmp_path / "p.zarr").samples == ("a",)
    told: list[str] = []
    assert prune(source, tmp_path / "p.zarr", on_sample=told.append).samples == SAMPLES
    assert told == ["b", "c"]
    with pytest.raises(AlreadyExists, match="another run"):
        prune(source, tmp_path / "p.zarr", bits=4)
    with pytest.raises(AlreadyExists, match="another run"):
        prune(source, source.path)


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        ({"layers": ["nope*"]}, UnknownName),
        ({"samples": ["z"]}, UnknownName),
        ({"steps": [4]}, InputError),
        ({"heads": [3]}, InputError),  # "moving" has two
        ({"heads": slice(9, None)}, InputError),
        ({"bits": 8}, InputError),  # bfloat16 has seven
        ({"bits": 0}, InputError),
    ],
)
def test_what_fits_nothing_is_refused_before_anything_is_written(
    source: Run, tmp_path: Path, choice: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        prune(source, tmp_path / "p.zarr", **choice)
    assert not (tmp_path / "p.zarr").exists()


@given(
    values=st.sampled_from([np.float16, np.float32]).flatmap(lambda dtype: arrays(dtype, (7,))),
    bits=st.integers(1, 23),
)
def test_rounding_is_bounded_and_keeps_what_is_no_number(values: Any, bits: int) -> None:
    out = round_bits(values, bits)
    assert out.dtype == values.dtype
    finite = np.isfinite(values)
    np.testing.assert_array_equal(out[~finite], values[~finite])
    assert np.isfinite(out[finite]).all()
    smallest = np.finfo(values.dtype).smallest_normal
    normal = finite & (np.abs(values) >= smallest)
    new, old = out[normal].astype(np.float64), values[normal].astype(np.float64)
    assert (np.abs(new - old) <= 2.0 ** -(bits + 1) * np.abs(old)).all()
    if bits >= MANTISSA[values.dtype.name]:
        np.testing.assert_array_equal(out, values)
    np.testing.assert_array_equal(round_bits(out, bits), out)

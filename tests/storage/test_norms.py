"""Norms of values and contributions in the store: written, read, planned, verified, pruned and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import i2am
from i2am.storage.errors import DamagedSample, InputError, NoAnswer, ShapeMismatch
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_any
from i2am.storage.tools.prune import prune
from tests.storage.synthetic import IMAGES, factors, image, lse, rng
from tests.storage.test_plan import measured

STATIC = LayerSpec("s", 4, 8, (4, 6), (3, 4), 1, representation="factors", value_norm=True, contribution=True)
MOVING = LayerSpec(
    "m", 2, 4, (2, 3), (2, 2), dtype="float32", static_key=False, lse=True, value_norm=True, contribution=True
)
HALF = LayerSpec("h", 3, 16, (3, 2), (0, 0), 1, representation="scores", value_norm=True)
LAYERS = (STATIC, MOVING, HALF, LayerSpec("none", 1, 4, (2, 2), (2, 2)))
STEPS = 5


def norms(spec: LayerSpec, sample: str, step: int) -> dict[str, np.ndarray]:
    found = {}
    if spec.value_norm and (step == 0 or not spec.static_key):
        found["value_norm"] = rng("value", spec.name, sample, step).random((spec.heads, spec.ref), np.float32)
    if spec.contribution:
        found["contribution"] = rng("added", spec.name, sample, step).random(spec.gen, np.float32)
    return found


def fill(sink: i2am.Sink, layers: tuple[LayerSpec, ...] = LAYERS) -> None:
    for step in range(STEPS):
        for spec in layers:
            query, key = factors(spec, sink.sample, step)
            rows = lse(spec, sink.sample, step) if spec.lse else None
            sink.put(spec.name, step, query=query, key=key, lse=rows)
            if given := norms(spec, sink.sample, step):  # they may come later than the attention
                sink.put(spec.name, step, **given)
    sink.put_image("mask", image("mask", sink.sample, IMAGES["mask"]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "r.zarr"
    with i2am.create_run(
        place, LAYERS, range(STEPS), ["a", "b"], image_shapes={"mask": IMAGES["mask"]}
    ) as run:
        for sample in run.samples:
            with run.sample(sample) as sink:
                fill(sink)
    return place


def check(run: i2am.Run, spec: LayerSpec, steps: tuple[int, ...], heads: tuple[int, ...]) -> None:
    for i, sample in enumerate(run.samples):
        for row, step in enumerate(steps):
            want = norms(spec, sample, 0 if spec.static_key else step)["value_norm"][list(heads)]
            got = run.value_norm(spec.name).compute()
            assert got.shape[1] == (1 if spec.static_key else len(steps))
            assert np.array_equal(got[i, 0 if spec.static_key else row], want)
            if spec.contribution:
                added = run.contribution(spec.name).compute()[i, row]
                assert added.dtype == np.float32
                assert np.array_equal(added, norms(spec, sample, step)["contribution"])


def test_they_read_back_to_the_bit(path: Path) -> None:
    run = i2am.open_run(path)
    for spec in LAYERS[:3]:
        check(run, spec, tuple(range(STEPS)), tuple(range(spec.heads)))
    assert i2am.verify(path).ok
    with pytest.raises(NoAnswer, match="'none' has no value_norm"):
        run.value_norm("none")
    with pytest.raises(NoAnswer, match="'h' has no contribution"):
        run.contribution("h")
    opened = xr.open_zarr(path, group="attention/s", consolidated=False)
    assert opened["value_norm"].dims == ("sample", "once", "head", "ref")
    assert opened["contribution"].dims == ("sample", "step", "gen")


def test_several_runs_have_them_together(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "o.zarr"
    with i2am.create_run(other, LAYERS, range(STEPS), ["c"]) as run, run.sample("c") as sink:
        run.add_image("mask", IMAGES["mask"])
        fill(sink)
    both = open_any([path, other])
    check(both, STATIC, tuple(range(STEPS)), tuple(range(4)))
    without = tmp_path / "w.zarr"
    plain = [replace(spec, value_norm=False, contribution=False) for spec in LAYERS]
    with i2am.create_run(without, plain, range(STEPS), ["d"]):
        pass
    with pytest.raises(InputError, match="value_norm True and False"):
        open_any([path, without])


def test_what_is_planned_is_what_is_written(path: Path) -> None:
    predicted = i2am.plan(LAYERS, range(STEPS), ["a", "b"], {"mask": IMAGES["mask"]})
    total, files = measured(path)
    assert predicted.total_files == files
    assert predicted.total_bytes == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize("kind", ["value_norm", "contribution"])
def test_damage_is_found(path: Path, kind: str) -> None:
    file = next((path / "attention" / "m" / kind).glob("c.1.*"))
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    assert [problem.layer for problem in i2am.verify(path).problems] == ["m"]
    with pytest.raises(DamagedSample):
        getattr(i2am.open_run(path), kind)("m")[1].compute()


def test_a_pruned_run_has_those_of_its_heads_and_steps(path: Path, tmp_path: Path) -> None:
    made = prune(path, tmp_path / "p.zarr", layers=["s", "m"], steps=[3, 1], heads=[1, 0], bits=4)
    check(made, STATIC, (3, 1), (1, 0))
    check(made, MOVING, (3, 1), (1, 0))
    long = tmp_path / "long.zarr"  # the steps of a layer come in several parts
    big = replace(STATIC, gen_grid=(64, 64), head_dim=64)
    with i2am.create_run(long, [big], range(STEPS), ["a"]) as run, run.sample("a") as sink:
        run.add_image("mask", IMAGES["mask"])
        fill(sink, (big,))
    assert i2am.open_run(long).step_group("s") < STEPS
    check(prune(long, tmp_path / "q.zarr"), big, tuple(range(STEPS)), tuple(range(4)))


def test_an_export_of_the_marginals_alone_keeps_them(path: Path, tmp_path: Path) -> None:
    from i2am.analysis.study.export_run import export

    made = export(path, tmp_path / "e.zarr", marginals=True)
    check(made, STATIC, tuple(range(STEPS)), tuple(range(4)))
    assert i2am.verify(tmp_path / "e.zarr").ok
    with pytest.raises(NoAnswer):
        made.scores("s")
    next((tmp_path / "e.zarr" / "attention" / "s" / "value_norm").glob("c.0.*")).unlink()
    assert not i2am.verify(tmp_path / "e.zarr").ok
    with pytest.raises(DamagedSample):
        i2am.open_run(tmp_path / "e.zarr").check("a")


def test_what_does_not_fit_the_layer_is_refused(tmp_path: Path) -> None:
    with (
        i2am.create_run(tmp_path / "r.zarr", LAYERS, range(STEPS), ["a"]) as run,
        pytest.raises(InputError, match="contribution of step 4"),
        run.sample("a") as sink,
    ):
        with pytest.raises(InputError, match="declare it with value_norm=True"):
            sink.put("none", 0, value_norm=np.ones((1, 4), np.float32))
        with pytest.raises(ShapeMismatch, match="contribution"):
            sink.put("s", 0, contribution=np.ones((4, 24), np.float32))
        sink.put("s", 2, value_norm=norms(STATIC, "a", 0)["value_norm"])
        with pytest.raises(InputError, match="given before"):
            sink.put("s", 3, value_norm=norms(STATIC, "a", 0)["value_norm"])
        for _ in range(2):
            sink.put("s", 4, contribution=norms(STATIC, "a", 4)["contribution"])
    plain = [replace(spec, value_norm=False) for spec in LAYERS]
    with pytest.raises(InputError, match="value_norm"):
        i2am.resume_run(tmp_path / "r.zarr", plain)


def test_descriptions_without_them_are_as_they_always_were() -> None:
    assert "value_norm" not in LAYERS[3].to_json()
    assert LayerSpec.from_json(STATIC.to_json()) == STATIC
    with pytest.raises(InputError, match="value_norm"):
        replace(STATIC, value_norm=1)

"""A study that would come out the same is left as it is; one that has grown computes what is new."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import i2am.analysis.marginals.store
import i2am.analysis.study.up_to_date
from i2am.analysis.events import StageStarted
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.analysis.options import StudyOptions
from i2am.analysis.study.study import analyze
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run, resume_run
from tests.analysis.builders import build, factors, layer

LAYERS = [layer("a", gen=(6, 4), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3))]
OPTIONS = StudyOptions(figures=0, details=0)
STEPS = 3


@pytest.fixture
def run(tmp_path):
    return build(tmp_path / "run.zarr", LAYERS, steps=STEPS, samples=("one", "two"))[0]


@pytest.fixture
def computed(monkeypatch):
    """(sample, layer) of every pass over stored attention that makes marginals."""
    passes = []

    def count(run, spec, sample, regions=None):
        passes.append((sample, spec.name))
        return compute_marginals(run, spec, sample, regions)

    monkeypatch.setattr(i2am.analysis.marginals.store, "compute_marginals", count)
    return passes


def everything(folder):
    """Time of change and content of every file."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_nothing_changed_nothing_is_done(run, tmp_path, computed):
    out = tmp_path / "out"
    first = analyze(run, out, OPTIONS)
    assert (first.up_to_date, first.new) == (False, ("one", "two"))
    assert len(computed) == 4
    before, events = everything(out), []
    second = analyze(open_run(run.path), out, OPTIONS, on_event=events.append)
    assert (second.up_to_date, second.new, second.samples) == (True, (), ("one", "two"))
    assert everything(out) == before
    assert not [event for event in events if isinstance(event, StageStarted)]
    assert {name: table.equals(first.tables[name]) for name, table in second.tables.items()} == dict.fromkeys(
        first.tables, True
    )
    assert len(computed) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"options": replace(OPTIONS, penalty=2.0)},
        {"options": replace(OPTIONS, samples=("one",))},
        {"options": replace(OPTIONS, aggregations=("entropy",))},
        {"again": True},
    ],
    ids=["option", "samples", "aggregation", "again"],
)
def test_what_changes_the_study_makes_it_anew(run, tmp_path, change):
    analyze(run, tmp_path / "out", OPTIONS)
    settings = {"options": OPTIONS} | change
    again = analyze(run, tmp_path / "out", **settings)
    assert (again.up_to_date, again.new) == (False, ())
    again = settings.pop("again", None)
    assert analyze(run, tmp_path / "out", **settings).up_to_date


def test_where_the_marginals_are_kept_changes_nothing(run, tmp_path):
    analyze(run, tmp_path / "out", OPTIONS)
    assert analyze(run, tmp_path / "out", replace(OPTIONS, store=str(tmp_path / "else.zarr"))).up_to_date


@pytest.mark.parametrize("name", ["report/index.html", "tables/unified.parquet"])
def test_a_study_that_lost_something_is_made_anew(run, tmp_path, name):
    analyze(run, tmp_path / "out", OPTIONS)
    (tmp_path / "out" / name).unlink()
    assert not analyze(run, tmp_path / "out", OPTIONS).up_to_date
    assert (tmp_path / "out" / name).exists()


def test_another_version_and_another_run_make_it_anew(run, tmp_path, monkeypatch):
    analyze(run, tmp_path / "out", OPTIONS)
    other = build(tmp_path / "other.zarr", LAYERS, steps=STEPS, samples=("one", "two"))[0]
    assert analyze(other, tmp_path / "out", OPTIONS).new == ("one", "two")
    monkeypatch.setattr(i2am.analysis.study.up_to_date, "KERNEL_VERSION", -1)
    assert not analyze(other, tmp_path / "out", OPTIONS).up_to_date


def test_a_file_that_is_gone_from_the_run_is_noticed(run, tmp_path):
    analyze(run, tmp_path / "out", OPTIONS)
    next(path for path in (tmp_path / "run.zarr" / "attention").rglob("c.1.*") if path.is_file()).unlink()
    for _ in range(2):  # a study that left a sample out is never the last word
        result = analyze(run.path, tmp_path / "out", OPTIONS)
        assert not result.up_to_date
        assert [refusal.sample for refusal in result.refusals] == ["two"]


def test_a_note_that_cannot_be_read_is_no_reason_to_stop(run, tmp_path):
    analyze(run, tmp_path / "out", OPTIONS)
    for text in ("", "[]", '{"inputs": 3}'):
        (tmp_path / "out" / "study.json").write_text(text)
        assert not analyze(run, tmp_path / "out", OPTIONS).up_to_date
    assert json.loads((tmp_path / "out" / "study.json").read_text())["inputs"]["runs"] == [run.run_id]


def test_a_run_that_has_grown_computes_the_new_samples_alone(tmp_path, computed):
    names, rng = ["one", "two", "three", "four"], np.random.default_rng(3)

    def commit(writer, sample):
        with writer.sample(sample) as sink:
            for spec in LAYERS:
                query, key = factors(spec, STEPS, rng)
                for step in range(STEPS):
                    sink.put(spec.name, step, query=query[step], key=key[0])

    path, timesteps = tmp_path / "run.zarr", [9, 5, 1]
    with create_run(path, LAYERS, timesteps, names) as writer:
        commit(writer, "one")
        commit(writer, "three")
    assert analyze(path, tmp_path / "out", OPTIONS).new == ("one", "three")
    assert sorted(computed) == [("one", "a"), ("one", "b"), ("three", "a"), ("three", "b")]
    computed.clear()
    with resume_run(path) as writer:
        commit(writer, "two")
    grown = analyze(path, tmp_path / "out", OPTIONS)
    assert (grown.samples, grown.new) == (("one", "two", "three"), ("two",))
    assert sorted(computed) == [("two", "a"), ("two", "b")]
    whole = analyze(path, tmp_path / "anew", replace(OPTIONS, store=False))
    for name, table in whole.tables.items():
        assert table.equals(grown.tables[name]), name


@pytest.mark.parametrize("name", ["maps.zarr/g2r", "report/[!i]*.html", "tables/unified.parquet"])
def test_a_study_that_lost_a_part_is_made_anew(run, tmp_path, name):
    out = tmp_path / "out"
    analyze(run, out, OPTIONS)
    assert analyze(run, out, OPTIONS).up_to_date
    victim = sorted(out.glob(name))[0]
    whole = sorted(path.relative_to(out) for path in out.rglob("*"))
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    assert not analyze(run, out, OPTIONS).up_to_date
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == whole


def test_a_damaged_table_of_a_study_is_made_anew(run, tmp_path):
    table = tmp_path / "out" / "tables" / "unified.parquet"
    analyze(run, tmp_path / "out", OPTIONS)
    before = table.read_bytes()
    table.write_bytes(b"x" * len(before))
    assert not analyze(run, tmp_path / "out", OPTIONS).up_to_date
    assert pl.read_parquet(table).height

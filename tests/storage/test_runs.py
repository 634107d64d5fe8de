"""Several runs read as one: opening, patterns, labels, and what cannot be put together."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import i2am
from i2am.storage.errors import DamagedSample, EmptyRun, InputError, NotFound, ShapeMismatch, UnknownName
from i2am.storage.reading.labels import run_labels
from i2am.storage.reading.open import open_any, open_runs
from i2am.storage.reading.run_collection import Runs, home_of
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, image, write_run


@pytest.fixture
def shards(tmp_path):
    """Three runs of one model, with the samples a b, c, d e."""
    for name, samples in (("s-0", ["a", "b"]), ("s-1", ["c"]), ("s-2", ["d", "e"])):
        write_run(tmp_path / f"{name}.zarr", samples)
    return tmp_path


def test_samples_of_all_members_are_read_as_those_of_one_run(shards):
    runs = open_runs(shards / "s-*.zarr")
    assert runs.samples == runs.declared == ("a", "b", "c", "d", "e")
    assert runs.timesteps == TIMESTEPS
    assert list(runs.layers) == [spec.name for spec in LAYERS]
    check_values(runs)
    whole = write_run(shards / "whole.zarr", ["a", "b", "c", "d", "e"])
    for spec in LAYERS:
        np.testing.assert_array_equal(runs.scores(spec.name), whole.scores(spec.name))
    np.testing.assert_array_equal(runs.lse("mid.attn2"), whole.lse("mid.attn2"))
    assert runs.images == whole.images
    np.testing.assert_array_equal(runs.image("mask", "d"), image("mask", "d", IMAGES["mask"]))
    assert runs.record("d")["sample"] == "d"
    assert runs.fingerprint("d") == runs.members[2].fingerprint("d")
    runs.check("e")
    block, other = (run.read("mid.attn2", "c", steps=[1], heads=[0]) for run in (runs, whole))
    np.testing.assert_array_equal(block.query, other.query)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([0, 1, 2]), many=st.integers(1, 3))
def test_members_come_in_the_order_in_which_they_are_named(shards, order, many):
    names = [f"s-{number}.zarr" for number in order[:many]]
    runs = open_runs([shards / name for name in names])
    held = {"s-0.zarr": "ab", "s-1.zarr": "c", "s-2.zarr": "de"}
    assert "".join(runs.samples) == "".join(held[name] for name in names)
    assert [home_of(runs, sample).name for sample in runs.samples] == [
        name for name in names for _ in held[name]
    ]


def test_what_names_runs(shards):
    runs = open_runs([i2am.open_run(shards / "s-1.zarr"), str(shards / "s-[02].zarr")])
    assert runs.samples == ("c", "a", "b", "d", "e")
    assert open_runs([runs]).samples == runs.samples
    assert open_any(runs) is runs
    assert isinstance(open_any(shards / "s-0.zarr"), i2am.Run)
    assert isinstance(open_any([str(shards / "s-0.zarr")]), i2am.Run)
    assert isinstance(open_any(shards / "s-?.zarr"), Runs)
    assert (runs.name, open_runs(shards / "s-0.zarr").path) == (
        "s-1.zarr, s-0.zarr, s-2.zarr",
        str(shards / "s-0.zarr"),
    )


def test_patterns(shards, monkeypatch):
    (shards / "s-3.marginals.zarr").mkdir()
    mark = '{"zarr_format": 3, "node_type": "group", "attributes": {"i2am_marginals": {"run_id": "x"}}}'
    (shards / "s-3.marginals.zarr" / "zarr.json").write_text(mark)
    (shards / ".s-hidden.zarr").mkdir()
    assert len(open_runs(shards / "*.zarr").members) == 3
    assert len(open_runs(shards.parent / f"{shards.name[:-1]}?" / "*-[12].zarr").members) == 2
    monkeypatch.chdir(shards)
    assert open_runs("s-*.zarr").samples == ("a", "b", "c", "d", "e")
    write_run(shards / "odd[1].zarr", ["z"])
    assert open_any("odd[1].zarr").samples == ("z",)  # a path that exists is no pattern
    for pattern in ("t-*.zarr", "nowhere/*.zarr", "s-0.zarr/*.nothing"):
        with pytest.raises(NotFound, match="no run fits"):
            open_runs(pattern)


def test_runs_reached_by_links_fit_patterns(shards, tmp_path_factory):
    """As a path that is a link opens; inside a run nothing may be one."""
    links = tmp_path_factory.mktemp("links")
    (links / "one.zarr").symlink_to(shards / "s-0.zarr")
    (links / "folder").symlink_to(shards)
    assert open_runs(links / "*.zarr").samples == ("a", "b")
    assert open_runs(links / "f*" / "s-?.zarr").samples == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(("harm", "error"), [("root", i2am.DamagedRun), ("foreign", i2am.NotARun)])
def test_what_a_pattern_fits_and_is_no_sound_run_is_never_passed_over(shards, harm, error):
    root = shards / "s-1.zarr" / "zarr.json"
    if harm == "root":
        root.write_text(root.read_text().replace('"format": 1', '"format": 0'))
    else:
        (shards / "s-9.zarr").mkdir()
        (shards / "s-9.zarr" / "zarr.json").write_text('{"zarr_format": 3, "attributes": {"other": 1}}')
    with pytest.raises(error, match=r"s-[19]\.zarr"):
        open_runs(shards / "*.zarr")


def test_patterns_on_other_file_systems():
    for number, sample in enumerate("ab"):
        write_run(f"memory://bucket/sweep-{number}/run.zarr", [sample])
    runs = open_runs("memory://bucket/sweep-*/run.zarr")
    assert runs.samples == ("a", "b")
    check_values(runs)
    with pytest.raises(NotFound, match="no run fits 'memory://bucket/other"):
        open_runs("memory://bucket/other*/run.zarr")


def test_it_pickles_without_what_can_be_read_again(shards):
    runs = open_runs(shards / "*.zarr")
    for sample in runs.samples:
        runs.fingerprint(sample)
    data = pickle.dumps(runs)
    assert len(data) < 1.2 * sum(len(pickle.dumps(member)) for member in runs.members)
    again = pickle.loads(data)
    assert (again.samples, again.run_id) == (runs.samples, runs.run_id)
    check_values(again)


def test_one_id_in_two_runs_is_refused_until_they_are_labelled(shards):
    (shards / "more").mkdir()
    write_run(shards / "more" / "s-1.zarr", ["x", "c"])
    both = [shards / "s-1.zarr", shards / "more" / "s-1.zarr"]
    with pytest.raises(InputError, match=r"sample 'c' is in two runs.*more/s-1.zarr.*label=True, or --label"):
        open_runs(both)
    runs = open_runs(both, label=True)
    folder = shards.name
    assert runs.samples == (f"{folder}/s-1/c", "more/s-1/x", "more/s-1/c")
    np.testing.assert_array_equal(runs.image("mask", "more/s-1/x"), image("mask", "x", IMAGES["mask"]))
    assert runs.record("more/s-1/c")["sample"] == "c"
    with pytest.raises(UnknownName, match="unknown sample 'c'"):
        runs.image("mask", "c")
    again = pickle.loads(pickle.dumps(runs))
    np.testing.assert_array_equal(again.scores("up.0.attn2"), runs.scores("up.0.attn2"))
    with pytest.raises(InputError, match="in two runs"):
        open_runs([both[0], both[0]], label=True)


def test_damage_is_told_in_labelled_names(shards):
    record = shards / "s-0.zarr" / "commits" / "a.json"
    record.write_text(record.read_text().replace('"sample"', '"simple"'))
    runs = open_runs(shards / "s-0.zarr", label=True)
    with pytest.raises(DamagedSample, match="sample 's-0/a' is damaged") as caught:
        runs.check("s-0/a")
    assert caught.value.sample == "s-0/a"


@given(st.lists(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3), min_size=1, max_size=4))
def test_labels_tell_paths_apart(parts):
    paths = ["/".join(part) + ".zarr" for part in parts]
    found = run_labels(paths)
    for one, path in zip(found, paths, strict=True):
        assert path.removesuffix(".zarr").endswith(one)
        for other, way in zip(found, paths, strict=True):
            assert (one == other) == (path == way)


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({"heads": 3}, 5, r"layer 'down.0.attn2': heads 4 and 3"),
        ({"name": "other"}, 5, r"layers 'down.0.attn2' and 'other'"),
        ({"ref_prefix": 2}, 5, r"ref_prefix 1 and 2"),
        ({"ref_grid": (0, 0)}, 5, r"reference grids \(3, 4\) and \(0, 0\)"),
        ({"role": "uncond"}, 5, r"role cond and uncond"),
        ({}, 4, r"5 and 4 steps"),
    ],
)
def test_runs_of_different_models_are_refused_by_name(tmp_path, changes, steps, words):
    write_run(tmp_path / "one.zarr", ["a"])
    other = [replace(LAYERS[0], **changes), *LAYERS[1:]]
    write_run(tmp_path / "two.zarr", ["b"], layers=other, timesteps=TIMESTEPS[:steps])
    with pytest.raises(InputError, match=rf"one\.zarr and .*two\.zarr cannot be read as one.*{words}"):
        open_runs(tmp_path / "*.zarr")


def test_grids_dtypes_and_storage_may_differ_but_then_scores_stay_apart(tmp_path):
    write_run(tmp_path / "one.zarr", ["a"])
    other = [
        replace(LAYERS[0], dtype="float32", representation="scores"),
        replace(LAYERS[1], gen_grid=(4, 6)),
        LAYERS[2],
    ]
    write_run(tmp_path / "two.zarr", ["b"], layers=other, timesteps=[9, 8, 7, 6, 21])
    runs = open_runs(tmp_path / "*.zarr")
    assert runs.scores(LAYERS[0].name).shape == (2, 5, 4, 24, 13)
    with pytest.raises(ShapeMismatch, match=r"2, 3 by 2, 2 in .*one.zarr and 4, 6 by 2, 2 in .*two.zarr"):
        runs.scores("mid.attn2")
    np.testing.assert_array_equal(runs.timesteps, [np.nan] * 4 + [21])


def test_no_runs_at_all():
    with pytest.raises(EmptyRun, match="no runs"):
        open_runs([])

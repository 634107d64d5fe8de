"""Predicted against measured: bytes, files, memory."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest

import i2am
from i2am.storage.errors import InputError, StorageFull
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.human_bytes import human_bytes
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, fill, write_run


def measured(path):
    sizes = [os.path.getsize(os.path.join(d, f)) for d, _, names in os.walk(path) for f in names]
    return sum(sizes), len(sizes)


MEDIUM = [
    LayerSpec("a", 8, 40, (16, 12), (16, 12), 1, dtype="float16"),
    LayerSpec("b", 4, 32, (16, 16), (8, 8), representation="scores", dtype="float32", static_key=False),
    LayerSpec("c", 8, 40, (16, 16), (0, 0), 1, lse=True),
]


@pytest.mark.parametrize(("layers", "steps"), [(LAYERS, 5), (MEDIUM[:1], 13), (MEDIUM, 7)])
def test_without_compression_the_prediction_is_all_but_exact(tmp_path, layers, steps):
    layers = [
        spec if spec.dtype != "bfloat16" else LayerSpec(spec.name, 2, 4, (2, 3), (2, 2), lse=True)
        for spec in layers
    ]
    timesteps = list(range(steps))
    attrs = {"model": "x" * 1000}
    predicted = i2am.plan(layers, timesteps, ["a", "b", "c"], IMAGES, attrs=attrs)
    write_run(tmp_path / "r.zarr", ["a", "b", "c"], layers, timesteps, attrs=attrs)
    total, files = measured(tmp_path / "r.zarr")
    assert predicted.total_files == files
    assert predicted.total_bytes == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize("codec", [None, "blosc-lz4-shuffle", "blosc-zstd-bitshuffle"])
def test_compressed_arrays_are_predicted_within_five_percent(tmp_path, codec):
    layers = [
        LayerSpec("wide", 8, 40, (16, 16), (12, 12), dtype="bfloat16", static_key=False),
        LayerSpec("half", 8, 40, (16, 16), (12, 12), dtype="float16", representation="factors"),
    ]
    predicted = i2am.plan(layers, range(8), ["a", "b"], codec=codec)
    write_run(tmp_path / "r.zarr", ["a", "b"], layers, range(8), images=None, codec=codec)
    total, files = measured(tmp_path / "r.zarr")
    assert predicted.total_files == files
    assert predicted.total_bytes == pytest.approx(total, rel=0.05)


def test_memory_stays_below_what_was_predicted(tmp_path, monkeypatch):
    layers = [
        LayerSpec(f"l{i}", 8, 40, (16, 16), (16, 16), static_key=False, representation="factors")
        for i in range(3)
    ]
    limit = 4 << 20
    predicted = i2am.plan(layers, range(40), ["a"], queue_bytes=limit, threads=2)
    monkeypatch.setattr("i2am.storage.format.shard.os.fsync", lambda fd: None)
    with i2am.create_run(
        tmp_path / "r.zarr", layers, range(40), ["a"], queue_bytes=limit, threads=2
    ) as writer:
        with writer.sample("a") as sink:
            tracemalloc.start()
            for step in range(40):
                for spec in layers:
                    query = np.full((8, 256, 40), step, np.float16)
                    sink.put(spec.name, step, query=query, key=query.copy())
                    del query
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert limit / 2 < peak <= predicted.peak_memory
    assert predicted.memory(3) > predicted.memory(1) == predicted.peak_memory


def test_what_does_not_fit_is_refused_with_both_figures(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10_000_000, "total": 1 << 40})
    monkeypatch.setattr("i2am.storage.writing.plan.shutil.disk_usage", lambda path: usage)
    big = [LayerSpec("l", 8, 40, (64, 64), (64, 64))]
    message = r"does not fit its disk; expected at least 134 MB free; got 10 MB free; choose fewer samples"
    with pytest.raises(StorageFull, match=message):
        i2am.create_run(tmp_path / "r.zarr", big, range(50), ["a"])
    with pytest.raises(StorageFull, match=message):
        i2am.plan(big, range(50), ["a"], path=tmp_path / "deep/er/r.zarr")
    assert list(tmp_path.iterdir()) == []
    i2am.plan(big, range(50), ["a"], path="memory://somewhere/r.zarr")


def test_resuming_needs_room_for_what_is_missing_only(tmp_path, monkeypatch):
    with (
        i2am.create_run(tmp_path / "r.zarr", MEDIUM, TIMESTEPS, ["a", "b"]) as writer,
        writer.sample("a") as sink,
    ):
        fill(sink, MEDIUM, range(5))
    one = i2am.plan(MEDIUM, TIMESTEPS, ["a", "b"]).sample_bytes
    usage = type("usage", (), {"free": int(one * 1.2), "total": 1 << 40})
    monkeypatch.setattr("i2am.storage.writing.plan.shutil.disk_usage", lambda path: usage)
    i2am.resume_run(tmp_path / "r.zarr").close()
    usage.free = int(one * 0.8)
    with pytest.raises(StorageFull):
        i2am.resume_run(tmp_path / "r.zarr")


def test_rows_say_what_each_layer_costs():
    predicted = i2am.plan(MEDIUM, range(10), ["a", "b"], IMAGES)
    rows = {row.name: row for row in predicted.layers}
    assert (rows["a"].representation, rows["b"].representation, rows["c"].representation) == (
        "factors",
        "scores",
        "scores",
    )
    assert rows["a"].score_bytes == 8 * 192 * 193 * 10 * 2
    assert (rows["a"].sample_files, rows["b"].sample_files, rows["c"].sample_files) == (2, 1, 2)
    assert predicted.sample_files == 5 + 2 + 1
    assert predicted.total_bytes == predicted.metadata_bytes + 2 * predicted.sample_bytes


def test_a_plan_refuses_what_a_run_would():
    with pytest.raises(InputError, match="samples; expected at least one id"):
        i2am.plan(MEDIUM, range(3), [])


def test_sizes_for_people():
    assert [human_bytes(n) for n in (0, 999, 1000, 1_350_000_000, 24_000_000_000, 2_400_000_000_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.35 GB",
        "24 GB",
        "2.4 TB",
    ]

"""Chunks that no writer of ours makes: bombs, lies about their size, overlaps; with right checksums."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.storage.errors import DamagedSample
from i2am.storage.format.codecs import CODECS, get_codec
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from tests.storage.forge import put_shard, shard

ROOT = Path(__file__).parents[2]
LAYER = LayerSpec("x", 2, 8, (16, 16), (4, 4), representation="factors")
KEY = "attention/x/query/c.0.0.0.0.0"


@pytest.fixture(params=["blosc-lz4-shuffle", "blosc-zstd-bitshuffle"])
def run(tmp_path, request):
    """One sample of zeros, compressed."""
    path = tmp_path / "run.zarr"
    made = i2am.create_run(path, [LAYER], [1], ["a"], codec=request.param)
    with made as writer, writer.sample("a") as sink:
        sink.put("x", 0, query=np.zeros((2, 256, 8), "f2"), key=np.zeros((2, 16, 8), "f2"))
    return path


def forged(run, chunks, tail=None):
    """Put a shard of these payloads in place of the query's."""
    opened = open_run(run)
    layout = opened._header.layouts["x"]["query"]
    data = shard(opened.run_id, layout, chunks, KEY)
    put_shard(run, KEY, data if tail is None else tail(data, layout))
    return open_run(run)


def payload(run, nbytes, value=0):
    codec = get_codec(open_run(run).attrs["codec"])
    return bytes(codec.encode(np.full(nbytes, value, np.uint8)))


def test_a_sound_shard_of_our_making_is_read(run):
    plain = np.arange(2 * 256 * 8, dtype="f2")
    query = forged(run, [bytes(get_codec(open_run(run).attrs["codec"]).encode(plain))]).read("x", "a").query
    assert np.array_equal(query.ravel(), plain)
    assert i2am.verify(run).ok


@pytest.mark.parametrize("nbytes", [1, 8191, 8193, 1 << 19])
def test_chunks_of_another_size_are_refused(run, nbytes):
    with pytest.raises(DamagedSample, match="compressed chunk does not hold 8192 bytes"):
        forged(run, [payload(run, nbytes)]).read("x", "a")
    assert not i2am.verify(run).ok


def test_chunks_that_are_cut_short_are_refused(run):
    whole = bytes(get_codec(open_run(run).attrs["codec"]).encode(np.random.default_rng(0).bytes(8192)))
    for end in (5, 12, 17, 40, len(whole) // 2, len(whole) - 1):
        with pytest.raises(DamagedSample):
            forged(run, [whole[:end]]).read("x", "a")
        assert not i2am.verify(run).ok


@pytest.mark.parametrize("codec", sorted(set(CODECS) - {"none"}))
def test_sizes_that_blosc_states_are_checked_before_memory_is_taken(codec):
    codec, data = CODECS[codec], bytearray(CODECS[codec].encode(np.zeros(1 << 20, np.uint8)))
    assert len(codec.decode(bytes(data), 1 << 20)) == 1 << 20
    for start in (4, 12):  # plain and compressed bytes
        lying = bytearray(data)
        lying[start : start + 4] = struct.pack("<I", 1 << 30)
        tracemalloc.start()
        with pytest.raises(ValueError, match="does not hold"):
            codec.decode(bytes(lying), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
        tracemalloc.stop()
    for cut in (b"", bytes(data[:5]), bytes(data) + bytes(data)):
        with pytest.raises(ValueError, match="does not hold"):
            codec.decode(cut, 1 << 20)


def test_a_chunk_that_stands_for_others_is_refused(tmp_path):
    """A small file whose index points at one chunk many times."""
    layer = LayerSpec(
        "x", 2, 8, (512, 512), (4, 4), representation="factors"
    )  # a chunk for each head and step
    path = tmp_path / "run.zarr"
    with (
        i2am.create_run(path, [layer], [1, 2], ["a"], codec="blosc-zstd-bitshuffle") as writer,
        writer.sample("a") as sink,
    ):
        for step in range(2):
            sink.put("x", step, query=np.zeros((2, layer.gen, 8), "f2"), key=np.zeros((2, 16, 8), "f2"))
    opened = open_run(path)
    layout = opened._header.layouts["x"]["query"]
    assert layout.slots >= 2
    chunk = bytes(CODECS["blosc-zstd-bitshuffle"].encode(np.zeros(layout.chunk_bytes, np.uint8)))
    data = shard(opened.run_id, layout, [chunk] * layout.slots, KEY)

    def repeated(first, length):
        import google_crc32c

        index = struct.pack("<QQ", first, length) * layout.slots
        body = data[: length if first == 0 else 2 * length]
        return body + data[-layout.tail_bytes :][:32] + index + struct.pack("<I", google_crc32c.value(index))

    for first in (0, len(chunk) + 4):
        put_shard(path, KEY, repeated(first, len(chunk) + 4))
        with pytest.raises(DamagedSample, match=r"chunks overlap|cannot have|outside the file"):
            open_run(path).read("x", "a")
    put_shard(path, KEY, b"hidden" + data)
    with pytest.raises(DamagedSample, match="chunks overlap, or leave room"):
        open_run(path).read("x", "a")


FUZZ = """
import random, struct, sys
import numpy as np
from i2am.storage.format.codecs import CODECS
chance = random.Random(int(sys.argv[1]))
plain = np.random.default_rng(0).integers(0, 9, 5000).astype(np.uint8)
refused = 0
for round in range(int(sys.argv[2])):
    codec = CODECS[chance.choice(sorted(set(CODECS) - {"none"}))]
    data = bytearray(codec.encode(plain))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(min(len(data), chance.choice([24, len(data)])))] = chance.randrange(256)
    if chance.random() < 0.9:
        data[4:8], data[12:16] = struct.pack("<I", 5000), struct.pack("<I", len(data))
    try:
        assert len(codec.decode(bytes(data), 5000)) == 5000
    except ValueError:
        refused += 1
assert refused
"""


def test_decompressors_survive_what_an_attacker_signs():
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(seed), "3000"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seed {seed}: {done.returncode} {done.stderr[-2000:]}"


def test_a_bomb_within_all_limits_takes_bounded_memory(tmp_path):
    """A run of some kB that stands for 270 MB: the largest chunk and grids that a run may have."""
    layers = [
        LayerSpec("x", 1, 16, (2048, 2048), (1, 1), representation="factors"),
        LayerSpec("y", 1, 16, (1, 1), (2048, 2048), representation="factors"),
    ]
    made = i2am.create_run(tmp_path / "big", layers, [1], ["a"], codec="blosc-zstd-bitshuffle")
    with made as writer, writer.sample("a") as sink:
        for spec in layers:
            query, key = (np.zeros((1, tokens, 16), "f2") for tokens in (spec.gen, spec.ref))
            sink.put(spec.name, 0, query=query, key=key, copy=False)
    assert sum(path.stat().st_size for path in (tmp_path / "big").rglob("c.*")) < 300_000
    actions = "check,read,scores,verify,i2am inspect"
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.hostile_child", str(5 << 28), "none", str(tmp_path / "big")],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "HOSTILE_ACTIONS": actions, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    found = {
        action: what for store, action, what in map(json.loads, done.stdout.splitlines()) if store == "big"
    }
    assert found == {
        "check": "fine", "read": "fine", "scores": "fine", "verify": "undamaged", "i2am inspect": "exit 0"
    }  # fmt: skip

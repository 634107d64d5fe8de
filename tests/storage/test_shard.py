"""Our shard bytes against zarr-python's reader, and what a damaged tail says."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from i2am.storage.format.codecs import CODECS
from i2am.storage.format.layout import ArrayLayout, identity
from i2am.storage.format.shard import (
    ShardError,
    ShardWriter,
    check_chunk,
    checksum,
    file_hash,
    parse_tail,
    record_of,
)
from i2am.storage.locations.base import write_all
from i2am.storage.writing.array_writer import ArrayWriter


def zarr_compressors(codec, itemsize):
    kind = CODECS[codec]
    if not kind.cname:
        return [Crc32cCodec()]
    first = BloscCodec(
        cname=kind.cname, clevel=kind.level, shuffle=kind.shuffle, typesize=itemsize, blocksize=0
    )
    return [first, Crc32cCodec()]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 9),
    per_chunk=st.integers(1, 4),
    per_shard=st.integers(1, 3),
    heads=st.sampled_from([(4, 1), (4, 2), (3, 3)]),
    dtype=st.sampled_from(["float16", "float32"]),
    codec=st.sampled_from(sorted(CODECS)),
    order=st.randoms(use_true_random=False),
)
def test_zarr_python_reads_what_we_write(
    tmp_path_factory, steps, per_chunk, per_shard, heads, dtype, codec, order
):
    root = tmp_path_factory.mktemp("shard")
    heads, block = (heads[0], heads[0]) if per_chunk > 1 else heads
    shape, chunk, shard = (
        (2, steps, heads, 3, 5),
        (1, per_chunk, block, 3, 5),
        (1, per_chunk * per_shard, heads, 3, 5),
    )
    array = zarr.create_array(
        root / "a",
        shape=shape,
        chunks=chunk,
        shards=shard,
        dtype=dtype,
        fill_value=float("nan"),
        filters=None,
        compressors=zarr_compressors(codec, np.dtype(dtype).itemsize),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    layout = ArrayLayout("a", ("sample", "step", "head", "gen", "dim"), shape, chunk, shard, dtype, codec)
    values = np.random.default_rng(0).standard_normal(shape[1:]).astype(dtype)
    writer = ArrayWriter(layout, 1, "run", "s", root / "part")
    for step in order.sample(range(steps), steps):
        writer.put(step, lambda rows, step=step: values[step, rows])
    for key, (path, record) in writer.finish().items():
        data = path.read_bytes()
        assert record == record_of(data, file_hash("run", "s", key))
        if codec == "none":
            assert (
                len(data)
                == layout.groups(int(key.split(".")[2])) * layout.grid[1] * (layout.chunk_bytes + 4)
                + layout.tail_bytes
            )
        path.rename(root / key)
    assert np.array_equal(array[1], values)
    assert np.isnan(array[0]).all()


def tail_of(tmp_path, layout, ident):
    writer = ShardWriter(tmp_path / "s", layout.slots, ident, file_hash("run", "s", "k"))
    for slot in range(layout.slots):
        writer.append(slot, bytes(range(10)))
    record = writer.finish()
    return (tmp_path / "s").read_bytes()[-layout.tail_bytes :], record.bytes


@pytest.fixture
def layout():
    return ArrayLayout(
        "a", ("sample", "step", "head", "gen"), (1, 4, 1, 5), (1, 2, 1, 5), (1, 4, 1, 5), "float16", "none"
    )


def test_a_sound_tail_yields_the_index(tmp_path, layout):
    tail, size = tail_of(tmp_path, layout, identity("run", "k"))
    assert parse_tail(tail, layout, identity("run", "k"), size).tolist() == [[0, 14], [14, 14]]


def test_every_changed_byte_of_a_tail_is_refused(tmp_path, layout):
    tail, size = tail_of(tmp_path, layout, identity("run", "k"))
    for at in range(len(tail)):
        broken = bytearray(tail)
        broken[at] ^= 1 << (at % 8)
        with pytest.raises(ShardError):
            parse_tail(bytes(broken), layout, identity("run", "k"), size)


def test_a_shard_of_another_place_is_refused(tmp_path, layout):
    tail, size = tail_of(tmp_path, layout, identity("run", "k"))
    with pytest.raises(ShardError, match="another sample, array or run"):
        parse_tail(tail, layout, identity("run", "other"), size)


def test_an_index_that_points_outside_is_refused(tmp_path, layout):
    tail, size = tail_of(tmp_path, layout, identity("run", "k"))
    with pytest.raises(ShardError, match="outside the file"):
        parse_tail(tail, layout, identity("run", "k"), size - 1)


def test_chunk_checksums():
    stored = b"abc" + checksum(b"abc").to_bytes(4, "little")
    assert bytes(check_chunk(stored)) == b"abc"
    for broken in (b"abd" + stored[3:], stored[:-1], b"", b"ab"):
        with pytest.raises(ShardError, match="checksum of a chunk"):
            check_chunk(broken)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    import os

    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [views[0][:3]]))
    fd = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
    write_all(fd, [b"hello", np.arange(4, dtype="<u2"), b"", b"end"])
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"hello" + np.arange(4, dtype="<u2").tobytes() + b"end"

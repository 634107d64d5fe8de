"""Files that are not what was committed, although every checksum inside them agrees: `verify` finds each."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

import i2am
from i2am.storage.errors import DamagedSample
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.reading.open import open_run
from tests.storage.forge import put_shard

LAYER = i2am.LayerSpec("l", 2, 2, (2, 2), (1, 2), representation="scores", dtype="float32")
STEPS = 4


def take(writer, sample, value):
    with writer.sample(sample) as sink:
        for step in range(STEPS):
            sink.put("l", step, scores=np.full((2, 4, 2), value + step, "f4"))
        sink.put_image("generated", np.full((4, 4, 3), int(value), "u1"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two samples whose shards hold four chunks each."""
    monkeypatch.setattr("i2am.storage.format.layout.TARGET_CHUNK", 1)
    path = tmp_path / "run.zarr"
    with i2am.create_run(
        path, [LAYER], range(STEPS), ["a", "b"], image_shapes={"generated": (4, 4, 3)}
    ) as made:
        take(made, "a", 0)
        take(made, "b", 10)
    assert i2am.verify(path).ok
    return path


def layout_of(run: Path) -> ArrayLayout:
    return open_run(run)._header.layouts["l"]["scores"]


def shard_of(run: Path, index: int = 0) -> Path:
    return run / layout_of(run).key(index, 0)


def parts(run: Path, index: int = 0) -> tuple[list[bytes], bytes, list[tuple[int, int]]]:
    """The chunks in their order, the identity, and the index of a shard."""
    layout = layout_of(run)
    data = shard_of(run, index).read_bytes()
    tail = data[-layout.tail_bytes :]
    entries = list(struct.iter_unpack("<QQ", tail[32:-4]))
    return [data[at : at + size] for at, size in entries], tail[:32], entries


def whole(chunks: list[bytes], identity: bytes, entries: list[tuple[int, int]]) -> bytes:
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return b"".join(chunks) + identity + index + struct.pack("<I", google_crc32c.value(index))


def swap_chunks(run: Path) -> None:
    chunks, identity, entries = parts(run)
    chunks[0], chunks[1] = chunks[1], chunks[0]
    shard_of(run).write_bytes(whole(chunks, identity, entries))


def swap_entries(run: Path) -> None:
    chunks, identity, entries = parts(run)
    entries[0], entries[2] = entries[2], entries[0]
    shard_of(run).write_bytes(whole(chunks, identity, entries))


def payloads_of_another_sample(run: Path) -> None:
    chunks, _, _ = parts(run, 1)
    _, identity, entries = parts(run)
    shard_of(run).write_bytes(whole(chunks, identity, entries))


def one_payload_of_another_sample(run: Path) -> None:
    chunks, identity, entries = parts(run)
    chunks[3] = parts(run, 1)[0][3]
    shard_of(run).write_bytes(whole(chunks, identity, entries))


def a_chunk_made_anew(run: Path) -> None:
    chunks, identity, entries = parts(run)
    payload = bytes(len(chunks[1]) - 4)
    chunks[1] = payload + struct.pack("<I", google_crc32c.value(payload))
    shard_of(run).write_bytes(whole(chunks, identity, entries))


def another_picture(run: Path) -> None:
    file = run / "images/generated/c.0.0.0.0"
    data = file.read_bytes()
    payload = b"\7" * 48
    file.write_bytes(payload + struct.pack("<I", google_crc32c.value(payload)) + data[52:])


def older_take(run: Path) -> None:
    old = shard_of(run).read_bytes()
    before = open_run(run).fingerprint("a")
    (run / "commits/a.json").unlink()
    for file in (shard_of(run), run / "images/generated/c.0.0.0.0"):
        file.unlink()
    with i2am.resume_run(run) as writer:
        take(writer, "a", 7)
    assert open_run(run).fingerprint("a") != before
    shard_of(run).write_bytes(old)


PLANTED = (
    swap_chunks,
    swap_entries,
    payloads_of_another_sample,
    one_payload_of_another_sample,
    a_chunk_made_anew,
    another_picture,
    older_take,
)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_every_inner_checksum_agrees_with_is_found_by_the_digest(run, plant):
    plant(run)
    open_run(run).read("l", "a")  # a reader of the chunks alone sees nothing
    (problem,) = i2am.verify(run).problems
    assert (problem.sample, problem.what) == ("a", "its digest disagrees with the commit record")


def test_the_records_of_other_content_differ(run, tmp_path):
    """The content alone tells them apart: same path, sizes and sample."""
    first = open_run(run).record("a")["files"]
    older_take(run)
    again = open_run(run).record("a")["files"]
    assert all(first[path]["xxh3"] != again[path]["xxh3"] for path in first)
    assert {path: file["bytes"] for path, file in first.items()} == {
        path: file["bytes"] for path, file in again.items()
    }


def test_equal_content_has_another_digest_in_another_place(run):
    with i2am.create_run(run.parent / "same.zarr", [LAYER], range(STEPS), ["a", "b", "c"]) as made:
        for sample in made.samples:
            with made.sample(sample) as sink:
                for step in range(STEPS):
                    sink.put("l", step, scores=np.ones((2, 4, 2), "f4"))
    found = open_run(run.parent / "same.zarr")
    digests = {file["xxh3"] for s in found.samples for file in found.record(s)["files"].values()}
    assert len(digests) == 3


def signed(run: Path, data: bytes) -> None:
    """A shard that its record agrees with: only its structure is wrong."""
    put_shard(run, layout_of(run).key(0, 0), data)


def doubled_entry(run: Path) -> bytes:
    chunks, identity, entries = parts(run)
    return whole(chunks, identity, [entries[0], entries[0], *entries[2:]])


def absent_chunk(run: Path) -> bytes:
    chunks, identity, entries = parts(run)
    return whole([*chunks[:3], bytes(len(chunks[3]) - 32)], identity, [*entries[:3], ((1 << 64) - 1,) * 2])


def foreign_identity(run: Path) -> bytes:
    chunks, _, entries = parts(run)
    return whole(chunks, parts(run, 1)[1], entries)


def flipped_bit(run: Path) -> bytes:
    data = bytearray(shard_of(run).read_bytes())
    data[5] ^= 1
    return bytes(data)


@pytest.mark.parametrize("make", [doubled_entry, absent_chunk, foreign_identity, flipped_bit])
def test_what_a_reader_refuses_verify_refuses(run, make):
    """A record that was made over a shard no reader takes."""
    signed(run, make(run))
    with pytest.raises(DamagedSample):
        open_run(run).read("l", "a")
    (problem,) = i2am.verify(run).problems
    assert problem.sample == "a"


def test_an_image_that_is_not_the_committed_one_is_not_exported(run, tmp_path):
    from i2am.storage.locations.open import locate
    from i2am.storage.tools.export_without_attention import copy_without_attention

    another_picture(run)
    with pytest.raises(DamagedSample, match="digest disagrees with the commit record"):
        copy_without_attention(open_run(run), locate(tmp_path / "out.zarr"), ["a"])

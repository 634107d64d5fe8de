"""Runs whose documents say whatever an attacker likes, with right digests in canonical form."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c

from i2am.storage.format.layout import ArrayLayout, identity
from i2am.storage.format.shard import file_hash, record_of
from i2am.storage.format.signed_json import canonical, signed

Document = dict[str, Any]
Change = Callable[[Document], object]


def forge_root(run: Path, change: Change) -> None:
    """Change ``attributes["i2am"]`` and sign it."""
    document = json.loads((run / "zarr.json").read_text())
    own = document["attributes"]["i2am"]
    change(own)
    document["attributes"]["i2am"] = signed(own)
    (run / "zarr.json").write_bytes(canonical(document))


def forge_record(run: Path, change: Change, sample: str = "a") -> None:
    """Change a commit record and sign it."""
    path = run / f"commits/{sample}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_bytes(canonical(signed(document)))


def copied(undamaged: Path, to: Path) -> Path:
    """A copy to forge."""
    return Path(shutil.copytree(undamaged, to))


def shard(run_id: str, layout: ArrayLayout, chunks: list[bytes], key: str) -> bytes:
    """A whole shard with right checksums around any payloads, all in the order of their slots."""
    body, index = b"", b""
    for payload in chunks:
        stored = payload + struct.pack("<I", google_crc32c.value(payload))
        index += struct.pack("<QQ", len(body), len(stored))
        body += stored
    index += b"\xff" * (16 * (layout.slots - len(chunks)))
    return body + identity(run_id, key) + index + struct.pack("<I", google_crc32c.value(index))


def put_shard(run: Path, key: str, data: bytes, sample: str = "a") -> None:
    """Put a shard in place, and its size and digest into the commit record."""
    (run / key).parent.mkdir(parents=True, exist_ok=True)
    (run / key).write_bytes(data)

    def change(record: Document) -> None:
        made = record_of(data, file_hash(record["run_id"], sample, key))
        record["files"][key] = {"bytes": made.bytes, "xxh3": made.digest}

    forge_record(run, change, sample)

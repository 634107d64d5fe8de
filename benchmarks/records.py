"""Commit records of a run of 10,000 samples: opening it, and the fingerprints of all samples.

Usage: python -m benchmarks.records [--samples 10000] [--delay 0.02] [--out FILE]

Records of 16 layers (3 kB each) lie on a local disk, and behind an S3 server in a process of its own that
answers every request after a delay. On two cores under other work, with a delay of 20 ms, seconds for all:

| records                                    | local disk | S3   |
|--------------------------------------------|------------|------|
| one at a time                              | 1.8        | 240  |
| 16 at a time                               |            | 16   |
| 32 at a time                               |            | 9.6  |
| 64 at a time (what a scan does)            |            | 7.0  |
| one file that repeats them, with their tags | 1.7        | 4.9  |

So a file that repeats the records (27 MB, 9 to 13 s to write anew) was given up. moto itself answers no more
than 440 requests a second on this machine, which makes 23 s of any of the concurrent ways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.header import load_header
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.shard import FileRecord
from i2am.storage.locations.open import locate
from i2am.storage.reading import record_cache
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run

LAYERS = [LayerSpec(f"layer{number:02}", 2, 8, (8, 8), (4, 4)) for number in range(16)]
PAGE = 1000


def write_records(path: Path, samples: int) -> None:
    """Write a run that has commit records and no data."""
    names = [f"s{number:05}" for number in range(samples)]
    create_run(path, LAYERS, [3, 2, 1], names).close()
    header = load_header(locate(path))
    (path / "commits").mkdir(exist_ok=True)
    for index, name in enumerate(names):
        files = {key: FileRecord(6176, f"{index:032x}") for key in header.attention_keys(index)}
        record = CommitRecord(header.run_id, name, index, "2026-01-01T00:00:00Z", files)
        (path / f"commits/{name}.json").write_bytes(record.to_bytes())


def serve(root: str, delay: float, port: Any) -> None:
    """Serve a folder as S3 does: objects, and lists by pages of a thousand."""
    keys = sorted(path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())
    known = set(keys)

    def listing(query: dict[str, str]) -> str:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        found = [key for key in keys if key.startswith(prefix) and key > after]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"0"</ETag><Size>{(Path(root) / key).stat().st_size}</Size></Contents>'
            for key in found[:PAGE]
        )
        more = len(found) > PAGE
        token = f"<NextContinuationToken>{found[PAGE - 1]}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult>{truncated}{token}{items}</ListBucketResult>"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            asked = urlsplit(head.split(b" ", 2)[1].decode())
            await asyncio.sleep(delay)
            key = unquote(asked.path).strip("/").partition("/")[2]
            if not key:
                status, body = "200 OK", listing(dict(parse_qsl(asked.query))).encode()
            elif key in known:
                status, body = "200 OK", (Path(root) / key).read_bytes()
            else:
                status, body = "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
            date = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"
            start = f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: "0"\r\n{date}\r\n\r\n'
            writer.write(start.encode() + body)

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def ask(url: str, readers: int, most: int) -> dict[str, Any]:
    """Open a run and fingerprint its samples (`most` at most), so many records at a time."""
    record_cache.READERS = readers
    start, worked = time.perf_counter(), time.process_time()
    run = open_run(url)
    opened = time.perf_counter() - start
    found = {run.fingerprint(sample) for sample in run.samples[:most]}
    return {
        "place": "S3" if "://" in url else "local disk",
        "at a time": readers,
        "samples": len(found),
        "open": round(opened, 2),
        "all": round(time.perf_counter() - start, 2),
        "cpu": round(time.process_time() - worked, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before the server answers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "records.json")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder) / "many.zarr", args.samples)
        rows = [ask(f"{folder}/many.zarr", 1, args.samples)]
        port = context.Queue()
        server = context.Process(target=serve, args=(folder, args.delay, port), daemon=True)
        server.start()
        keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
        place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get()}", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {**keys, **place, "NO_PROXY": "127.0.0.1"}
        for readers, most in ((1, 500), (16, args.samples), (32, args.samples), (64, args.samples)):
            rows.append(ask("s3://bench-runs/many.zarr", readers, most))
        server.terminate()
    table = Table(title=f"seconds; load of the machine {os.getloadavg()[0]:.1f}")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"delay": args.delay, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""An S3-speaking server of our own on 127.0.0.1, and a proxy in front of it that fails on schedule."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}
BUCKET = "runs"


@contextmanager
def object_server() -> Iterator[str]:
    """Start a server with an empty bucket, and put the credentials into the environment; yields its URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        try:
            yield endpoint
        finally:
            server.stop()


def objects(endpoint: str, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix of the bucket, read by another client."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    found = {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
    client.close()
    return found


Fault = Literal["403", "404", "500", "503", "reset", "stored 500", "stored reset", "truncate", "slow"]
"""Refused before or after the server did it; the connection dropped; half an answer; a late answer."""


@dataclass
class Schedule:
    """Which request fails how; `choose` gets method, path and how often that pair was asked before."""

    choose: Callable[[str, str, int], Fault | None] = lambda method, path, nth: None
    done: Counter[str] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    slow_seconds: float = 0.3

    def next(self, method: str, path: str) -> Fault | None:
        with self.lock:
            nth = self.asked[method, path]
            self.asked[method, path] += 1
            fault = self.choose(method, path, nth)
            if fault is not None:
                self.done[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        body = self._body()
        if self.server.down:
            self._reset()
            return
        fault = self.server.schedule.next(self.command, self.path)
        if fault == "slow":
            time.sleep(self.server.schedule.slow_seconds)
        if fault == "reset":
            self._reset()
        elif fault in ("403", "404", "500", "503"):
            code = b"AccessDenied" if fault == "403" else b"InternalError"
            self._answer(int(fault), {}, b"<Error><Code>%s</Code></Error>" % code)
        else:
            status, headers, answer = self._forward(body)
            if fault == "stored reset":
                self._reset()
            elif fault == "stored 500":
                self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
            else:
                self._answer(status, headers, answer, cut=fault == "truncate")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        # The Host that the client signed goes along; the server behind does not care about its own name.
        link = http.client.HTTPConnection(self.server.behind, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
        try:
            link.request(self.command, self.path, body or None, headers)
            got = link.getresponse()
            return got.status, dict(got.getheaders()), got.read()
        finally:
            link.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        """Drop the connection without a word (SO_LINGER 0 sends RST)."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, behind: str, schedule: Schedule, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.down = False
        self.behind, self.schedule = behind.removeprefix("http://"), schedule

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that left


@dataclass
class Proxy:
    """A proxy that can be taken away and brought back at the same address."""

    endpoint: str
    schedule: Schedule
    behind: str
    _server: _Server | None = None

    def start(self) -> None:
        port = int(self.endpoint.rsplit(":", 1)[1])
        self._server = _Server(self.behind, self.schedule, port)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.down = True  # for connections that are open
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def proxy(behind: str, schedule: Schedule) -> Iterator[Proxy]:
    """A proxy in front of a server, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Proxy(f"http://127.0.0.1:{port}", schedule, behind)
    made.start()
    try:
        yield made
    finally:
        made.stop()

"""Reports to a Prefect server from a thread of its own, so that a lost server costs states, never samples."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias
from uuid import uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Running

from i2am.flows.console.output import log
from i2am.flows.console.progress import Progress
from i2am.flows.prefect.markdown import plain
from i2am.storage.redaction import redacted
from i2am.storage.terminal_safe import visible

Call: TypeAlias = Callable[[SyncPrefectClient], object]

REQUEST_SECONDS = 10.0
RETRY_SECONDS = 1.0
LOST_SECONDS = 5.0
"""A server that has not answered for so long is lost."""

AFTER_ERROR_SECONDS = 5.0
"""What is left to report after an error or a Ctrl-C gets so long."""

PROGRESS_SECONDS = 1.0
"""Between two updates of the progress artifact: many samples may be committed in a second."""


class Reporter:
    """Shows a capture in a flow run: log lines, a progress artifact, a task run for each shard, artifacts.

    Reports are sent in order. While the server does not answer, the thread tries again and the capture goes
    on; at the end of the block, what is left is dropped after ``patience`` seconds.
    """

    def __init__(self, kind: str, run: str, flow_run: str | None = None, patience: float = 30.0) -> None:
        self._prefix, self._run, self._flow_run = f"i2am-{kind}", run, flow_run
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="prefect-reporter", daemon=True)
        self._percent, self._percent_sent_at = 100.0, 0.0  # of a capture with nothing to do
        self._progress_artifact = ""
        self._task_runs: dict[int, str] = {}
        self._patience, self._give_up_at = patience, float("inf")
        self._said = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._calls.put(self._update_progress)
        self._calls.put(None)
        seconds = self._patience if error is None else min(self._patience, AFTER_ERROR_SECONDS)
        self._give_up_at = time.monotonic() + seconds
        self._thread.join(seconds + REQUEST_SECONDS)

    def start_flow_run(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Create the flow run that everything else is shown in."""
        key = str(uuid4())  # a second try must not make a second flow run

        def create(client: SyncPrefectClient) -> None:
            flow = client.create_flow_from_name(self._prefix)
            body = {"flow_id": str(flow), "name": name, "parameters": parameters, "idempotency_key": key}
            self._flow_run = client.request("POST", "/flow_runs/", json=body).json()["id"]
            client.set_flow_run_state(self._flow_run, Running(), force=True)

        self._calls.put(create)

    def end_flow_run(self, state: State[Any]) -> None:
        """Set the last state of the flow run."""
        self._calls.put(lambda client: client.set_flow_run_state(str(self._flow_run), state, force=True))

    def log(self, line: str) -> None:
        """Add a line to the flow run's log."""
        now = datetime.now(UTC).isoformat()
        entry = {"name": "i2am", "level": logging.INFO, "message": redacted(line), "timestamp": now}
        self._calls.put(lambda client: client.create_logs([entry | {"flow_run_id": self._flow_run}]))

    def on_progress(self, event: Progress) -> None:
        """Log a sample, and update the progress artifact from time to time."""
        if event.what:
            self.log(visible(f"{event.stage} {event.done}/{event.total}: {event.what}"))
        if event.stage == "capture":
            self._percent = 100.0 * event.done / max(event.total, 1)
            if time.monotonic() - self._percent_sent_at > PROGRESS_SECONDS:
                self._percent_sent_at = time.monotonic()
                self._calls.put(self._update_progress)

    def task_run(self, task: str, number: int, name: str, state: State[Any]) -> None:
        """Set the state of a task run, which is created the first time."""
        created, id = number in self._task_runs, self._task_runs.setdefault(number, str(uuid4()))

        def send(client: SyncPrefectClient) -> None:
            if not created:
                body = {"id": id, "name": name, "flow_run_id": self._flow_run}
                client.request(
                    "POST", "/task_runs/", json=body | {"task_key": task, "dynamic_key": str(number)}
                )
            client.set_task_run_state(id, state, force=True)  # type: ignore[arg-type]

        self._calls.put(send)

    def artifact(self, name: str, kind: str, data: object) -> None:
        """Publish an artifact, of kind ``table`` (JSON) or ``markdown``."""
        self._calls.put(lambda client: self._create_artifact(client, name, kind, data))

    def _create_artifact(self, client: SyncPrefectClient, name: str, kind: str, data: object) -> str:
        body = {"key": f"{self._prefix}-{name}", "type": kind, "data": data, "flow_run_id": self._flow_run}
        answer = client.request("POST", "/artifacts/", json=body | {"description": plain(self._run)})
        return str(answer.json()["id"])

    def _update_progress(self, client: SyncPrefectClient) -> None:
        percent = self._percent
        if not self._progress_artifact:
            self._progress_artifact = self._create_artifact(client, "progress", "progress", percent)
        else:
            place = {"id": self._progress_artifact}
            client.request("PATCH", "/artifacts/{id}", path_params=place, json={"data": percent})

    def _send_all(self) -> None:
        once = {PREFECT_CLIENT_MAX_RETRIES: 0}
        limit = {"timeout": REQUEST_SECONDS}
        with temporary_settings(once), get_client(httpx_settings=limit, sync_client=True) as client:
            while (call := self._calls.get()) is not None:
                if not self._send(client, call):
                    return

    def _send(self, client: SyncPrefectClient, call: Call) -> bool:
        """Send one report, waiting for a server that does not answer; False if it is time to give up."""
        began = time.monotonic()
        while not _accepted(client, call):
            now = time.monotonic()
            over = now > self._give_up_at
            if (over or now - began > LOST_SECONDS) and not self._said:
                self._said = True
                log(f"i2am: no answer from the Prefect server {PREFECT_API_URL.value()}; going on without it")
            if over:
                return False
            time.sleep(RETRY_SECONDS)
        return True


def _accepted(client: SyncPrefectClient, call: Call) -> bool:
    """Make one try; False if the server does not answer. What it refuses is dropped: the next may pass."""
    try:
        call(client)
    except httpx.TransportError:
        return False
    except PrefectHTTPStatusError as error:
        return error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR
    except Exception:  # a report that cannot be made must not stop those after it
        logging.getLogger(__name__).debug("a report to Prefect failed", exc_info=True)
    return True

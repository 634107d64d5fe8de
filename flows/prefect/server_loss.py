"""A sweep that outlives its Prefect server: what was captured stays, the flow is run again from there."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed

from i2am.flows.capture.job import Todo, summarise, waiting
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import log
from i2am.flows.console.progress import Progress, listening
from i2am.flows.datasets.open import open_samples
from i2am.flows.prefect.server import answers, wait_for_server
from i2am.flows.prefect.sweep_flow import sweep_flow
from i2am.storage.errors import InputError

LOSSES = 20
"""Losses of the server in one sweep after which something else is wrong."""


class ServerGone(InputError):
    """The Prefect server did not come back, and samples are left to capture."""


def sweep_through_losses(config: CaptureConfig, retry_failed: bool) -> tuple[dict[str, Any], bool]:
    """Run the sweep's flow, and again whenever the server was lost under it.

    Parameters
    ----------
    config, retry_failed
        As for :func:`i2am.flows.prefect.sweep_flow.sweep_flow`.

    Returns
    -------
    summary : dict
        The flow's; ``captured`` and ``seconds`` count all attempts. If the server does not come back and
        nothing is left to capture, the summary of the run.
    recorded : bool
        Whether the server knows of the end.

    Raises
    ------
    ServerGone
        If the server does not come back, and something is left to capture.
    """
    api, began, captured = os.environ["PREFECT_API_URL"], datetime.now(UTC), 0

    def count(event: Progress) -> None:
        """Count samples over all attempts."""
        nonlocal captured
        captured += bool(event.what)

    def whole(summary: dict[str, Any]) -> dict[str, Any]:
        """The summary of all attempts."""
        return summary | {"captured": captured, "seconds": (datetime.now(UTC) - began).total_seconds()}

    with listening(count):
        for _ in range(LOSSES):
            try:
                return whole(sweep_flow(config, retry_failed)), True
            except Exception as error:
                if not server_lost(error, api):
                    raise
            log(f"i2am: the Prefect server at {api} was lost; going on from what was captured")
            if not wait_for_server(api, config.sweep.patience):
                break
            _bury(config.out, began)
    before, ids = waiting(config, open_samples(config), Todo())
    if not ids:
        log("i2am: the sweep is done; the server has no record of its end")
        return whole(summarise(config, before, 0.0) | {"lost": []}), False
    raise ServerGone(
        f"the Prefect server at {api} was lost",
        expected=f"an answer within {config.sweep.patience:.0f} s",
        got=f"none, and {len(ids)} samples to go",
        remedy="start it, or unset PREFECT_API_URL, and run the same command again: it goes on from here",
    )


def leave(status: int) -> NoReturn:
    """End the process: Prefect's threads would go on for minutes to tell a server that is gone.

    Parameters
    ----------
    status
        Exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def server_lost(error: BaseException, api: str) -> bool:
    """Whether an error comes of a server that is lost, or was for a moment.

    Parameters
    ----------
    error
        What a flow raised.
    api
        URL of the server.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # Prefect raises errors anew, which makes rings
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, httpx.TransportError):
            return True
        if isinstance(cause, PrefectHTTPStatusError) and cause.response.status_code >= 500:
            return True
        cause = cause.__cause__ or cause.__context__
    return not isinstance(error, InputError) and not answers(api)


def _bury(out: str, began: datetime) -> None:
    """End flow runs of this sweep that the server still takes for running."""
    left = {
        "name": {"any_": [f"sweep {out}"]},
        "state": {"type": {"any_": ["PENDING", "RUNNING"]}},
        "expected_start_time": {"after_": began},
    }
    with suppress(Exception), get_client(sync_client=True) as client:  # it is the record alone that suffers
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(left)):
            message = "The server was lost meanwhile; a later flow run goes on."
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)

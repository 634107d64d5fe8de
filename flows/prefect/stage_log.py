"""The stages of a job in the log of its Prefect task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger

from i2am.flows.console.progress import Progress, listening
from i2am.storage.redaction import without_secrets


@contextmanager
def logged_stages() -> Iterator[None]:
    """Log each stage of the block when it is done; errors leave it without secrets."""
    logger = get_run_logger()

    def listen(event: Progress) -> None:
        if event.what and event.done == event.total:
            logger.info("%s done (%d)", event.stage, event.total)

    with without_secrets(), listening(listen):
        yield

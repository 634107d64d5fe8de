"""What a capture does, as a Prefect flow shows it: a line in the log for each sample, a progress artifact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.markdown import plain
from flows.progress import Progress, heard_by

SECONDS_BETWEEN_UPDATES = 1.0
"""Of the progress artifact: many samples may be committed in a second."""


@contextmanager
def watched(key: str, out: str) -> Iterator[None]:
    """Log the samples of the block, and keep a progress artifact up to date.

    Parameters
    ----------
    key
        Of the artifact.
    out
        The run, which describes it.
    """
    logger = get_run_logger()
    # Called from synchronous code, Prefect's functions return their result, not a coroutine.
    artifact = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=plain(out)))
    percent, last = 100.0, 0.0  # where nothing is reported there was nothing to do

    def listen(event: Progress) -> None:
        """Log the sample; the artifact follows at its own pace."""
        nonlocal percent, last
        percent = 100.0 * event.done / max(event.total, 1)
        if event.what:
            logger.info("%s %d/%d: %s", event.stage, event.done, event.total, event.what)
            if time.monotonic() - last > SECONDS_BETWEEN_UPDATES:
                last = time.monotonic()
                update_progress_artifact(artifact_id=artifact, progress=percent)

    with heard_by(listen):
        yield
    update_progress_artifact(artifact_id=artifact, progress=percent)

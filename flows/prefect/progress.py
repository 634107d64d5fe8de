"""What a capture does, as a Prefect flow shows it: a line in the log for each sample, a progress artifact.

Nothing here holds up the capture or fails it: a server that does not answer is passed over.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from i2am.flows.console.progress import Progress, listening
from i2am.flows.prefect.markdown import plain

SECONDS_BETWEEN_UPDATES = 1.0
"""Of the progress artifact: many samples may be committed in a second."""

SECONDS_TO_END = 10.0
"""Of the last update, where the server is slow or lost."""


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
    percent, over = 100.0, threading.Event()  # where nothing is reported there was nothing to do

    def listen(event: Progress) -> None:
        """Log the sample; the artifact follows at its own pace."""
        nonlocal percent
        if event.stage == "capture":
            percent = 100.0 * event.done / max(event.total, 1)
        if event.what:
            logger.info("%s %d/%d: %s", event.stage, event.done, event.total, event.what)

    def follow() -> None:
        """Send the percentage while it changes, and once more at the end."""
        artifact, sent, last = None, -1.0, False
        while not last:
            last = over.wait(SECONDS_BETWEEN_UPDATES)
            with suppress(Exception):  # the server is lost, for the moment or for good
                if artifact is None:
                    # Called from synchronous code, Prefect's functions return their result, not a coroutine.
                    made = create_progress_artifact(progress=0.0, key=key, description=plain(out))
                    artifact = cast(UUID, made)
                if percent != sent:
                    update_progress_artifact(artifact_id=artifact, progress=percent)
                    sent = percent

    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    follower.start()
    try:
        with listening(listen):
            yield
    finally:
        over.set()
        follower.join(SECONDS_TO_END)

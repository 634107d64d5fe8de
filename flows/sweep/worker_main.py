"""A capture process of a sweep: loads the model once, takes shards from standard input, tells what it does.

Lines of JSON. In: the configuration, then {"ids": [...]} for each shard. Out: {"done": sample} for each that
is committed, {"end": true} after a shard, or {"error": one line, "input": whether the user can mend it}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from i2am.flows.capture.job import Todo, capture_samples, prepare, waiting
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import one_line
from i2am.flows.console.progress import Progress, listening
from i2am.flows.datasets.open import open_samples
from i2am.storage.errors import CaptureError, InputError, StoreUnavailable


def main(commands: TextIO, answers: TextIO) -> None:
    """Serve shards until standard input ends.

    Parameters
    ----------
    commands, answers
        The two pipes.
    """

    def tell(message: dict[str, Any]) -> None:
        """Send one line."""
        print(json.dumps(message), file=answers, flush=True)

    def listen(event: Progress) -> None:
        """Pass on each sample."""
        if event.what and event.stage == "capture":
            tell({"done": event.what})

    config = CaptureConfig.model_validate_json(commands.readline())
    samples, prepared = open_samples(config), None
    for line in commands:
        todo = Todo(only=tuple(json.loads(line)["ids"]))
        try:
            committed, ids = waiting(config, samples, todo)
            if ids:
                prepared = prepared or prepare(config)
                with listening(listen):
                    capture_samples(config, samples, prepared, ids, committed, keep_going=True)
            tell({"end": True})
        except Exception as error:  # noqa: BLE001 - the boundary of the process: told to the parent
            passing = (CaptureError, StoreUnavailable)  # another process, or a later one, may do better
            mendable = isinstance(error, InputError) and not isinstance(error, passing)
            tell({"error": one_line(error), "input": mendable})
            return  # after an error the model's state is not to be trusted


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not the protocol
    try:
        main(sys.stdin, own)
    except KeyboardInterrupt:
        sys.exit(130)  # the parent was interrupted, and says so

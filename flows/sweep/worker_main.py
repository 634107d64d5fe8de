"""The program of a capture process: loads the model once, reads shards, writes what it does.

Lines of JSON. In: the configuration, then {"ids": [...]} for each shard. Out: {"done": sample} for each that
is committed, {"alive": true} as the model steps on, {"end": true} after a shard, or {"error": one line,
"input": whether the user can mend it}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from i2am.flows.capture.job import capture_samples, missing_samples, prepare
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import one_line
from i2am.flows.console.progress import Progress, listening
from i2am.flows.datasets.open import open_samples
from i2am.storage.errors import CaptureError, InputError, SampleBusy, StoreUnavailable
from i2am.storage.redaction import remember

ALIVE_SECONDS = 1.0
"""Between two signs of life."""


def main(commands: TextIO, answers: TextIO) -> None:
    """Capture shards until ``commands`` ends."""
    told = 0.0

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def alive() -> None:
        nonlocal told
        if time.monotonic() - told > ALIVE_SECONDS:
            told = time.monotonic()
            send({"alive": True})

    def on_progress(event: Progress) -> None:
        if event.what and event.stage == "capture":
            send({"done": event.what})

    config = CaptureConfig.model_validate_json(commands.readline())
    remember(config.model_dump())
    samples, prepared = open_samples(config), None
    for line in commands:
        try:
            committed, ids = missing_samples(config, samples, only=json.loads(line)["ids"])
            if ids:
                prepared = prepared or prepare(config)
                with listening(on_progress):
                    capture_samples(
                        config, samples, prepared, ids, committed, config.sweep.deadline,
                        keep_going=True, alive=alive,
                    )  # fmt: skip
            send({"end": True})
        except Exception as error:  # noqa: BLE001 - the boundary of the process: sent to the parent
            temporary = (
                CaptureError,
                SampleBusy,
                StoreUnavailable,
            )  # another process, or a later one, may do better
            send({
                "error": one_line(error),
                "input": isinstance(error, InputError) and not isinstance(error, temporary),
            })  # fmt: skip
            return  # after an error the model's state is not to be trusted


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not the protocol
    try:
        main(sys.stdin, own)
    except KeyboardInterrupt:
        sys.exit(130)  # the parent was interrupted, and says so

"""Decide whether a job runs as a Prefect flow or directly."""

from __future__ import annotations

import importlib.util
import logging
import os

from i2am.flows.prefect.server import quiet_environment
from i2am.storage.errors import ConfigError, MissingDependency


def as_flow(prefect: bool, direct: bool) -> bool:
    """Whether a job goes through Prefect, which is made quiet if so; to be called before importing it.

    Without ``--prefect`` and ``--direct`` it does where ``PREFECT_API_URL`` names a server.
    """
    if prefect and direct:
        raise ConfigError("--prefect and --direct", expected="at most one of them", got="both")
    installed = importlib.util.find_spec("prefect") is not None
    if prefect and not installed:
        raise MissingDependency(
            "--prefect needs Prefect", remedy="pip install 'i2am[flows]', or use --direct"
        )
    chosen = prefect or (not direct and installed and bool(os.environ.get("PREFECT_API_URL")))
    if chosen:
        os.environ.update(quiet_environment())
        logging.raiseExceptions = False  # or Prefect's handler writes each line that it cannot send
    return chosen

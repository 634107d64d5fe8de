"""Decide whether a job runs as a Prefect flow or directly."""

from __future__ import annotations

import importlib.util
import logging
import os

from i2am.flows.prefect.server import quiet_environment
from i2am.storage.errors import ConfigError, MissingDependency


def as_flow(choice: bool | None) -> bool:
    """Whether a job goes through Prefect, which is made quiet if so; to be called before importing it.

    ``choice`` is ``--prefect`` (True), ``--direct`` (False), or None: through Prefect where
    ``PREFECT_API_URL`` names a server.
    """
    installed = importlib.util.find_spec("prefect") is not None
    if choice and not installed:
        raise MissingDependency(
            "--prefect needs Prefect", remedy="pip install 'i2am[flows]', or use --direct"
        )
    if choice is None:
        choice = installed and bool(os.environ.get("PREFECT_API_URL"))
    if choice:
        os.environ.update(quiet_environment())
        logging.raiseExceptions = False  # or Prefect's handler writes each line that it cannot send
    return choice


def both_refused(prefect: bool, direct: bool) -> bool | None:
    """The two flags of a command as one choice; both are refused."""
    if prefect and direct:
        raise ConfigError("--prefect and --direct", expected="at most one of them", got="both")
    return True if prefect else False if direct else None

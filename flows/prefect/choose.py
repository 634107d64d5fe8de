"""Decide whether a job runs as a Prefect flow or directly, and run it."""

from __future__ import annotations

import importlib.util
import logging
import os

from i2am.flows.prefect.server import quiet_environment
from i2am.storage.errors import ConfigError, MissingDependency


def as_flow(choice: bool | None) -> bool:
    """Decide whether a job goes through Prefect, and make it quiet if so; to be called before importing it.

    Parameters
    ----------
    choice
        ``--prefect`` (True), ``--direct`` (False), or None: through Prefect where ``PREFECT_API_URL`` names a
        server, because starting one takes longer than most jobs.

    Returns
    -------
    bool
        Run as a flow.

    Raises
    ------
    MissingDependency
        If a flow is asked for and Prefect is not installed.
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
        logging.raiseExceptions = (
            False  # Prefect's handler would tell the terminal of each line it cannot send
        )
    return choice


def both_refused(prefect: bool, direct: bool) -> bool | None:
    """Read the two flags of a command as one choice.

    Raises
    ------
    ConfigError
        If both are given.
    """
    if prefect and direct:
        raise ConfigError("--prefect and --direct", expected="at most one of them", got="both")
    return True if prefect else False if direct else None

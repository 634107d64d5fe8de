"""Shared by the tests of the store."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Skip fsync: no test pulls the plug, and a busy disk would slow them. Processes to be killed keep it."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)

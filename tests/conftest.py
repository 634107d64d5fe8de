"""The order of the tests: files that take long come first, so that both workers end together."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = (
    "flows/test_sweep.py",
    "flows/test_sweep_prefect.py",
    "integration/test_object_server_faults.py",
    "integration/test_faults.py",
    "flows/test_broken_samples.py",
    "flows/test_prefect.py",
    "integration/test_cluster_kills.py",
    "integration/test_sweep_kills.py",
    "integration/test_two_captures.py",
    "analysis/test_study.py",
    "storage/test_object_faults.py",
    "flows/test_commands.py",
    "flows/test_secrets.py",
    "flows/test_clusters.py",
    "flows/test_cache_option.py",
    "integration/test_demo.py",
    "flows/test_endpoint.py",
    "integration/test_durability.py",
    "integration/test_clock.py",
    "flows/test_deploy.py",
)
"""Those of 20 seconds and more, the longest first; no test depends on the order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {TESTS / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))

"""`run_tasks` on every kind of scheduler: order, progress, a bounded number in flight, nobody waits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis import dask_tasks
from i2am.analysis.dask_tasks import TASKS_PER_THREAD, run_tasks
from i2am.storage.errors import ClusterError

ROOT = Path(__file__).parents[2]
WAIT = 30
"""Seconds after which something that should have happened has not."""


EVENTS: dict[str, threading.Event] = {}
BARRIERS: dict[str, threading.Barrier] = {}
BEGUN: list[int] = []
"""What tasks and tests share. A cluster in this process pickles its tasks too, but finds these by name."""


@pytest.fixture(autouse=True)
def fresh():
    EVENTS["others"] = threading.Event()
    BARRIERS["parts"] = threading.Barrier(2)
    BEGUN.clear()


def wait_for_the_others(number):
    return number if number else EVENTS["others"].wait(WAIT)


def meet_the_other_part(number):
    BARRIERS["parts"].wait(WAIT)
    return number


def fail_at_three(number):
    BEGUN.append(number)
    if number == 3:
        raise RuntimeError("task 3")


def thread_name():
    return threading.current_thread().name


@pytest.fixture(scope="module")
def cluster():
    """One worker with two threads, in this process: tasks and tests share events."""
    options = {"processes": False, "dashboard_address": ":0", "memory_limit": None}
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
        yield cluster


@pytest.fixture(params=["threads", "cluster"])
def two_threads(request, cluster):
    """Two threads of either kind are active."""
    if request.param == "threads":
        with dask.config.set(scheduler="threads", num_workers=2):
            yield
    else:
        with Client(cluster):
            yield


@pytest.fixture(params=["default", "synchronous", "pool"])
def other_scheduler(request):
    if request.param == "default":
        yield
    elif request.param == "synchronous":
        with dask.config.set(scheduler="synchronous"):
            yield
    else:
        with ThreadPoolExecutor(2) as pool, dask.config.set(scheduler=pool):
            yield


def check_order_and_progress():
    events = []
    found = run_tasks((dask.delayed(pow)(number, 2) for number in range(200)), events.append)
    assert found == [number**2 for number in range(200)]
    assert events == sorted(set(events))
    assert events[-1] == 200
    assert run_tasks([]) == []


def test_results_come_in_order_and_progress_grows(two_threads):
    check_order_and_progress()


def test_so_do_they_on_any_other_scheduler(other_scheduler):
    check_order_and_progress()


def test_a_slow_task_holds_nobody_up(two_threads):
    """The first task ends only after all others: in batches it would wait for ever."""

    def on_done(done):
        if done == 99:
            EVENTS["others"].set()

    tasks = (dask.delayed(wait_for_the_others)(number) for number in range(100))
    assert run_tasks(tasks, on_done) == [True, *range(1, 100)]


def test_tasks_are_read_as_they_are_needed(two_threads):
    done, most = 0, 0

    def source():
        nonlocal most
        for number in range(60):
            most = max(most, number + 1 - done)
            yield dask.delayed(abs)(number)

    def on_done(count):
        nonlocal done
        done = count

    run_tasks(source(), on_done)
    assert 2 < most <= 2 * TASKS_PER_THREAD


def test_what_a_task_depends_on_is_spread_over_the_workers(two_threads):
    """The two parts of one task wait for one another: one after the other, they never meet."""
    whole = dask.delayed(sum)([dask.delayed(meet_the_other_part)(number) for number in (1, 2)])
    assert run_tasks([whole]) == [3]


def test_the_first_error_comes_out_and_what_has_not_begun_is_dropped(two_threads):
    with pytest.raises(RuntimeError, match="task 3"):
        run_tasks(dask.delayed(fail_at_three)(number) for number in range(1000))
    assert 3 in BEGUN
    assert len(BEGUN) < 50
    assert run_tasks([dask.delayed(abs)(-1)]) == [1]


def test_an_error_of_the_listener_stops_the_work_too(two_threads):

    def listen(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks((dask.delayed(fail_at_three)(number) for number in range(4, 1000)), listen)
    assert 1 <= len(BEGUN) < 50
    deadline = time.monotonic() + 10  # a thread that works when the pool closes ends with its task
    while any(thread.name.startswith("i2am-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pool_that_is_lent_is_used_and_given_back():
    with ThreadPoolExecutor(2, thread_name_prefix="lent") as pool, dask.config.set(pool=pool):
        names = run_tasks(dask.delayed(thread_name, pure=False)() for _ in range(9))
        assert {name[:4] for name in names} == {"lent"}
        assert pool.submit(abs, -1).result() == 1


def test_a_cluster_that_has_lost_all_workers_is_an_error(monkeypatch):
    monkeypatch.setattr(dask_tasks, "NO_WORKER_SECONDS", 0.3)
    monkeypatch.setattr(dask_tasks, "RECOUNT_SECONDS", 0.05)
    options = {"processes": False, "dashboard_address": ":0"}
    with LocalCluster(n_workers=0, **options) as empty, Client(empty), pytest.raises(ClusterError) as caught:
        run_tasks([dask.delayed(abs)(-1)])
    assert "has no worker left; expected at least one within" in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(graph=st.lists(st.lists(st.integers(-9, 9), max_size=3), max_size=30), workers=st.integers(1, 4))
def test_any_graph_gives_what_a_loop_gives(graph, workers):
    made = [dask.delayed(sum)([dask.delayed(abs)(number) for number in numbers]) for numbers in graph]
    with dask.config.set(scheduler="threads", num_workers=workers):
        assert run_tasks(made) == [sum(abs(number) for number in numbers) for numbers in graph]


def test_the_module_loads_without_distributed():
    code = "import sys; sys.modules['distributed'] = None; import i2am.analysis.dask_tasks as t, dask\n"
    code += "print(t.run_tasks([dask.delayed(abs)(-1)]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[1]"

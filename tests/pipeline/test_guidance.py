"""Which step a denoiser call belongs to: every habit of guidance against a literal list of calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.pipeline.recording.step_tracker import StepTracker, as_layout
from i2am.pipeline.timesteps import Timestep
from i2am.storage.errors import CaptureError, InputError

schedules = st.lists(st.integers(1, 999), min_size=1, max_size=12, unique=True).map(
    lambda numbers: [float(n) for n in sorted(numbers, reverse=True)]
)


def played(tracker, schedule, each, *, keys=(None,), labels=("",), taken=None):
    """(step, rows) of the calls of a generation that makes ``each`` calls a step."""
    found = []
    for step, timestep in enumerate(schedule):
        for number in range(each):
            if taken is not None:
                taken[0] = step
            key, label = keys[number % len(keys)], labels[number % len(labels)]
            call = tracker.begin(Timestep(timestep), schedule, key, label)
            found.append((call.step, call.index, call.rows))
    return found


@given(schedules, st.sampled_from([1, 2]), st.booleans())
def test_whether_guidance_is_on_is_found(schedule, each, counted):
    """From the timesteps, or from the scheduler's own count where it keeps one."""
    taken = [0]
    tracker = StepTracker(None, ("cond", "uncond"), (lambda: taken[0]) if counted else (lambda: None))
    rows = [("cond",), ("uncond",)]
    expected = [(s, i, rows[i]) for s in range(len(schedule)) for i in range(each)]
    assert played(tracker, schedule, each, taken=taken) == expected
    assert tracker.whole_steps == len(schedule)


@given(schedules, st.integers(1, 4))
def test_calls_with_a_key_make_a_step_while_the_timestep_stays(schedule, tiles):
    keys = tuple((n, 0) for n in range(tiles))
    tracker = StepTracker(None, (), lambda: None)
    expected = [(s, i, None) for s in range(len(schedule)) for i in range(tiles)]
    assert played(tracker, schedule, tiles, keys=keys) == expected
    assert tracker.whole_steps == len(schedule)


@given(schedules, st.permutations(["cond", "uncond"]))
def test_labels_tell_the_role_in_any_order(schedule, labels):
    tracker = StepTracker(None, ("cond", "uncond"), lambda: None)
    expected = [(s, i, (labels[i],)) for s in range(len(schedule)) for i in range(2)]
    assert played(tracker, schedule, 2, labels=labels) == expected


@given(schedules)
def test_a_layout_is_taken_as_it_is(schedule):
    layout = as_layout([["uncond"], ["image", "cond"]])
    tracker = StepTracker(layout, ("cond", "uncond"), lambda: None)
    expected = [(s, i, layout[i]) for s in range(len(schedule)) for i in range(2)]
    assert played(tracker, schedule, 2) == expected


def test_repeated_timesteps_are_steps_of_their_own():
    schedule = [9.0, 6.0, 6.0, 3.0]  # a multistep scheduler's extra call
    assert [s for s, *_ in played(StepTracker(None, (), lambda: None), schedule, 1)] == [0, 1, 2, 3]
    guided = played(StepTracker(None, ("cond", "uncond"), lambda: None), schedule, 2)
    assert [s for s, *_ in guided] == [0, 0, 1, 1, 2, 2, 3, 3]
    plain = played(StepTracker(None, ("cond", "uncond"), lambda: None), schedule, 1)
    assert [s for s, *_ in plain] == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_guidance_that_ends_or_begins_midway(plan):
    """Where the scheduler counts its steps, also if timesteps stand twice."""
    schedule = [float(t) for t, _ in sorted(plan, reverse=True)]
    taken, found, expected = [0], [], []
    tracker = StepTracker(None, ("cond", "uncond"), lambda: taken[0])
    for step, (_, guided) in enumerate(sorted(plan, reverse=True)):
        taken[0] = step
        for index in range(1 + guided):
            call = tracker.begin(Timestep(schedule[step]), schedule)
            found.append((call.step, call.rows))
            expected.append((step, (("cond",), ("uncond",))[index]))
    assert found == expected
    assert tracker.whole_steps == len(schedule)


def test_what_cannot_be_told_is_asked_of_the_user():
    tracker = StepTracker(None, ("cond", "uncond"), lambda: None)
    schedule = [9.0, 9.0, 3.0]
    tracker.begin(Timestep(9.0), schedule)
    with pytest.raises(CaptureError, match=r"first two timesteps are equal.*guidance=\[\['cond'\]"):
        tracker.begin(Timestep(9.0), schedule)


def test_a_call_that_was_not_announced():
    tracker = StepTracker(None, (), lambda: None)
    tracker.begin(Timestep(9.0), [9.0, 6.0])
    with pytest.raises(CaptureError, match=r"step 1; expected 6 \(of 2 announced.*got timestep 5"):
        tracker.begin(Timestep(5.0), [9.0, 6.0])
    over = StepTracker(None, (), lambda: None)
    over.begin(Timestep(9.0), [9.0])
    with pytest.raises(CaptureError, match="expected no further step"):
        over.begin(Timestep(9.0), [9.0])


@pytest.mark.parametrize("wrong", [[], [[]], ["cond"], [["cond"], ["cond"]], [["un cond"]], 3, [[1]]])
def test_layouts_that_are_none(wrong):
    with pytest.raises(InputError, match=r"guidance; expected calls of a step"):
        as_layout(wrong)

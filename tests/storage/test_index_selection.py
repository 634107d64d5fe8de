"""Selecting indices: one behaviour for steps, heads and layers, in every package."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.storage.errors import InputError, UnknownName
from i2am.storage.index_selection import select_indices


@given(st.integers(1, 30), st.data())
def test_it_is_what_indexing_gives_in_the_order_given_each_once(count, data):
    every = list(range(count))
    chosen = data.draw(st.lists(st.integers(-count, count - 1), min_size=1))
    assert select_indices("step", chosen, count) == tuple(dict.fromkeys(every[i] for i in chosen))
    assert select_indices("step", iter(np.array(chosen)), count) == select_indices("step", chosen, count)
    assert select_indices("step", chosen[0], count) == (every[chosen[0]],)
    part = data.draw(st.slices(count))
    if every[part]:
        assert select_indices("step", part, count) == tuple(every[part])
    else:
        with pytest.raises(InputError, match="steps selects nothing; expected at least one step"):
            select_indices("step", part, count)
    assert select_indices("step", None, count) == tuple(every)


@pytest.mark.parametrize("wrong", [8, -9, [0, 8], np.int64(8)])
def test_an_index_out_of_range_is_unknown(wrong):
    with pytest.raises(UnknownName, match="there are 8, from 0 to 7"):
        select_indices("head", wrong, 8)


@pytest.mark.parametrize("wrong", ["0:2", [True, False], np.array([True]), 1.0, [0.5], "3", True])
def test_what_is_no_index_is_refused(wrong):
    with pytest.raises(InputError, match="heads; expected an index, a slice, or several indices; got"):
        select_indices("head", wrong, 8)


def test_none_at_all_is_refused():
    with pytest.raises(InputError, match="heads selects nothing"):
        select_indices("head", [], 8)

"""The table of situations: what is stored is what the kernel was given, or one line says why not."""

from __future__ import annotations

import pytest

from tests.pipeline.situations import PAGE, SITUATIONS, check, play, row

pytestmark = pytest.mark.filterwarnings("ignore")  # what diffusers says of its own


@pytest.mark.parametrize(
    "situation", [pytest.param(s, id=s.name, marks=[pytest.mark.slow] * s.slow) for s in SITUATIONS]
)
def test_a_situation_ends_as_the_table_says(tmp_path, situation):
    check(situation, play(situation, tmp_path))


def test_the_page_has_the_rows_of_the_table():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(SITUATIONS) == len({s.name for s in SITUATIONS}) >= 60
    assert [line.split("|")[1:3] for line in rows] == [row(s).split("|")[1:3] for s in SITUATIONS]

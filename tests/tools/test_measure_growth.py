"""The measurement of growth does each step with each size, and judges it. No test asserts a time."""

from __future__ import annotations

import pytest

from tools.measure_growth import CASES, IN_CLUSTERS, MOST_GROWTH, Row, measure, table, verdicts

SIZE = 600  # more than a time slice has


@pytest.mark.parametrize("case", [*CASES, *IN_CLUSTERS])
def test_each_case_measures_its_steps(case: str) -> None:
    """Each step of a case has a row with its size, a CPU time, and a longest step that is a part of it."""
    rows = measure(case, SIZE)
    assert rows
    assert {row.size for row in rows} == {SIZE}
    assert all(0 < row.longest <= row.cpu for row in rows)


def test_an_item_that_takes_longer_with_more_items_is_not_linear() -> None:
    """The verdict compares the time for an item with the two largest sizes."""
    rows = [Row("a", 10, 1.0, 0.1), Row("a", 100, 10 * MOST_GROWTH, 0.1), Row("b", 10, 1.0, 0.1)]
    rows.append(Row("b", 100, 10 * MOST_GROWTH + 1, 0.1))
    assert verdicts(rows) == {"a": True, "b": False}
    assert table(rows).count("NOT LINEAR") == 1

"""Which rows steps leave and arrive at, by hand."""

from __future__ import annotations

import numpy as np
from chains import episodes_of
from worlds import refusal

from voc_rl.data import arrived_rows, going_rows, taken_actions


def test_steps_of_three_episodes() -> None:
    """Of three rows, one row and two rows; the first ends by a termination, which no action leaves."""
    actions = np.arange(1.0, 7.0)[:, None].astype(np.float32)
    dataset = episodes_of([np.zeros(rows) for rows in (3, 1, 2)], [True, False, False], actions)
    assert arrived_rows(dataset).tolist() == [1, 2, 5]
    assert going_rows(dataset).tolist() == [0, 1, 4]
    assert taken_actions(dataset).tolist() == [[2], [3], [0], [0], [6], [0]]


def test_no_step_at_all() -> None:
    dataset = episodes_of([np.zeros(1)] * 2, [False] * 2)
    assert len(arrived_rows(dataset)) == 0
    assert (taken_actions(dataset) == 0).all()
    assert refusal(going_rows, dataset) == "No row has a step left; episodes of at least 2 rows are needed."

"""Numbers and table of the control benchmark, without a simulator."""

from __future__ import annotations

import pytest

from voc_rl.benchmarks.control_table import WHAT, interval_of, results_of, table
from voc_rl.values.statistics import student_interval


def test_interval_is_over_seeds_where_there_are_several():
    found = interval_of([[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]])
    low, high = student_interval(4.0, (4.0 / 3) ** 0.5, 3, 0.9)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((4.0, float(low), float(high)))
    assert interval_of([[1.0, 3.0]])["mean"] == 2.0


def test_table_tells_every_method_and_the_other_goal():
    cell = {"task": "walker-walk", "mix": "mixed", "seed": 0}
    records = [{"cell": {**cell, "method": method}, "result": {"returns": [1.0, 2.0]}} for method in WHAT]
    records[-1]["result"] |= {"goal": "stand", "goal_reward": [0.5, 0.7], "goal_reward_data": 0.4}
    found = results_of(records, "cpu")
    assert set(found["tasks"]["walker-walk"]["methods"]) == set(WHAT)
    assert found["tasks"]["walker-walk"]["methods"]["planner"]["mean"] == 1.5
    assert "mean reward of the goal 0.600" in table(found)

"""How long a planner takes to decide: the split of planners that sleep, and a real run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clocks import Clock

from voc_rl.benchmarks import decision_time
from voc_rl.benchmarks.decision_time import SETTINGS, Args, main, timed
from voc_rl.errors import VOCError


class Rows:
    """Fifty observations that are the numbers of their rows."""

    def __len__(self) -> int:
        return 50

    def observations(self, rows: np.ndarray) -> np.ndarray:
        return rows


class Sleeper:
    """Takes as long as it is told, for a part that is told; the first decisions ten times as long."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.each, self.clock, self.calls = seconds, clock, 0
        self.seen: list[int] = []
        self.seconds = {"see": 0.0, "propose": 0.0, "score": 0.0}

    def predict(self, observation: np.ndarray, deterministic: bool) -> None:
        assert deterministic
        seconds = self.each * (10 if self.calls < decision_time.WARM else 1)
        self.calls += 1
        self.seen.append(int(observation))
        self.clock.sleep(seconds)
        self.seconds["score"] += seconds
        self.seconds["see"] += 0.001


def test_a_decision_is_timed_alone_and_its_parts_with_it(clock: Clock) -> None:
    data: Any = SimpleNamespace(episodes=Rows())
    planners: Any = [Sleeper(0.004, clock), Sleeper(0.012, clock)]
    threads = torch.get_num_threads()
    fast, slow = timed(planners, data, 5, 1)
    torch.set_num_threads(threads)
    for found, milliseconds in ((fast, 4.0), (slow, 12.0)):
        assert [found[name] for name in ("lowest", "median", "highest", "score")] == pytest.approx([milliseconds] * 4)
    assert (fast["see"], fast["propose"]) == pytest.approx((1.0, 0.0))
    assert planners[0].seen == planners[1].seen  # the same observations for all
    assert len(set(planners[0].seen)) > 1


def test_words_and_numbers_that_do_not_fit_are_refused() -> None:
    for odd, said in (({"task": "walker"}, "task"), ({"decisions": 0}, "decisions"), ({"threads": ()}, "threads")):
        with pytest.raises(VOCError, match=said):
            main(Args(**odd))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_planners_of_control_are_timed(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = main(Args("smoke", tmp_path, decisions=2, threads=(1,), device="cpu", results=tmp_path))
    torch.set_num_threads(threads)
    assert [(row["method"], row["candidates"], row["rounds"]) for row in found["rows"]] == list(SETTINGS)
    for row in found["rows"]:
        assert row["see"] > 0
        assert row["propose"] > 0
        assert row["see"] + row["propose"] + row["score"] <= row["highest"] * 1.01
    assert json.loads((tmp_path / "decision_time.json").read_text())["rows"] == found["rows"]
    text = (tmp_path / "decision_time.md").read_text()
    assert "--scale smoke --decisions 2 --threads 1 --device cpu`" in text
    assert text.count("`planner`") == 3

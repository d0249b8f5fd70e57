"""Importance weights and doubly robust values against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chains import episodes_of

from voc_rl.benchmarks.ope_baselines import _doubly_robust, effective_starts, wis
from voc_rl.benchmarks.ope_data import R_MAX
from voc_rl.values.fitted_q import MEMBERS, FittedQ

GAMMA = 0.5  # a horizon of 7 steps
REWARDS = [np.array([0.0, 1.0, 0.5, 0.0, 1.0]), np.array([0.0, 0.2, 0.4, 0.6])]  # 4 and 3 steps from the starts


class Target:
    """A policy whose log-density of the n-th logged action is listed."""

    def __init__(self, log_density: list[float]) -> None:
        self.log_density = np.array(log_density)

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        logged = action[:, 0] > 0  # the others fill steps after an end
        assert (action == observation + 1)[logged].all()  # row t + 1 holds the action that was taken at row t
        return self.log_density[action[:, 0].astype(int)]


def logged(log_prob: list[float]) -> Any:
    episodes = episodes_of(REWARDS, [False, True])
    rows = np.arange(len(episodes), dtype=float)[:, None]
    episodes.state, episodes.unclipped_action, episodes.log_prob = rows, rows, np.array(log_prob)
    return SimpleNamespace(episodes=episodes, starts=episodes.starts)


def value(found: tuple[float, float, float]) -> float:
    return found[0] * R_MAX / (1 - GAMMA)


def wis_of(data: Any, policy: Target) -> tuple[float, float, float]:
    return wis(data, {"p": policy}, GAMMA, 0, {})["wis"]["p"]


# ratios of the first start's steps: 3, 1, 1, 1; of the second's: 1, 1/3, 1. First rows hold no action.
RATIOS = np.log([1, 3, 1, 1, 1, 1, 1, 1 / 3, 1])
SHARES = [(3, 1), (9, 1), (9, 1), (1, 0)]  # of the two starts at each step; after three the second has ended


def by_hand() -> float:
    steps = enumerate(zip(SHARES, [(1.0, 0.2), (0.5, 0.4), (0.0, 0.6), (1.0, 0.0)], strict=True))
    return sum(GAMMA**k * np.dot(w, r) / sum(w) for k, (w, r) in steps)


@pytest.mark.parametrize("rare", [0.0, -2000.0, 2000.0])
def test_weights_are_normalised_at_each_step_however_small_or_large_they_are(rare: float) -> None:
    base = np.full(9, -3.0)
    policy = Target((base + RATIOS + rare).tolist())
    data = logged(base.tolist())
    assert value(wis_of(data, policy)) == pytest.approx(by_hand())
    sizes = [sum(w) ** 2 / np.dot(w, w) for w in SHARES]
    expected = sum(GAMMA**k * size for k, size in enumerate(sizes)) / sum(GAMMA**k for k in range(7))
    assert effective_starts(data, policy, GAMMA) == pytest.approx(expected)


def test_the_behaviour_itself_gets_the_mean_of_what_was_logged() -> None:
    base = [-1.0, -2.0, -0.5, -1.0, -3.0, -1.0, -2.0, -1.0, -0.5]
    mean, low, high = wis_of(logged(base), Target(base))
    together = np.array([1.2, 0.9, 0.6]) / 2
    assert mean * R_MAX / (1 - GAMMA) == pytest.approx(together @ GAMMA ** np.arange(3) + GAMMA**3 * 1.0)
    assert low < mean < high


def fitted(value: np.ndarray, taken: np.ndarray) -> FittedQ:
    return FittedQ(*(np.repeat(x[None, :, None], MEMBERS, 2) for x in (value, taken)))


def test_doubly_robust_keeps_an_exact_q_and_without_one_is_wis() -> None:
    base = np.full(9, -3.0)
    data, policy = logged(base.tolist()), Target((base + RATIOS).tolist())
    # value of each row if what was logged always follows, and 1 after the end of the first episode, a time limit
    exact = np.zeros(9)
    exact[4] = 1.0
    for row in (3, 2, 1, 0, 7, 6, 5):
        exact[row] = data.episodes.reward[row + 1] + GAMMA * exact[row + 1]
    found = _doubly_robust(fitted(exact, exact), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(found) == pytest.approx(exact[data.starts].mean())
    none = _doubly_robust(fitted(np.zeros(9), np.zeros(9)), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(none) == pytest.approx(by_hand())
    # V of the starts counts with equal shares, errors of Q with the weights: Q too high by 1 at the first steps
    high = exact.copy()
    high[data.starts] += [1.0, 0.0]
    shifted = _doubly_robust(fitted(exact, high), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(shifted) == pytest.approx(exact[data.starts].mean() - 0.75)

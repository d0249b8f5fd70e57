"""Importance weights and doubly robust values against numbers worked out by hand, and a small exact process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chains import episodes_of
from scipy import stats

from voc_rl.benchmarks.ope_baselines import _doubly_robust, _of_members, effective_starts, wis
from voc_rl.benchmarks.ope_data import R_MAX
from voc_rl.errors import VOCError
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
    episodes.policy_id = np.zeros(len(episodes), int)
    return SimpleNamespace(episodes=episodes, starts=episodes.starts)


def value(found: tuple[float, float, float]) -> float:
    return found[0] * R_MAX / (1 - GAMMA)


# of the discounts: a return that a time limit cuts is taken to go on as it was
SEEN = 1 - GAMMA**7


def wis_of(data: Any, policy: Target) -> tuple[float, float, float]:
    return wis(data, {"p": policy}, GAMMA, 0, torch.device("cpu"))["wis"]["p"]


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
    assert value(wis_of(data, policy)) * SEEN == pytest.approx(by_hand())
    sizes = [sum(w) ** 2 / np.dot(w, w) for w in SHARES]
    expected = sum(GAMMA**k * size for k, size in enumerate(sizes)) / sum(GAMMA**k for k in range(7))
    assert effective_starts(data, policy, GAMMA) == pytest.approx(expected)


def test_the_behaviour_itself_gets_the_mean_of_what_was_logged() -> None:
    base = [-1.0, -2.0, -0.5, -1.0, -3.0, -1.0, -2.0, -1.0, -0.5]
    mean, low, high = wis_of(logged(base), Target(base))
    together = np.array([1.2, 0.9, 0.6]) / 2
    assert mean * R_MAX / (1 - GAMMA) * SEEN == pytest.approx(together @ GAMMA ** np.arange(3) + GAMMA**3 * 1.0)
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
    assert found[1:] == pytest.approx([found[0]] * 2)  # no errors to resample
    none = _doubly_robust(fitted(np.zeros(9), np.zeros(9)), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(none) == pytest.approx(by_hand())
    # V of the starts counts with equal shares, errors of Q with the weights: Q too high by 1 at the first steps
    high = exact.copy()
    high[data.starts] += [1.0, 0.0]
    shifted = _doubly_robust(fitted(exact, high), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(shifted) == pytest.approx(exact[data.starts].mean() - 0.75)


def test_every_row_begins_a_window_and_first_rows_count_as_among_the_starts() -> None:
    base = np.full(9, -3.0)
    data, policy = logged(base.tolist()), Target((base + RATIOS).tolist())
    data.starts = np.array([0, 2, 7, 7])
    # windows from rows 1, 2, 3, 6 and 7 that reach a step: weights by episode, and weighted sums of rewards
    others = [((3, 4 / 3), 0.5 + 1.0 + 0.4 / 3 + 0.6), ((2, 1 / 3), 1.0 + 0.6 / 3), ((1, 0), 1.0)]
    firsts = [(1.0, 0.2), (0.5, 0.4), (0.0, 0.6), (1.0, 0.0)]
    expected, shares = GAMMA**3 * 1.0, [np.array([1.0, 0.0])]  # a first row alone reaches the fourth step
    for k, (w, brought) in enumerate(others):
        expected += GAMMA**k * (0.25 * np.dot(SHARES[k], firsts[k]) / sum(SHARES[k]) + 0.75 * brought / sum(w))
        shares.append(0.25 * np.array(SHARES[k]) / sum(SHARES[k]) + 0.75 * np.array(w) / sum(w))
    found = wis_of(data, policy)
    assert value(found) * SEEN == pytest.approx(expected)
    none = _doubly_robust(fitted(np.zeros(9), np.zeros(9)), {"p": policy}, data, GAMMA, 0)["p"]
    assert value(none) == pytest.approx(expected)
    sizes = [1 / np.square(w).sum() for w in [*shares[1:], shares[0]]]
    expected = sum(GAMMA**k * size for k, size in enumerate(sizes)) / sum(GAMMA**k for k in range(7))
    assert effective_starts(data, policy, GAMMA) == pytest.approx(expected)


def test_other_rows_count_by_the_policy_that_acts_there() -> None:
    base = np.full(9, -3.0)
    data, policy = logged(base.tolist()), Target(base.tolist())
    data.episodes.policy_id = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0])  # who led to a row
    data.starts = np.array([2, 6])  # windows from rows 1, 2, 3 and 6, where the second acts; not from row 7
    steps = [(0.5 + 0.0 + 1.0 + 0.4) / 4, (0.0 + 1.0 + 0.6) / 3, 1.0]
    assert value(wis_of(data, policy)) * SEEN == pytest.approx(steps @ GAMMA ** np.arange(3))
    data.starts = np.array([2, 6, 7, 7])  # row 7 alone is where the first acts
    steps = [(steps[0] + 0.6) / 2, *steps[1:]]  # and only for a step
    assert value(wis_of(data, policy)) * SEEN == pytest.approx(steps @ GAMMA ** np.arange(3))


def test_the_interval_of_fitted_q_is_the_spread_of_its_outputs_and_the_noise_of_their_mean() -> None:
    outputs = np.random.default_rng(0).normal(3.0, 0.5, (1, 9, MEMBERS)).astype(np.float32)
    data = logged([-3.0] * 9)
    mean, low, high = _of_members(FittedQ(outputs, outputs), {"p": None}, data, GAMMA)["p"]
    unit, own = (1 - GAMMA) / R_MAX, outputs[0, data.starts].mean(0)
    assert mean == pytest.approx(own.mean() * unit)
    half = stats.t.ppf(0.95, MEMBERS - 1) * own.std(ddof=1) * np.sqrt(1 + 1 / MEMBERS) * unit
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_data_without_what_weights_need_are_refused() -> None:
    data = logged([-3.0] * 9)
    data.episodes.policy_id = None
    with pytest.raises(VOCError, match="no policy_id"):
        wis_of(data, Target([-3.0] * 9))
    data.episodes.log_prob = None
    with pytest.raises(VOCError, match="need log_prob"):
        wis_of(data, Target([-3.0] * 9))


class Process:
    """Three states, two actions, rewards of the state arrived at; a policy, and data of a uniform behaviour."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.P, self.reward = rng.dirichlet([0.5] * 3, size=(3, 2)), np.array([0.0, 0.3, 1.0])
        self.policy = np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        self.guess = rng.random((3, 2))  # a Q that is wrong

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        return np.log(self.policy[observation[:, 0].astype(int), action[:, 0].astype(int)])

    def values(self) -> np.ndarray:
        chain = np.einsum("sa,sat->st", self.policy, self.P)
        return np.linalg.solve(np.eye(3) - GAMMA * chain, chain @ self.reward)

    def logged(self, episodes: int, seed: int, steps: int = 20) -> Any:
        """Episodes that all begin in state 0; a quarter of the starts are first rows."""
        rng = np.random.default_rng(seed)
        states, actions = np.zeros((episodes, steps + 1), int), rng.integers(2, size=(episodes, steps + 1))
        for t in range(steps):
            odds = self.P[states[:, t], actions[:, t + 1]].cumsum(1)
            states[:, t + 1] = (rng.random((episodes, 1)) > odds).sum(1).clip(max=2)
        reward = self.reward[states]
        reward[:, 0] = 0.0
        dataset = episodes_of(list(reward), [False] * episodes)
        dataset.state, dataset.unclipped_action = states.reshape(-1, 1).astype(float), actions.reshape(-1, 1)
        dataset.log_prob, dataset.policy_id = np.full(states.size, np.log(0.5)), np.zeros(states.size, int)
        return SimpleNamespace(episodes=dataset, starts=np.concatenate([dataset.starts[:1], [3, 7, 11]]))

    def truth(self, data: Any) -> float:
        """V of the starts' distribution: first rows, and the other rows of the data that have a step left."""
        values, dataset = self.values()[data.episodes.state[:, 0].astype(int)], data.episodes
        others = (dataset.steps_left > 0) & (dataset.step_type > 0)
        return float(0.25 * values[dataset.starts].mean() + 0.75 * values[others].mean())

    def errors(self, episodes: int, seed: int) -> tuple[float, float]:
        """Of wis, and of dr with the wrong Q where V is known of the rows that starts are drawn from."""
        data = self.logged(episodes, seed)
        rows = data.episodes.state[:, 0].astype(int)
        taken = self.guess[rows, np.append(data.episodes.unclipped_action[1:, 0], 0)]
        guess = (self.policy * self.guess).sum(1)[rows]
        robust = value(_doubly_robust(fitted(guess, taken), {"p": self}, data, GAMMA, 0)["p"])
        others = (data.episodes.steps_left > 0) & (data.episodes.step_type > 0)
        drawn = 0.25 * guess[data.episodes.starts].mean() + 0.75 * guess[others].mean()  # of many starts, not of four
        found = value(wis(data, {"p": self}, GAMMA, 0, torch.device("cpu"))["wis"]["p"])
        return found - self.truth(data), robust - guess[data.starts].mean() + drawn - self.truth(data)


def test_both_find_the_values_of_a_small_process_as_its_data_grow() -> None:
    few = np.abs([Process().errors(10, seed) for seed in range(8)]).mean(0)
    many = np.abs([Process().errors(1000, seed) for seed in range(8)]).mean(0)
    assert (few > 0.03).all()
    assert (many < 0.01).all()

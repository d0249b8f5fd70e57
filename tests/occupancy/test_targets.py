"""How targets are drawn: against enumerations and sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chains import episodes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.occupancy import default_n, draw_targets, n_step_returns
from voc_rl.values.truth import discounted_returns, horizon

DRAWS = 60_000


def exact(left: int, terminated: bool, gamma: float, n: int) -> dict[tuple[str, int], float]:
    """Probability of every target of a row with ``left`` steps left: (kind, steps ahead)."""
    chances: dict[tuple[str, int], float] = {}
    for k in range(1, 2000):
        p = (1 - gamma) * gamma ** (k - 1)
        if k <= min(n, left):
            outcome = ("row", k)
        elif terminated and left <= n:
            outcome = ("end", 0)
        else:
            outcome = ("bootstrap", min(n, left))
        chances[outcome] = chances.get(outcome, 0.0) + p
    return chances


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(("gamma", "n"), [(0.5, 1), (0.5, 3), (0.9, 4), (0.9, 50), (0.0, 2), (0.95, 1)])
def test_every_outcome_has_its_probability(gamma: float, n: int, terminated: bool) -> None:
    rows = 7
    dataset = episodes_of([np.zeros(5), np.zeros(rows), np.zeros(5)], [not terminated, terminated, not terminated])
    rng = np.random.default_rng(0)
    for t in range(rows - 1):
        start = 5 + t
        targets = draw_targets(dataset, np.array([start]), gamma, n, DRAWS, rng)
        assert targets.row.shape == targets.bootstrap.shape == (1, DRAWS)
        expected = exact(rows - 1 - t, terminated, gamma, n)
        row, bootstrap = targets.row[0], targets.bootstrap[0]
        assert not ((row >= 0) & (bootstrap >= 0)).any()
        found = {
            **{
                ("row", int(r) - start): int(c)
                for r, c in zip(*np.unique(row[row >= 0], return_counts=True), strict=True)
            },
            **{
                ("bootstrap", int(r) - start): int(c)
                for r, c in zip(*np.unique(bootstrap[bootstrap >= 0], return_counts=True), strict=True)
            },
            ("end", 0): int(((row < 0) & (bootstrap < 0)).sum()),
        }
        for outcome in {*found, *expected}:
            p, count = expected.get(outcome, 0.0), found.get(outcome, 0)
            spread = math.sqrt(DRAWS * p * (1 - p))
            assert abs(count - DRAWS * p) <= 4.5 * spread + 1e-9, (t, outcome, p, count / DRAWS)


@pytest.mark.parametrize(("gamma", "n"), [(0.9, 1), (0.9, 40), (0.95, 80), (0.5, 2)])
def test_bootstrapped_share_is_gamma_to_the_n(gamma: float, n: int) -> None:
    dataset = episodes_of([np.zeros(500)], [False])
    targets = draw_targets(dataset, np.arange(400), gamma, n, 300, np.random.default_rng(1))
    share, p = (targets.bootstrap >= 0).mean(), gamma**n
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 120_000)
    assert (
        targets.bootstrap[targets.bootstrap >= 0] - np.arange(400)[np.nonzero(targets.bootstrap >= 0)[0]] == n
    ).all()


@given(
    lengths=st.lists(st.integers(2, 8), min_size=1, max_size=5),
    ends=st.lists(st.booleans(), min_size=5, max_size=5),
    gamma=st.floats(0.0, 0.99),
    n=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_targets_never_cross_an_episode(lengths: list[int], ends: list[bool], gamma: float, n: int, seed: int) -> None:
    dataset = episodes_of([np.zeros(k) for k in lengths], ends[: len(lengths)])
    rows = np.flatnonzero(dataset.steps_left > 0)
    targets = draw_targets(dataset, rows, gamma, n, 16, np.random.default_rng(seed))
    episode = dataset.episode[rows][:, None]
    for later in (targets.row, targets.bootstrap):
        used = later >= 0
        assert (dataset.episode[later] == episode)[used].all()
        assert (later > rows[:, None])[used].all()
        assert (later - rows[:, None] <= n)[used].all()
    assert not dataset.terminal[targets.bootstrap[targets.bootstrap >= 0]].any()  # nothing follows a termination
    ended = (targets.row < 0) & (targets.bootstrap < 0)
    true_end = dataset.terminal[dataset.ends[dataset.episode[rows]] - 1] & (dataset.steps_left[rows] <= n)
    assert not ended[~true_end].any()


def test_after_a_termination_comes_end_alone() -> None:
    dataset = episodes_of([np.zeros(3)], [True])
    targets = draw_targets(dataset, np.array([2]), 0.9, 5, 100, np.random.default_rng(0))
    assert (targets.row == -1).all()
    assert (targets.bootstrap == -1).all()


def test_draws_repeat_with_their_generator() -> None:
    dataset = episodes_of([np.zeros(30)], [False])
    one, two, other = (draw_targets(dataset, np.arange(20), 0.8, 3, 4, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.row, two.row)
    assert (one.row != other.row).any()


@pytest.mark.parametrize(("gamma", "n", "said"), [(1.0, 1, "gamma is 1.0"), (-0.1, 1, "gamma"), (0.5, 0, "n is 0")])
def test_bad_arguments(gamma: float, n: int, said: str) -> None:
    dataset = episodes_of([np.zeros(3)], [False])
    with pytest.raises(VOCError, match=said):
        draw_targets(dataset, np.array([0]), gamma, n, 1, np.random.default_rng(0))


def test_default_n_leaves_a_small_share_to_the_target_network() -> None:
    """4 / (1 - gamma): about one in fifty, exp(-4), or fewer."""
    assert [default_n(gamma) for gamma in (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)] == [4, 8, 20, 40, 80, 400]
    for gamma in (0.5, 0.8, 0.9, 0.95, 0.99):
        assert gamma ** default_n(gamma) < 0.02


def random_dataset(seed: int) -> tuple[Episodes, list[np.ndarray], list[bool]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, size=6)
    rewards = [np.r_[0.0, rng.normal(size=k - 1)].astype(np.float32) for k in lengths]
    ends = [bool(b) for b in rng.integers(2, size=6)]
    return episodes_of(rewards, ends), rewards, ends


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "n"), [(0.9, 1), (0.9, 4), (0.7, 30), (0.0, 3)])
def test_n_step_returns_by_brute_force(seed: int, gamma: float, n: int) -> None:
    dataset, rewards, ends = random_dataset(seed)
    found = n_step_returns(dataset, gamma, n)
    row = 0
    for reward, terminated in zip(rewards, ends, strict=True):
        first, last = row, row + len(reward) - 1
        for t in range(len(reward)):
            m = min(n, len(reward) - 1 - t)
            assert found.partial[row] == pytest.approx(
                sum(gamma ** (k - 1) * reward[t + k] for k in range(1, m + 1)), abs=1e-5
            )
            assert found.bootstrap[row] == first + t + m
            weight = 0.0 if terminated and first + t + m == last else gamma**m
            assert found.weight[row] == pytest.approx(weight, abs=1e-7)
            row += 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.9, 0.0, 0.99])
def test_discounted_returns_by_brute_force(seed: int, gamma: float) -> None:
    dataset, rewards, ends = random_dataset(seed)
    returns, known = discounted_returns(dataset, gamma)
    row = 0
    for reward, terminated in zip(rewards, ends, strict=True):
        for t in range(len(reward)):
            left = len(reward) - 1 - t
            reached = [(len(other) - 1 - t, over) for other, over in zip(rewards, ends, strict=True) if len(other) > t]
            unknown = sum(not over and ahead < horizon(gamma) for ahead, over in reached)
            ending = sum(over and ahead < horizon(gamma) for ahead, over in reached)
            few = 0.05 * len(reached)
            lasting = left >= horizon(gamma) and min(unknown, ending) <= few
            assert known[row] == (unknown <= few if terminated else lasting)
            seen = sum(gamma ** (k - 1) * float(reward[t + k]) for k in range(1, left + 1))
            weight = 1 - gamma**left if known[row] and not terminated else 1.0
            assert returns[row] == pytest.approx(seen / weight)
            row += 1


@pytest.mark.parametrize(("gamma", "steps"), [(0.9, 44), (0.95, 90), (0.99, 459), (0.5, 7), (0.0, 1), (0.1, 3)])
def test_horizon(gamma: float, steps: int) -> None:
    assert horizon(gamma) == steps
    if gamma > 0.1:
        assert gamma**steps < 0.01 <= gamma ** (steps - 1)


@pytest.mark.parametrize(("gamma", "H"), [(0.9, 44), (0.95, 90)])
def test_returns_are_known_up_to_the_cut(gamma: float, H: int) -> None:
    """t <= T - H where time limits cut episodes; everywhere where all terminated."""
    rows = 120
    T = rows - 1
    dataset = episodes_of([np.ones(rows), np.ones(rows), np.ones(20)], [False, True, True])
    returns, known = discounted_returns(dataset, gamma)
    for first in (0, rows):
        np.testing.assert_array_equal(np.flatnonzero(known[first : first + rows]), np.arange(T - H + 1))
    np.testing.assert_array_equal(known[2 * rows :], np.arange(20) <= T - H)
    ended = discounted_returns(episodes_of([np.ones(rows), np.ones(20)], [True, True]), gamma)
    assert ended[1].all()
    # a constant reward of one: what lies beyond the cut is not missing
    np.testing.assert_allclose(returns[: T - H + 1], 1 / (1 - gamma))
    assert returns[rows + T - H] == pytest.approx((1 - gamma**H) / (1 - gamma))  # of one that terminated
    assert returns[rows + T] == 0.0
    with pytest.raises(VOCError, match="gamma is 1"):
        discounted_returns(dataset, 1)

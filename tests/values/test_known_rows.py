"""Which returns of logged episodes are known: their mean has to be the value, whatever ended the episodes."""

from __future__ import annotations

import numpy as np
import pytest

from voc_rl.values import horizon, known_rows, returns_to_go


@pytest.mark.parametrize(("gamma", "hazard", "limit"), [(0.95, 0.01, 100), (0.95, 0.01, 200), (0.9, 0.002, 120)])
def test_known_returns_are_not_chosen_by_their_outcome(gamma: float, hazard: float, limit: int) -> None:
    """A reward of 1 for each step, an end with the same chance at each: every state is worth the same."""
    rng, value = np.random.default_rng(0), 1 / (1 - gamma * (1 - hazard))
    lives = rng.geometric(hazard, 3000)
    steps, terminated = np.minimum(lives, limit), lives <= limit
    rows = known_rows(steps, terminated, horizon(gamma))
    returns = [returns_to_go(np.ones(n + 1), np.r_[np.ones(n), 1.0 - over], gamma) for n, over in
               zip(steps, terminated, strict=True)]  # fmt: skip
    known = [r[:-1][k[:-1]] for r, k in zip(returns, rows, strict=True)]
    means, counts = np.array([k.sum() for k in known]), np.array([len(k) for k in known])
    mean = means.sum() / counts.sum()
    stderr = np.sqrt(((means - mean * counts) ** 2).sum()) / counts.sum()
    assert abs(mean - value) < 3 * stderr + 0.01 * value
    assert stderr < 0.02 * value
    everything = np.concatenate([r[:-1] if over else r[: max(n - horizon(gamma) + 1, 0)] for r, n, over in
                                 zip(returns, steps, terminated, strict=True)])  # fmt: skip
    assert value - everything.mean() > 5 * stderr  # what counting all that is known would say


def test_which_rows_count_by_hand() -> None:
    cut, ended = 10, [4, 9]
    rows = known_rows(np.array([cut, *ended]), np.array([False, True, True]), 3)
    assert [row.tolist() for row in rows] == [
        [True] * 8 + [False] * 3,  # three steps left, or more
        [True] * 5,
        [True] * 8 + [False] * 2,  # at step 8 one of two that came so far is unknown
    ]
    rows = known_rows(np.array(ended), np.array([True, True]), 3)
    assert all(row.all() for row in rows)
    assert [len(row) for row in rows] == [5, 10]
    # one in thirty is cut so early that it tells little: the others count
    rows = known_rows(np.array([2, *[5] * 29]), np.array([False, *[True] * 29]), 100)
    assert not rows[0].any()
    assert all(row.all() for row in rows[1:])
    # one in thirty terminates: what lived on long enough is no choice of outcomes
    rows = known_rows(np.array([2, *range(5, 34)]), np.array([True, *[False] * 29]), 6)
    assert rows[0].tolist() == [True, False, False]  # at step 1 two of thirty are unknown
    assert [int(row.sum()) for row in rows[1:]] == [max(n - 5, 0) for n in range(5, 34)]
    # of a hundred, ninety are cut too early to tell; of the others four in ten terminate: who lived on would count
    # because they did
    steps, terminated = np.repeat([2, 3, 20], [90, 4, 6]), np.repeat([False, True, False], [90, 4, 6])
    rows = known_rows(steps, terminated, 10)
    assert not any(row.any() for row in rows[:90])
    # from step 3 on, where those are past, all that came so far count
    assert all(row.tolist() == [False] * 3 + [True] for row in rows[90:94])
    assert all(row.tolist() == [False] * 3 + [True] * 8 + [False] * 10 for row in rows[94:])
    assert known_rows(np.zeros(0, np.int64), np.zeros(0, bool), 3) == []


@pytest.mark.parametrize(("kind", "hazard"), [("mean 12", 0.004), ("mean 20", 0.0026), ("few long", 0.0029)])
def test_episodes_cut_early_hide_no_ends(kind: str, hazard: float) -> None:
    """A reward of 1 for each step, of which few limits allow the 44 that the horizon needs."""
    rng, count, gamma = np.random.default_rng(0), 20_000, 0.9
    if kind == "few long":
        limits = np.where(rng.random(count) < 0.95, 15, 60)
    else:
        limits = rng.geometric(1 / float(kind.removeprefix("mean ")), count)
    lives = rng.geometric(hazard, count)
    steps, terminated = np.minimum(lives, limits), lives <= limits
    known = [
        (1 - gamma ** (n - np.flatnonzero(row[:-1])) * over) / (1 - gamma)  # completed where a limit cut it
        for n, over, row in zip(steps, terminated, known_rows(steps, terminated, horizon(gamma)), strict=True)
    ]
    returns = np.concatenate(known)
    if kind != "few long":  # what was seen that long lived on; so late that few are left, some rows slip through
        assert len(returns) < 100 < 0.001 * steps.sum()
        return
    # at step 16, where the shorter limits are past, nothing is chosen by its outcome
    value = 1 / (1 - gamma * (1 - hazard))
    assert len(returns) > 900
    assert abs(returns.mean() - value) < 3 * returns.std() / len(returns) ** 0.5 < 0.12 < 0.5 * (10 - value)


def ring_episodes(limits: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Walks on a ring of 12 cells until cell 6, which pays 1 and ends them, or a limit; who ended; exact values."""
    cells, moves, gamma = 12, np.array([-1, 0, 1]), 0.9
    step = sum(q * np.roll(np.eye(cells), d, 1) for d, q in zip(moves, (0.3, 0.4, 0.3), strict=True))
    going = np.arange(cells) != 6
    exact = np.linalg.solve(np.eye(cells) - gamma * step * going, step[:, 6])
    walks = []
    for limit in limits:
        at = [int(rng.choice(np.flatnonzero(going)))]
        while len(at) <= limit and at[-1] != 6:
            at.append((at[-1] + int(rng.choice(moves, p=(0.3, 0.4, 0.3)))) % cells)
        walks.append(np.array(at))
    return walks, np.array([walk[-1] == 6 for walk in walks]), np.where(going, exact, 0.0)


@pytest.mark.parametrize("kind", ["one", "early", "uniform", "wide"])
def test_known_returns_have_the_exact_mean_whatever_the_time_limits_are(kind: str) -> None:
    rng, count = np.random.default_rng(1), 2000
    limits = {
        "one": np.full(count, 100), "early": np.where(rng.random(count) < 0.1, 20, 100),
        "uniform": rng.integers(50, 151, count), "wide": rng.integers(1, 200, count),
    }[kind]  # fmt: skip
    walks, ended, exact = ring_episodes(limits, rng)
    rows = known_rows(np.array([len(walk) - 1 for walk in walks]), ended, horizon(0.9))
    if kind == "wide":  # no step at which nearly all limits are far: what is known would be what lived on
        assert not any(row[:-1].any() for row in rows)
        return
    found, right = [], []
    for walk, over, row in zip(walks, ended, rows, strict=True):
        paid = (walk == 6).astype(float)
        returns = returns_to_go(paid, np.r_[np.ones(len(walk) - 1), 1.0 - over], 0.9)
        found.append(returns[:-1][row[:-1]].sum())
        right.append(exact[walk[:-1]][row[:-1]].sum())
    gap = np.array(found) - np.array(right)
    assert sum(int(row.sum()) for row in rows) > 3000
    assert abs(gap.sum()) < 3 * np.sqrt(count) * gap.std() + 0.002 * sum(int(row.sum()) for row in rows)
    assert sum(right) > 50 * np.sqrt(count) * gap.std() / 3 / 10

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
    assert known_rows(np.zeros(0, np.int64), np.zeros(0, bool), 3) == []

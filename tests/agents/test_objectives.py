"""Advantages from logged returns against exact values of a small chain, with episodes that time limits cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import episodes_of

from voc_rl.agents.objectives import linear_residual, return_advantages, trace_advantages
from voc_rl.errors import VOCError

GAMMA, STATES = 0.9, 3
REWARD = np.array([0.2, -0.5, 1.0])  # on arrival at a state of the cycle 0, 1, 2, 0, ...


def cycle(start: int, rows: int) -> np.ndarray:
    return (start + np.arange(rows)) % STATES


def one_hot(walks: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.eye(STATES, dtype=np.float32)[np.concatenate(walks)])


def test_a_cut_return_goes_on_with_the_value_of_its_last_row():
    """On a cycle every action is the only one, so that no advantage differs from zero, wherever episodes are cut."""
    walks = [cycle(s, rows) for s, rows in ((0, 5), (1, 9), (2, 4), (0, 2))]
    dataset = episodes_of([np.where(np.arange(len(w)), REWARD[w], 0.0) for w in walks], [False] * 4)
    found = return_advantages(dataset, one_hot(walks), GAMMA)
    assert np.abs(found).max() < 1e-2
    # as terminations, the same rewards are returns that end: rows near the ends are worth less than others of the state
    ended = episodes_of([np.where(np.arange(len(w)), REWARD[w], 0.0) for w in walks], [True] * 4)
    assert np.abs(return_advantages(ended, one_hot(walks), GAMMA)).max() > 0.5


def test_advantages_are_returns_less_their_mean_by_state():
    rng = np.random.default_rng(0)
    walks = [cycle(int(s), 6) for s in rng.integers(STATES, size=30)]
    rewards = [np.where(np.arange(6), rng.normal(size=6), 0.0) for _ in walks]
    dataset = episodes_of(rewards, [True] * 30)
    returns = np.array([[sum(GAMMA**k * x for k, x in enumerate(r[t + 1 :])) for t in range(6)] for r in rewards])
    states, going = np.stack(walks), np.arange(6) < 5
    expected = np.zeros_like(returns)
    for state in range(STATES):
        there = (states == state) & going
        expected[there] = returns[there] - returns[there].mean()
    found = return_advantages(dataset, one_hot(walks), GAMMA).reshape(30, 6)
    np.testing.assert_allclose(found[:, :5], expected[:, :5], atol=1e-3)


def test_bad_input_of_returns_is_refused():
    with pytest.raises(VOCError, match="gamma"):
        return_advantages(episodes_of([np.zeros(3)], [True]), torch.zeros(3, 2), 1.0)
    with pytest.raises(VOCError, match="at least 2 rows"):
        return_advantages(episodes_of([np.zeros(1)], [True]), torch.zeros(1, 2), 0.9)


def test_generalised_advantages_are_discounted_sums_of_td_errors():
    rng = np.random.default_rng(1)
    rows, terminal = (4, 6, 2), [True, False, False]
    rewards = [np.where(np.arange(n), rng.normal(size=n), 0.0) for n in rows]
    dataset, values = episodes_of(rewards, terminal), rng.normal(size=sum(rows))
    v, logged = np.split(values, np.cumsum(rows)[:-1]), dict.fromkeys((0.0, 0.7, 1.0), np.zeros(0))
    for trace in logged:
        for r, own, ends in zip(rewards, v, terminal, strict=True):
            after = np.append(own[1:-1], 0.0 if ends else own[-1])
            delta = r[1:] + GAMMA * after - own[:-1]
            sums = [sum((GAMMA * trace) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(delta))]
            logged[trace] = np.concatenate([logged[trace], sums, [0.0]])
        np.testing.assert_allclose(trace_advantages(dataset, values, GAMMA, trace), logged[trace], atol=1e-6)
    # at 1: the return, which goes on with V where a time limit cuts it, less V
    returns = rewards[1][1:] @ GAMMA ** np.arange(5) + GAMMA**5 * v[1][-1]
    assert trace_advantages(dataset, values, GAMMA, 1.0)[4] == pytest.approx(returns - v[1][0])


def test_bad_input_of_generalised_advantages_is_refused():
    dataset = episodes_of([np.zeros(3)], [True])
    with pytest.raises(VOCError, match=r"trace is 1\.5"):
        trace_advantages(dataset, np.zeros(3), 0.9, 1.5)
    with pytest.raises(VOCError, match=r"Values of shape \(2,\) have to be one for each of the 3 rows"):
        trace_advantages(dataset, np.zeros(2), 0.9, 1.0)


def test_residuals_have_no_linear_part_left_where_they_were_fitted():
    rng = np.random.default_rng(2)
    features, rows = torch.from_numpy(rng.normal(size=(400, 3)) * [1, 5, 0.1] + 4), np.arange(0, 400, 2)
    noise = rng.normal(size=400)
    found = linear_residual(3 + features.numpy() @ [1.0, -0.5, 20.0] + noise, features, rows)
    expected = (
        noise
        - np.column_stack([features, np.ones(400)])
        @ np.linalg.lstsq(np.column_stack([features, np.ones(400)])[rows], noise[rows], rcond=None)[0]
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)

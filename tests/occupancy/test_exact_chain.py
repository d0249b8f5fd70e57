"""The trained network against Markov chains whose occupancy and values are known exactly.

States are codes. The answer is the network's own softmax, so nothing is sampled. n-step targets are compared with
the chain that made the walks (1.2 million rows); one-step targets see transitions alone, so they are compared with
the transition frequencies of their (smaller) dataset, which leaves no sampling error of the data in the comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from chains import episodes_of, occupancy, ring, total_variation, values
from occupancy_table import all_logits
from rings import REWARD, S, check, distribution, empirical, loop, ring_data, trained
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.occupancy import OccupancyTraining, compose, sample_futures


@pytest.mark.parametrize("gamma", [0.5, 0.95])
def test_n_step_targets(gamma: float) -> None:
    dataset, states = ring_data(2000)
    config = OccupancyTraining(gamma=gamma, ema=0.985, futures=32, loop=loop(400, 5e-3))
    model, _ = trained(dataset, states.reshape(-1, 1), config)
    check(distribution(model), ring(), gamma)


@pytest.mark.parametrize(
    ("gamma", "config"),
    [
        (0.5, OccupancyTraining(gamma=0.5, n=1, ema=0.95, futures=32, loop=loop(400, 5e-3))),
        pytest.param(
            0.95,
            OccupancyTraining(gamma=0.95, n=1, ema=0.985, futures=16, refill=4, loop=loop(2600, 4e-3)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_step_targets(gamma: float, config: OccupancyTraining) -> None:
    dataset, states = ring_data(400)
    model, _ = trained(dataset, states.reshape(-1, 1), config)
    check(distribution(model), empirical(states), gamma)


@pytest.mark.slow
def test_two_tokens_a_state() -> None:
    """State s written as (s // 4, s % 4): the joint of both tokens, and samples of it."""
    gamma = 0.9
    dataset, states = ring_data(2000)
    pairs = np.stack([states.ravel() // 4, states.ravel() % 4], 1)
    config = OccupancyTraining(gamma=gamma, ema=0.98, futures=8, loop=loop(450, 3e-3))
    model, _ = trained(dataset, pairs, config, codebook=4, width=32, layers=2)
    contexts = torch.tensor([[s // 4, s % 4] for s in range(S)])
    futures = torch.tensor([*itertools.product(range(4), repeat=2)])  # 16 pairs; only the first 12 are states
    with torch.no_grad():
        log_p = all_logits(model, model.prefix(contexts), futures.expand(S, -1, -1)).log_softmax(-1)
    log_p = log_p.gather(-1, futures.expand(S, -1, -1)[..., None])[..., 0].sum(-1)
    joint = log_p.exp().double().numpy()
    assert joint[:, S:].sum(1).max() < 0.01
    check(np.append(joint[:, :S], joint[:, S:].sum(1, keepdims=True) * 0, 1), ring(), gamma)
    drawn = sample_futures(model, contexts, None, 20_000, torch.Generator().manual_seed(0))
    found = (
        np.stack([np.bincount((4 * d[:, 0] + d[:, 1]).clamp(max=S - 1).numpy(), minlength=S) for d in drawn]) / 20_000
    )
    assert total_variation(found, occupancy(ring(), gamma)).max() < 0.05


# --- a chain that ends: from state 5 the walk goes to state 11 with probability .5, and ends there

LAST = 11


def ending_chain() -> np.ndarray:
    """(13, 13): 11 states on a ring, the last one terminal, and END, which follows the terminal state."""
    Q = np.zeros((S + 1, S + 1))
    Q[:LAST, :LAST] = ring(LAST)
    Q[5] *= 0.5
    Q[5, LAST] = 0.5
    Q[LAST, S] = Q[S, S] = 1.0
    return Q


@cache
def ending_data(limit: int = 25, episodes: int = 12_000) -> tuple[Episodes, np.ndarray]:
    """Walks of the ending chain; most are cut by a time limit of ``limit`` rows, the others terminate."""
    rng = np.random.default_rng(1)
    rewards, ended, states = [], [], []
    Q = ending_chain()[:LAST].cumsum(1)
    for start in rng.integers(LAST, size=episodes):  # no walk starts at its end
        path = [int(start)]
        draws = rng.random(limit)
        while len(path) < limit and path[-1] != LAST:
            path.append(int(np.searchsorted(Q[path[-1]], draws[len(path)], side="right")))
        states.append(np.array(path))
        rewards.append(np.r_[0.0, REWARD[path[1:]]])
        ended.append(path[-1] == LAST)
    return episodes_of(rewards, ended), np.concatenate(states)


@pytest.mark.parametrize("n", [None, 1])
def test_a_chain_that_ends(n: int | None) -> None:
    gamma = 0.9
    dataset, states = ending_data()
    terminated = dataset.terminal[dataset.ends - 1]
    assert 0.2 < terminated.mean() < 0.8  # both kinds of end are there
    config = OccupancyTraining(gamma=gamma, n=n, ema=0.97, futures=16, refill=8, loop=loop(500, 8e-3))
    model, _ = trained(dataset, states[:, None], config)
    found, Q = distribution(model), ending_chain()
    exact = occupancy(Q, gamma)[:S]
    distance = total_variation(found, exact)
    ends = np.abs(found[:, S] - exact[:, S])
    reward = np.append(REWARD, 0.0)
    V, own = values(Q, reward, gamma)[:S], found @ reward / (1 - gamma)
    error = np.abs(own - V) / np.ptp(V)
    print(f"n {n}: total variation {distance.max():.4f}, END {ends.max():.4f}, value error {error.max():.4f}")
    assert distance.max() < 0.05
    assert ends.max() < 0.03
    assert error.max() < 0.04 if n == 1 else error.max() < 0.03
    assert exact[:LAST, S].max() > 0.3  # END is no small part
    assert found[LAST, S] > 0.96  # nothing but END follows the terminal state
    assert V[LAST] == 0.0
    # hops never leave END, and pass through the terminal state into it
    futures = compose(model, torch.arange(S)[:, None], None, 4000, gamma, 0.95, torch.Generator().manual_seed(0))
    composed = np.stack([np.bincount(f[:, 0].numpy(), minlength=S + 1) for f in futures]) / 4000
    assert total_variation(composed, occupancy(Q, 0.95)[:S]).max() < 0.07


def worst(model_value: Callable[[Tensor], Tensor], V: np.ndarray) -> float:
    own = model_value(torch.arange(S)[:, None]).double().numpy()
    return float(np.abs(own - V).max() / np.ptp(V))


@pytest.mark.parametrize(
    ("n", "limit", "refill"), [(None, 25, 2), (5, 25, 2), pytest.param(None, 8, 8, marks=pytest.mark.slow)]
)
def test_the_value_head_learns_exact_values(n: int | None, limit: int, refill: int) -> None:
    """The mean of the ensemble, with returns to the default n, with short ones that bootstrap, and with episodes that
    are cut long before n."""
    gamma = 0.9
    dataset, states = ending_data(limit)
    config = OccupancyTraining(gamma=gamma, n=n, ema=0.97, futures=1, refill=refill, loop=loop(400, 5e-3, 512))
    model, head = trained(dataset, states[:, None], config, head=True)
    assert head is not None

    @torch.no_grad()
    def value(context: Tensor) -> Tensor:
        assert head is not None
        return head(model.prefix(context).last).mean(1) / (1 - gamma)

    V = values(ending_chain(), np.append(REWARD, 0.0), gamma)[:S]
    error = worst(value, V)
    print(f"head, n {n}, limit {limit}: value error {error:.4f} of max V - min V")
    assert error < 0.03
    V_next = np.linalg.inv(np.eye(S + 1) - gamma * ending_chain()) @ np.append(REWARD, 0.0)
    assert worst(value, V_next[:S]) > 0.06  # not the values by the state that is left

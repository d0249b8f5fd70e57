"""Values of three policies from uniform data of a small decision process, by every estimator, against exact ones."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from chains import total_variation
from decisions import END, LAST, UNIFORM, A, Decisions, S, chains_of, decisions, frequencies, logged
from occupancy_table import OccupancyTable
from small import generator
from torch import Tensor

from voc_rl.data import Episodes, arrived_rows
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    Condition,
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    PolicyTraining,
    ValueHead,
    sample_futures,
    train_policies,
)
from voc_rl.values import from_samples, from_weights, future_weights, mve

GAMMA = 0.9
BOUND = 0.05  # of max V - min V
# every state but the terminal one under every policy
STATE, POLICY = (torch.from_numpy(x.ravel()) for x in np.meshgrid(np.arange(LAST), np.arange(3)))
CONTEXT, CONDITION = STATE[:, None], Condition(policy=POLICY)


@cache
def data() -> tuple[Decisions, Episodes, np.ndarray]:
    process = decisions()
    return process, *logged(process, 150_000)


@cache
def network() -> tuple[OccupancyTransformer, ValueHead]:
    """Network and head of the three policies, trained on their chains."""
    process, dataset, states = data()
    torch.manual_seed(0)
    config = OccupancyConfig(S, 1, action_dim=A, policies=3, null_context=True, n_layer=2, n_head=2, width=32)
    chains = chains_of(process, dataset, states, 4)
    loop = LoopConfig(steps=1800, batch_size=512, learning_rate=1e-2)
    occupancy = OccupancyTraining(gamma=GAMMA, ema=0.993, futures=6, refill=16, loop=loop)
    training = PolicyTraining(occupancy, action_share=0.2, start_share=0.0)
    codes = torch.from_numpy(states)[:, None]
    values = np.stack([chain.values(dataset.reward, GAMMA) for chain in chains])
    model, head = train_policies(
        OccupancyTransformer(config), ValueHead(32, hidden=32), dataset, codes, None, chains, training, values=values
    )
    assert head is not None
    return model, head


def reward(futures: Tensor, features: Tensor | None = None) -> Tensor:
    """Rewards of futures (..., 1), 0 for END."""
    return torch.from_numpy(np.append(data()[0].reward, 0.0))[futures[..., 0]]


def exact() -> np.ndarray:
    """(3, LAST) values of the policies."""
    process = data()[0]
    return np.stack([process.values(policy, GAMMA)[:LAST] for policy in process.policies])


def sampled() -> np.ndarray:
    futures = sample_futures(network()[0], CONTEXT, None, 20_000, generator(), condition=CONDITION)
    return from_samples(reward(futures).numpy(), GAMMA).mean


def rows(count: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Codes (count, 1) and real rewards of rows that were arrived at."""
    _, dataset, states = data()
    some = np.random.default_rng(seed).choice(arrived_rows(dataset), count, replace=False)
    return torch.from_numpy(states[some])[:, None], dataset.reward[some]


@torch.no_grad()
def weighted() -> np.ndarray:
    model, _ = network()
    codes, rewards = rows(20_000)
    weights = future_weights(model, model.prefix(CONTEXT, condition=CONDITION), codes)
    return from_weights(weights, rewards, GAMMA).mean


@torch.no_grad()
def by_head() -> np.ndarray:
    model, head = network()
    return head(model.prefix(CONTEXT, condition=CONDITION).last).mean(1).double().numpy() / (1 - GAMMA)


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [sampled, weighted, by_head], ids=["sample", "density", "head"])
def test_values_of_policies(estimate: object) -> None:
    V = exact()
    found = estimate().reshape(3, LAST)  # type: ignore[operator]
    error = np.abs(found - V).max(1) / np.ptp(V)
    print(f"errors by policy, share of max V - min V: {error.round(4)}")
    assert (error < BOUND).all()
    assert (np.argsort(-found.mean(1)) == [0, 1, 2]).all()
    behaviour = data()[0].values(UNIFORM, GAMMA)[:LAST]
    wrong = np.abs(behaviour - V).max(1) / np.ptp(V)
    assert (wrong > 2 * BOUND).all()  # the behaviour's values are none of the policies'
    assert (np.abs(behaviour - found).max(1) / np.ptp(V) > BOUND).all()


@pytest.mark.slow
@torch.no_grad()
def test_the_law_of_the_network() -> None:
    process = data()[0]
    model, _ = network()
    law = model.logits(model.prefix(CONTEXT, condition=CONDITION).last).softmax(-1).double().numpy()
    occupancies = np.stack([process.state_occupancy(policy, GAMMA)[:LAST] for policy in process.policies])
    distance = total_variation(law.reshape(3, LAST, S + 1), occupancies).max()
    null = model.logits(model.prefix_of_nothing().last).softmax(-1)[0].double().numpy()
    logged_law = np.bincount(rows(100_000)[0][:, 0].numpy(), minlength=S + 1) / 100_000
    print(f"total variation {distance:.4f}, without context {total_variation(null, logged_law):.4f}")
    assert distance < 0.05
    assert total_variation(null, logged_law) < 0.03


@pytest.mark.slow
@torch.no_grad()
def test_a_policy_value_by_pooled_weights() -> None:
    """The mean of the weights over start states gives the mean of their values, with a larger effective sample."""
    model, _ = network()
    codes, rewards = rows(300)
    prefix = model.prefix(CONTEXT[:LAST], condition=CONDITION[:LAST])
    weights = future_weights(model, prefix, codes)
    pooled, each = from_weights(weights.mean(0, keepdims=True), rewards, GAMMA), from_weights(weights, rewards, GAMMA)
    np.testing.assert_allclose(pooled.mean[0], each.mean.mean())
    size = [(w.sum() ** 2 / (w**2).sum()) for w in (weights.mean(0), weights[0])]
    assert size[0] > size[1]


# --- coverage: tables counted from the data, so that nothing is learned, through the same estimators


@cache
def counted(gamma: float) -> np.ndarray:
    """Laws (3, S, S + 1) of the policies' futures, counted along their chains."""
    process, dataset, states = data()
    rng = np.random.default_rng(0)
    tables = []
    for chain in chains_of(process, dataset, states, 4):
        futures = chain.futures(np.arange(len(states)), gamma, rng)
        reached = np.where(futures < 0, END, states[futures])
        tables.append([frequencies(reached[states == s]) for s in range(S)])
    return np.array(tables)


REPETITIONS = 200
# one state and policy for each repetition
ASKED = np.random.default_rng(1).integers([LAST, 3], size=(REPETITIONS, 2))
ASKED_CONTEXT = torch.from_numpy(ASKED[:, :1])
ASKED_CONDITION = Condition(policy=torch.from_numpy(ASKED[:, 1]))


def covered(name: str, level: float) -> int:
    """How many of the intervals, each from numbers of its own, hold the value of the counted model."""
    rewards = np.append(data()[0].reward, 0.0)
    state, policy = ASKED.T
    V = (counted(GAMMA) @ rewards / (1 - GAMMA))[policy, state]
    if name == "sample":
        model = OccupancyTable(counted(GAMMA)).network
        futures = sample_futures(model, ASKED_CONTEXT, None, 100, generator(), condition=ASKED_CONDITION)
        found = from_samples(reward(futures).numpy(), GAMMA, level)
    elif name == "mve":
        model = OccupancyTable(counted(0.8)).network
        found = mve(
            model, ASKED_CONTEXT, None, reward, 0.8, GAMMA, generator(), count=4, samples=100, level=level,
            condition=ASKED_CONDITION,
        )  # fmt: skip
        V = np.array([_hops(counted(0.8)[p])[s] for s, p in ASKED])
    else:
        law = np.bincount(rows(50_000)[0][:, 0].numpy(), minlength=S) / 50_000
        model, rng = OccupancyTable(counted(GAMMA), null=law).network, np.random.default_rng(2)
        low, high = np.empty(REPETITIONS), np.empty(REPETITIONS)
        for i in range(REPETITIONS):
            codes = rng.choice(S, size=1000, p=law)
            prefix = model.prefix(ASKED_CONTEXT[i : i + 1], condition=ASKED_CONDITION[i : i + 1])
            weights = future_weights(model, prefix, torch.from_numpy(codes)[:, None])
            one = from_weights(weights, rewards[codes], GAMMA, level)
            low[i], high[i] = one.low[0], one.high[0]
        return int(((low <= V) & (high >= V)).sum())
    return int(((found.low <= V) & (found.high >= V)).sum())


def _hops(table: np.ndarray) -> np.ndarray:
    """Values (S,) of four hops from .8 to .9, the last of which stands for all later ones."""
    square = np.vstack([table, np.eye(S + 1)[END]])
    mean = [np.linalg.matrix_power(square, n) @ np.append(data()[0].reward, 0.0) for n in range(1, 5)]
    return (sum(0.5**n / 0.2 * m for n, m in enumerate(mean)) + 0.5**4 / 0.1 * mean[-1])[:S]


@pytest.mark.parametrize("name", ["sample", "mve", "density"])
def test_coverage(name: str) -> None:
    ninety, half = covered(name, 0.9), covered(name, 0.5)
    print(f"{name}: {ninety} of {REPETITIONS} nominal 90 % intervals cover, {half} of the 50 % ones")
    assert 168 <= ninety <= 190
    assert 80 <= half <= 120

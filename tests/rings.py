"""Walks on a ring, networks trained on them, and what they have to answer exactly."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from chains import episodes_of, occupancy, ring, total_variation, values, walks

from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    Condition,
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    ValueHead,
    train_occupancy,
)

S = 12
# a wave once round the ring, and one state that stands out
REWARD = np.cos(2 * np.pi * (np.arange(S) - 2) / S) + (np.arange(S) == 7)


@cache
def ring_data(episodes: int) -> tuple[Episodes, np.ndarray]:
    """Walks cut by a time limit of 600 rows: the dataset, and the states (episodes, rows)."""
    states = walks(ring(), episodes, 600)
    return episodes_of([np.r_[0.0, REWARD[w[1:]]] for w in states], [False] * episodes), states


def empirical(states: np.ndarray) -> np.ndarray:
    counts = np.zeros((S, S))
    np.add.at(counts, (states[:, :-1].ravel(), states[:, 1:].ravel()), 1)
    return counts / counts.sum(1, keepdims=True)


def trained(
    dataset: Episodes,
    codes: np.ndarray,
    config: OccupancyTraining,
    codebook: int = S,
    head: bool = False,
    width: int = 16,
    layers: int = 1,
) -> tuple[OccupancyTransformer, ValueHead | None]:
    torch.manual_seed(0)
    tokens = codes.shape[1]
    sizes = OccupancyConfig(codebook, tokens, gammas=config.gammas, n_layer=layers, n_head=2, width=width)
    model = OccupancyTransformer(sizes)
    value_head = ValueHead(width, hidden=32) if head else None
    return train_occupancy(model, value_head, dataset, torch.from_numpy(codes).to(torch.int16), None, config)


@torch.no_grad()
def distribution(model: OccupancyTransformer, gamma: float | None = None) -> np.ndarray:
    """(states, states + 1) of the network's own softmax, END last; ``gamma``: what it is told, if it reads one."""
    assert not model.training
    told = Condition(gamma=None if gamma is None else torch.full((S,), gamma))
    return model.logits(model.prefix(torch.arange(S)[:, None], condition=told).last).softmax(-1).double().numpy()


def check(found: np.ndarray, P: np.ndarray, gamma: float) -> None:
    exact = occupancy(P, gamma)
    distance = total_variation(found[:, :S], exact)
    assert distance.max() < 0.05
    # a time limit is not an end (taking it for one gives .03 at gamma .95); an untrained network starts at 1 / 13
    assert found[:, S].max() < 0.015
    V, own = values(P, REWARD, gamma), found[:, :S] @ REWARD / (1 - gamma)
    error = np.abs(own - V) / np.ptp(V)
    print(f"gamma {gamma}: total variation {distance.max():.4f}, value error {error.max():.4f} of max V - min V")
    assert error.max() < 0.03
    # the same bounds tell a wrong answer: the mean occupancy, and values by the state that is left
    assert total_variation(exact.mean(0), exact).max() > 0.15
    left = np.linalg.inv(np.eye(S) - gamma * P) @ REWARD
    assert np.abs(left - V).max() / np.ptp(V) > 0.06


def loop(steps: int, learning_rate: float, batch_size: int = 256) -> LoopConfig:
    return LoopConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)

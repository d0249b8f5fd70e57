"""Baselines of policy evaluation, on the same rows, quantizer features and starts as the VOC.

Each takes a task's data, target policies, discount, seed and a device for its networks, and returns estimates by method
and policy: J, and a 90 % interval. Only the oracles ``nearest`` and ``median`` look at the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from voc_rl.benchmarks.ope_data import R_MAX, TaskData
from voc_rl.errors import VOCError
from voc_rl.occupancy import policy_actions
from voc_rl.occupancy.stitching import principal_components
from voc_rl.values import FittedQ, discounted_returns, fitted_q, horizon, members_of
from voc_rl.values.fitted_q import COMPONENTS, MEMBERS
from voc_rl.values.statistics import student_interval

Estimates = dict[str, dict[str, tuple[float, float, float]]]
Baseline = Callable[[TaskData, Mapping[str, Any], float, int, torch.device], Estimates]
DRAWS = 4
ROWS_COMPARED = 2000
RESAMPLED = 200


def fqe(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """``fqe`` on the quantizer's features, and ``dr``, which corrects it with the logged steps after the starts."""
    found = fit(data, targets, gamma, seed, device, *members_of(data.episodes, seed))
    return {"fqe": _of_members(found, targets, data, gamma), "dr": _doubly_robust(found, targets, data, gamma, seed)}


def fqe_state(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """The same on true states: what a perfect encoder could give it."""
    assert data.episodes.state is not None
    found = fit(data, targets, gamma, seed, device, *members_of(data.episodes, seed), state=data.episodes.state)
    return {"fqe_state": _of_members(found, targets, data, gamma)}


def wis(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """Per-decision weighted importance sampling over the logged steps after each start (Precup et al. 2000).

    Weights are products of density ratios to the acting member's stored density, normalised over the starts at each
    step; the interval resamples the starts.
    """
    estimates = {}
    rng = np.random.default_rng([seed, 73])
    for name, policy in targets.items():
        log_weights, rewards = _after_starts(data, policy, gamma)

        def estimate(some: np.ndarray, w: np.ndarray = log_weights, r: np.ndarray = rewards) -> float:
            return _wis(w[some], r[some], gamma)

        estimates[name] = _with_interval(estimate, data, gamma, rng)
    return {"wis": estimates}


def oracles(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """``nearest``: true J of the logged policy whose mean action is nearest on logged rows. ``median``: of the logged
    policies' true J. ``mc``: mean logged return of the starts with enough steps left, the behaviour's value."""
    true, logged = data.true_j(gamma), [name for name in data.policies if name.startswith("logged")]
    members = {name: data.policies[name] for name in logged}
    assert data.episodes.state is not None
    rng = np.random.default_rng([seed, 79])
    states = data.episodes.state[rng.choice(len(data.episodes), ROWS_COMPARED)]
    actions = {name: policy.predict(states, deterministic=True)[0] for name, policy in members.items()}
    median = float(np.median([true[name] for name in logged]))
    returns, known = discounted_returns(data.episodes, gamma)
    behaviour = float(returns[data.starts][known[data.starts]].mean()) * (1.0 - gamma) / R_MAX
    found: Estimates = {"nearest": {}, "median": {}, "mc": {}}
    for name, policy in targets.items():
        own = policy.predict(states, deterministic=True)[0]
        distances = {other: float(np.square(own - actions[other]).mean()) for other in logged}
        nearest = min(distances, key=distances.__getitem__)
        for method, j in (("nearest", true[nearest]), ("median", median), ("mc", behaviour)):
            found[method][name] = (j, j, j)
    return found


BASELINES: dict[str, Baseline] = {"fqe": fqe, "fqe_state": fqe_state, "wis": wis, "oracles": oracles}


def fit(
    data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device, reward: np.ndarray,
    weights: np.ndarray | None = None, state: np.ndarray | None = None,
) -> FittedQ:  # fmt: skip
    """Fitted Q of the targets, with an output for each reward (N, K); ``weights`` (N, K) of the rows, None: alike.

    ``state`` (N, F): what it sees of the rows; None: the leading components of the quantizer's features.
    """
    actions = policy_actions(list(targets.values()), data.episodes, DRAWS, np.random.default_rng([seed, 31]))
    if state is None:
        state = principal_components(data.tokens[1], COMPONENTS).numpy()
    config = data.scale.fitted_q
    return fitted_q(data.episodes, state, actions, gamma, config, seed, reward, weights, device=device, progress=True)


def _of_members(
    found: FittedQ, targets: Mapping[str, Any], data: TaskData, gamma: float
) -> dict[str, tuple[float, float, float]]:
    """J, and the interval from outputs that were fitted to reweighted episodes."""
    members = found.value[:, data.starts].mean(1) * (1.0 - gamma) / R_MAX  # (P, members)
    low, high = student_interval(members.mean(1), members.std(1, ddof=1), MEMBERS)
    return {name: (float(members[i].mean()), float(low[i]), float(high[i])) for i, name in enumerate(targets)}


def _after_starts(data: TaskData, policy: Any, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Logs of weights, and rewards (S, H), of the logged steps after each start; weight 0 where there is none."""
    dataset, steps = data.episodes, horizon(gamma)
    if dataset.log_prob is None or dataset.unclipped_action is None:
        raise VOCError("Importance weights need log_prob and unclipped_action, which these data do not hold.")
    rows = data.starts[:, None] + np.arange(1, steps + 1)  # rows arrived at
    there = np.arange(1, steps + 1) <= dataset.steps_left[data.starts][:, None]
    rows = np.where(there, rows, 0)
    flat = rows.ravel()
    assert dataset.state is not None
    before = dataset.state[np.maximum(flat - 1, 0)]
    ratio = policy.log_prob(before, dataset.unclipped_action[flat]) - dataset.log_prob[flat]
    log_weight = np.where(there, ratio.reshape(rows.shape), -np.inf)
    return np.cumsum(log_weight, 1), np.where(there, dataset.reward[rows], 0.0)


def _shares(log_weights: np.ndarray) -> np.ndarray:
    """Weights (S, H) normalised over the starts at each step; 0 at a step that no start reaches.

    Relative to the largest: products of ninety ratios are often below the smallest float at all starts at once.
    """
    largest = log_weights.max(0)
    weights = np.exp(log_weights - np.where(np.isfinite(largest), largest, 0.0))
    return weights / np.maximum(weights.sum(0), 1e-300)


def _wis(log_weights: np.ndarray, rewards: np.ndarray, gamma: float) -> float:
    """sum_k gamma^(k-1) sum_i w_ik r_ik, w the normalised weights."""
    return float((gamma ** np.arange(rewards.shape[1]) * (_shares(log_weights) * rewards).sum(0)).sum())


def effective_starts(data: TaskData, policy: Any, gamma: float) -> float:
    """Effective sample size 1 / sum_i w_ik^2 behind ``wis`` and ``dr``, in starts; its discounted mean over steps."""
    shares = _shares(_after_starts(data, policy, gamma)[0])
    size = 1.0 / np.maximum(np.square(shares).sum(0), 1e-300) * (shares.sum(0) > 0)
    return float(np.average(size, weights=gamma ** np.arange(len(size))))


def _doubly_robust(
    found: FittedQ, targets: Mapping[str, Any], data: TaskData, gamma: float, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Weighted doubly robust (Thomas and Brunskill 2016): fqe's V of the starts plus weighted errors of its Q."""
    dataset, rng = data.episodes, np.random.default_rng([seed, 83])
    estimates = {}
    for i, (name, policy) in enumerate(targets.items()):
        log_weights, rewards = _after_starts(data, policy, gamma)
        rows = np.minimum(data.starts[:, None] + np.arange(1, rewards.shape[1] + 1), len(dataset) - 1)
        value, taken = found.value[i].mean(1), found.taken[i].mean(1)
        later = np.where(dataset.terminal[rows], 0.0, value[rows])
        error = np.where(np.isfinite(log_weights), rewards + gamma * later - taken[rows - 1], 0.0)

        def estimate(
            some: np.ndarray, w: np.ndarray = log_weights, e: np.ndarray = error, v: np.ndarray = value
        ) -> float:
            return float(v[data.starts][some].mean()) + _wis(w[some], e[some], gamma)

        estimates[name] = _with_interval(estimate, data, gamma, rng)
    return estimates


def _with_interval(
    estimate: Callable[[np.ndarray], float], data: TaskData, gamma: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """J of all starts, and the 5th and 95th percentile over resampled starts."""
    count, unit = len(data.starts), (1.0 - gamma) / R_MAX
    resampled = [estimate(rng.integers(count, size=count)) for _ in range(RESAMPLED)]
    low, high = np.percentile(resampled, [5, 95])
    return estimate(np.arange(count)) * unit, float(low) * unit, float(high) * unit

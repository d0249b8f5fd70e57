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
from voc_rl.values import FittedQ, discounted_returns, fitted_q, from_ensemble, horizon, members_of
from voc_rl.values.fitted_q import COMPONENTS

Estimates = dict[str, dict[str, tuple[float, float, float]]]
Baseline = Callable[[TaskData, Mapping[str, Any], float, int, torch.device], Estimates]
DRAWS = 4
ROWS_COMPARED = 2000
RESAMPLED = 200


def fqe(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """``fqe`` on the quantizer's features, and ``dr``, which corrects it with the logged steps after every row."""
    found = fit(data, targets, gamma, seed, device, *members_of(data.episodes, seed, data.episodes.reward))
    return {"fqe": _of_members(found, targets, data, gamma), "dr": _doubly_robust(found, targets, data, gamma, seed)}


def fqe_state(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """The same on true states: what a perfect encoder could give it."""
    assert data.episodes.state is not None
    members = members_of(data.episodes, seed, data.episodes.reward)
    found = fit(data, targets, gamma, seed, device, *members, state=data.episodes.state)
    return {"fqe_state": _of_members(found, targets, data, gamma)}


def wis(data: TaskData, targets: Mapping[str, Any], gamma: float, seed: int, device: torch.device) -> Estimates:
    """Per-decision weighted importance sampling (Precup et al. 2000) from every row of the data.

    V = sum_s p_s sum_k gamma^(k-1) sum_i w_ik r_ik over the windows i of kind s and their steps k. Each row begins a
    window, which ends with its episode (by a time limit, in these tasks) or at the horizon. Kinds are first rows, and
    other rows by the logged policy that acts there; p_s are their shares among the starts that values are asked for.
    Weights are products, up to the k-th step, of density ratios to the acting member's stored density, normalised at
    each step over the windows of a kind that reach it. What lies beyond the horizon is taken to be like what lies
    before it, as in the truth. The interval resamples episodes.
    """
    estimates = {}
    rng = np.random.default_rng([seed, 73])
    seen = 1.0 - gamma ** horizon(gamma)  # of the weight
    for name, policy in targets.items():
        log_weights, rewards = _windows(data, policy, gamma, data.episodes.reward)
        mean, low, high = _with_interval(log_weights, rewards, _kinds(data)[1], 0.0, gamma, rng)
        estimates[name] = mean / seen, low / seen, high / seen
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
    unit = (1.0 - gamma) / R_MAX
    values = from_ensemble(found.value[:, data.starts].mean(1) * (1.0 - gamma), gamma)  # of (P, members)
    j = np.stack([values.mean, values.low, values.high], 1) * unit
    return {name: (float(mean), float(low), float(high)) for name, (mean, low, high) in zip(targets, j, strict=True)}


def _kinds(data: TaskData) -> tuple[np.ndarray, np.ndarray]:
    """Kind int64 (N,) of every row, and the share (K,) of each kind among the starts.

    0: first rows; others: by the policy that acts there. Long products of ratios leave few windows, mostly such where
    the target itself acts from the first step on: over all rows at once these begin in other states than the starts.
    """
    dataset = data.episodes
    if dataset.policy_id is None:
        raise VOCError("Windows are weighted by who acts, but these data hold no policy_id; collect them with it.")
    acting = np.unique(np.roll(dataset.policy_id, -1), return_inverse=True)[1]  # a row holds who led there
    kind = np.where(dataset.step_type == 0, 0, 1 + acting)
    return kind, np.bincount(kind[data.starts], minlength=kind.max() + 1) / len(data.starts)


def _windows(data: TaskData, policy: Any, gamma: float, arrived: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of logged steps from every row: logs of weights (K, E, H) at each step, and what it brings (K, E, H).

    Windows of one kind and episode are taken together: the log of their weights' sum, and the mean of what they bring,
    by these weights. ``arrived`` (N,): what arriving at a row brings. Weight 0 where no window reaches.
    """
    dataset, steps = data.episodes, horizon(gamma)
    if dataset.log_prob is None or dataset.unclipped_action is None:
        raise VOCError("Importance weights need log_prob and unclipped_action, which these data do not hold.")
    assert dataset.state is not None
    before = dataset.state[np.maximum(np.arange(len(dataset)) - 1, 0)]
    ratio = policy.log_prob(before, dataset.unclipped_action) - dataset.log_prob
    (kind, share), episodes = _kinds(data), len(dataset.starts)
    group = kind * episodes + dataset.episode
    rows = np.argsort(group, kind="stable")
    groups, begins, sizes = np.unique(group[rows], return_index=True, return_counts=True)
    own, left = np.zeros(len(rows)), dataset.steps_left[rows]
    log_weights = np.full((len(share) * episodes, steps), -np.inf)
    brought = np.zeros(log_weights.shape)
    for k in range(steps):
        arrival = np.where(left > k, rows + k + 1, 0)
        own += np.where(left > k, ratio[arrival], -np.inf)
        largest = np.maximum.reduceat(own, begins)
        largest = np.where(np.isfinite(largest), largest, 0.0)
        weights = np.exp(own - np.repeat(largest, sizes))
        total = np.add.reduceat(weights, begins)
        brought[groups, k] = np.add.reduceat(weights * arrived[arrival], begins) / np.maximum(total, 1e-300)
        with np.errstate(divide="ignore"):  # no weight is a log of minus infinity
            log_weights[groups, k] = largest + np.log(total)
    shape = (len(share), episodes, steps)
    return log_weights.reshape(shape), brought.reshape(shape)


def _shares(log_weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Weights (K, E, H) normalised over the episodes at each step, times the share (K,) of a kind among the starts.

    Kinds that no window reaches a step of leave their share to the others; 0 at a step that none reaches. Relative to
    the largest: products of ninety ratios are often below the smallest float everywhere at once.
    """
    largest = log_weights.max(1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(largest), largest, 0.0))
    weights *= share[:, None, None] / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    return weights / np.maximum(weights.sum((0, 1)), 1e-300)


def effective_starts(data: TaskData, policy: Any, gamma: float) -> float:
    """Effective number of starts behind ``wis`` and ``dr``, 1 / sum_e w_ek^2; its discounted mean over steps.

    Windows of one episode overlap: they count as one start together, with the sum w_ek of their weights.
    """
    log_weights, _ = _windows(data, policy, gamma, data.episodes.reward)
    shares = _shares(log_weights, _kinds(data)[1]).sum(0)  # (E, H)
    size = (shares.sum(0) > 0) / np.maximum(np.square(shares).sum(0), 1e-300)
    return float(np.average(size, weights=gamma ** np.arange(len(size))))


def _doubly_robust(
    found: FittedQ, targets: Mapping[str, Any], data: TaskData, gamma: float, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Weighted doubly robust (Thomas and Brunskill 2016): fqe's V of the starts plus the weighted errors of its Q.

    V is the mean of the starts. The errors r + gamma V' - Q of logged steps are weighted and summed as ``wis`` does
    with rewards, over windows from every row. The interval resamples episodes for these errors; V and Q stay as they
    are.
    """
    dataset, rng = data.episodes, np.random.default_rng([seed, 83])
    estimates = {}
    for i, (name, policy) in enumerate(targets.items()):
        value, taken = found.value[i].mean(1), found.taken[i].mean(1)
        error = dataset.reward + gamma * value - np.roll(taken, 1)  # no window arrives at row 0
        log_weights, errors = _windows(data, policy, gamma, error)
        known = float(value[data.starts].mean())
        estimates[name] = _with_interval(log_weights, errors, _kinds(data)[1], known, gamma, rng)
    return estimates


def _with_interval(
    log_weights: np.ndarray, brought: np.ndarray, share: np.ndarray, known: float, gamma: float,
    rng: np.random.Generator,
) -> tuple[float, float, float]:  # fmt: skip
    """J of ``known`` and the weighted sum over windows, and the 5th and 95th percentile over resampled episodes."""
    count, discounts = log_weights.shape[1], gamma ** np.arange(log_weights.shape[2])

    def estimate(some: np.ndarray) -> float:
        by_step = (_shares(log_weights[:, some], share) * brought[:, some]).sum((0, 1))
        return (known + float(by_step @ discounts)) * (1.0 - gamma) / R_MAX

    resampled = [estimate(np.asarray(rng.integers(count, size=count))) for _ in range(RESAMPLED)]
    low, high = np.percentile(resampled, [5, 95])
    return estimate(np.arange(count)), float(low), float(high)

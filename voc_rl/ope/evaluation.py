"""What a policy is worth, from logged episodes alone: ``evaluate_policy``.

    episodes, policies -> chains of logged rows (``chains``) -> ``stitch``
                                           \\-> and a fitted critic of the jumps -> ``corrected``
                                           \\-> network (``model``) -> ``head``, ``sample``, ``mve``, ``density``

``stitch`` needs no network and is the reference. ``corrected`` adds what a fitted critic says of each jump of a chain.
The network learns from the chains, its head from the corrected values; it answers in one pass at any state, and samples
futures: pictures, other rewards, chances of events. No densities of logged actions are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, arrived_rows
from voc_rl.errors import VOCError, check_level, check_reward_fn
from voc_rl.ope.config import EvaluationConfig
from voc_rl.ope.estimate import PolicyEstimate, too_few_rows, warnings_of
from voc_rl.ope.estimators import PolicyEstimator
from voc_rl.ope.evaluator import PolicyEvaluator
from voc_rl.training_inputs import QuantizerSource, Tokens
from voc_rl.values import check_rewards


@overload
def evaluate_policy(
    dataset: Episodes, policy: Mapping[Any, Any], gamma: float = 0.95, estimator: PolicyEstimator = "stitch", *,
    starts: np.ndarray | None = None, reward_fn: Callable[[Episodes], np.ndarray] | None = None,
    config: EvaluationConfig | None = None, quantizer: QuantizerSource | None = None,
    tokens: Tokens | None = None, features: Tensor | np.ndarray | None = None, level: float = 0.9,
    device: torch.device | str | None = None, checkpoints: str | Path | None = None, progress: bool = False,
) -> list[PolicyEstimate]: ...  # fmt: skip


@overload
def evaluate_policy(
    dataset: Episodes, policy: Any, gamma: float = 0.95, estimator: PolicyEstimator = "stitch", *,
    starts: np.ndarray | None = None, reward_fn: Callable[[Episodes], np.ndarray] | None = None,
    config: EvaluationConfig | None = None, quantizer: QuantizerSource | None = None,
    tokens: Tokens | None = None, features: Tensor | np.ndarray | None = None, level: float = 0.9,
    device: torch.device | str | None = None, checkpoints: str | Path | None = None, progress: bool = False,
) -> PolicyEstimate: ...  # fmt: skip


def evaluate_policy(
    dataset: Episodes,
    policy: Any,
    gamma: float = 0.95,
    estimator: PolicyEstimator = "stitch",
    *,
    starts: np.ndarray | None = None,
    reward_fn: Callable[[Episodes], np.ndarray] | None = None,
    config: EvaluationConfig | None = None,
    quantizer: QuantizerSource | None = None,
    tokens: Tokens | None = None,
    features: Tensor | np.ndarray | None = None,
    level: float = 0.9,
    device: torch.device | str | None = None,
    checkpoints: str | Path | None = None,
    progress: bool = False,
) -> PolicyEstimate | list[PolicyEstimate]:
    """What a policy is worth on logged episodes: a PolicyEstimate; for a dict of policies a list, best first.

    A policy that too few rows look like for ``density`` is NaN, with a warning, and comes last.

    Args:
        dataset: logged episodes, by any policies. policy: one (``voc_rl.policy.Policy``), or several by name.
        gamma: the discount per agent step, of the network too; for ``mve``, which reaches it by hops of a network of a
            smaller discount, use ``PolicyEvaluator``.
        estimator: ``stitch`` (no network), ``corrected``, ``head``, ``sample`` or ``density``.
        starts: rows to average over; None: the first rows of the episodes.
        reward_fn: takes the dataset and returns rewards (N,) on arrival; not with ``head``. None: the data's own.
        config, quantizer, tokens, features, device, checkpoints: see ``PolicyEvaluator``. level: confidence of the
            intervals.

    Raises:
        VOCError: a policy, rewards or starts that do not fit the data, ``reward_fn`` with ``head``, a level outside
            (0, 1), a ``reward_fn`` that is none, or no policy with a value (``density``).
    """
    check_level(level)
    if reward_fn is not None:
        check_reward_fn(reward_fn)
    several = isinstance(policy, Mapping)
    policies = policy if several else {getattr(policy, "name", "") or "policy": policy}
    config = config or EvaluationConfig()
    size = config.voc.network
    size = replace(
        size, null_context=size.null_context or estimator == "density",
        head_members=size.head_members if estimator == "head" else 0,
    )  # fmt: skip
    config = replace(config, voc=replace(config.voc, network=size))
    evaluator = PolicyEvaluator(
        dataset, policies, gamma, starts, config,
        quantizer=quantizer, tokens=tokens, device=device, features=features, checkpoints=checkpoints,
        progress=progress,
    )  # fmt: skip
    reward = None if reward_fn is None else check_rewards(reward_fn(dataset), len(dataset), arrived_rows(dataset))
    evaluator.check_answers(estimator, evaluator.gamma, other=reward is not None)
    head = evaluator.fit_reward(reward) if reward is not None and estimator in ("sample", "mve") else None
    estimates = [evaluator.estimate(name, estimator, reward, head, level) for name in evaluator.policies]
    if all(np.isnan(e.value) for e in estimates):
        raise VOCError(too_few_rows(", ".join(evaluator.policies)))
    for warning in warnings_of(estimates):
        warnings.warn(warning, stacklevel=2)
    return sorted(estimates, key=lambda e: (np.isnan(e.value), -e.value)) if several else estimates[0]

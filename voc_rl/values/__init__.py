"""Futures to rewards to values, and how good values are."""

from voc_rl.values.density import from_weights, future_weights
from voc_rl.values.estimators import ValueEstimate, from_ensemble, from_samples, joined, rewards_of_futures
from voc_rl.values.fitted_q import FittedQ, FQEConfig, fitted_q, members_of
from voc_rl.values.head import by_head, tail_by_head
from voc_rl.values.mve import mve
from voc_rl.values.rewards import RewardConfig, RewardHead, check_rewards, fit_reward_head
from voc_rl.values.statistics import scores
from voc_rl.values.successor import successor_features
from voc_rl.values.truth import (
    check_known,
    completed,
    discounted_returns,
    horizon,
    known_rows,
    mean_return,
    returns_to_go,
)

__all__ = [
    "FQEConfig",
    "FittedQ",
    "RewardConfig",
    "RewardHead",
    "ValueEstimate",
    "by_head",
    "check_known",
    "check_rewards",
    "completed",
    "discounted_returns",
    "fit_reward_head",
    "fitted_q",
    "from_ensemble",
    "from_samples",
    "from_weights",
    "future_weights",
    "horizon",
    "joined",
    "known_rows",
    "mean_return",
    "members_of",
    "mve",
    "returns_to_go",
    "rewards_of_futures",
    "scores",
    "successor_features",
    "tail_by_head",
]

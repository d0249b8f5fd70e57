"""Futures to rewards to values, and how good values are."""

from voc_rl.values.density import density, from_weights, future_weights
from voc_rl.values.estimators import ValueEstimate, from_ensemble, from_samples, rewards_of_futures
from voc_rl.values.mve import mve
from voc_rl.values.rewards import RewardConfig, RewardHead, train_reward_head
from voc_rl.values.statistics import scores
from voc_rl.values.successor import successor_features
from voc_rl.values.truth import discounted_returns, horizon, mean_return, returns_to_go

__all__ = [
    "RewardConfig",
    "RewardHead",
    "ValueEstimate",
    "density",
    "discounted_returns",
    "from_ensemble",
    "from_samples",
    "from_weights",
    "future_weights",
    "horizon",
    "mean_return",
    "mve",
    "returns_to_go",
    "rewards_of_futures",
    "scores",
    "successor_features",
    "train_reward_head",
]

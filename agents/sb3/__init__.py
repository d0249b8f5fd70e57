"""A VOC inside Stable-Baselines3: features, a critic, a callback, offline training, values of its agents."""

from __future__ import annotations

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError(
        "voc_rl.agents.sb3 needs Stable-Baselines3; `pip install stable-baselines3` installs it."
    ) from error

from voc_rl.agents.sb3.callback import VOCValueCallback
from voc_rl.agents.sb3.critic import VOCCritic
from voc_rl.agents.sb3.evaluation import PolicyValue, evaluate_policy_value
from voc_rl.agents.sb3.features import VOCFeaturesExtractor
from voc_rl.agents.sb3.offline import fill_replay_buffer, train_offline
from voc_rl.envs import VecVOCValue

__all__ = [
    "PolicyValue",
    "VOCCritic",
    "VOCFeaturesExtractor",
    "VOCValueCallback",
    "VecVOCValue",
    "evaluate_policy_value",
    "fill_replay_buffer",
    "train_offline",
]

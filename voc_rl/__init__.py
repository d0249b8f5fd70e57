"""Video occupancy models for offline reinforcement learning: what is a state or a policy worth, from pixels.

The public names are imported when they are first used, so that ``import voc_rl`` stays fast and does not
load torch, Gymnasium or MuJoCo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voc_rl.data import Episodes as Episodes
    from voc_rl.envs import VecVOCValue as VecVOCValue
    from voc_rl.envs import VOCValueVectorWrapper as VOCValueVectorWrapper
    from voc_rl.envs import VOCValueWrapper as VOCValueWrapper
    from voc_rl.errors import VOCError as VOCError
    from voc_rl.model import VOC as VOC
    from voc_rl.ope import PolicyEstimate as PolicyEstimate
    from voc_rl.ope import evaluate_policy as evaluate_policy
    from voc_rl.policy import Policy as Policy
    from voc_rl.training import VOCConfig as VOCConfig
    from voc_rl.training import train as train
    from voc_rl.values import ValueEstimate as ValueEstimate

__version__ = "0.1.0"

_HOME = {
    "Episodes": "voc_rl.data",
    "Policy": "voc_rl.policy",
    "PolicyEstimate": "voc_rl.ope",
    "VOC": "voc_rl.model",
    "VOCConfig": "voc_rl.training",
    "VOCError": "voc_rl.errors",
    "VOCValueVectorWrapper": "voc_rl.envs",
    "VOCValueWrapper": "voc_rl.envs",
    "ValueEstimate": "voc_rl.values",
    "VecVOCValue": "voc_rl.envs",
    "evaluate_policy": "voc_rl.ope",
    "train": "voc_rl.training",
}

__all__ = [
    "VOC",
    "Episodes",
    "Policy",
    "PolicyEstimate",
    "VOCConfig",
    "VOCError",
    "VOCValueVectorWrapper",
    "VOCValueWrapper",
    "ValueEstimate",
    "evaluate_policy",
    "train",
]  # and VecVOCValue, which not every installation has: it needs Stable-Baselines3


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'voc_rl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Pixel environments: the dm_control suite with restorable states, and wrappers that show frames and values.

Importing this package registers every task with Gymnasium. The names are imported when they are first used,
so that it loads no simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from voc_rl.envs.registration import TASKS, register_envs

if TYPE_CHECKING:
    from voc_rl.envs.collection import collect as collect
    from voc_rl.envs.dmcontrol import DMControlEnv as DMControlEnv
    from voc_rl.envs.make import make_env as make_env
    from voc_rl.envs.pixels import PixelObservation as PixelObservation
    from voc_rl.envs.recording import record_episode as record_episode
    from voc_rl.envs.states import render_states as render_states
    from voc_rl.envs.value import VOCValueWrapper as VOCValueWrapper
    from voc_rl.envs.value_sb3 import VecVOCValue as VecVOCValue
    from voc_rl.envs.value_vector import VOCValueVectorWrapper as VOCValueVectorWrapper

_HOME = {
    "DMControlEnv": "dmcontrol",
    "PixelObservation": "pixels",
    "VOCValueVectorWrapper": "value_vector",
    "VOCValueWrapper": "value",
    "VecVOCValue": "value_sb3",
    "collect": "collection",
    "make_env": "make",
    "record_episode": "recording",
    "render_states": "states",
}

__all__ = [
    "TASKS",
    "DMControlEnv",
    "PixelObservation",
    "VOCValueVectorWrapper",
    "VOCValueWrapper",
    "collect",
    "make_env",
    "record_episode",
    "register_envs",
    "render_states",
]  # and VecVOCValue, which not every installation has: it needs Stable-Baselines3

register_envs()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"voc_rl.envs.{_HOME[name]}"), name)
    raise AttributeError(f"module 'voc_rl.envs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

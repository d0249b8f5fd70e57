"""The standard pixel environment, as a chain of wrappers read from top to bottom."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from voc_rl.envs.dmcontrol import DMControlEnv
from voc_rl.envs.pixels import PixelObservation


def make_env(
    task: str,
    size: int = 84,
    stack: int = 3,
    action_repeat: int = 2,
    render: str = "fast",
    max_episode_steps: int | None = None,
    camera: int | None = None,
    render_mode: str | None = "rgb_array",
) -> gym.Env[np.ndarray, np.ndarray]:
    """A task of the dm_control suite, seen through stacked frames: uint8 (3 * stack, size, size).

    See ``DMControlEnv`` for the arguments and for what ``info`` and ``reset``'s options hold, and
    ``PixelObservation`` for the frames.

    Raises:
        VOCError: an unknown task, profile or camera; no headless OpenGL.
    """
    env: gym.Env = DMControlEnv(task, action_repeat, max_episode_steps, size, render, camera, render_mode)
    env = PixelObservation(env, size=size, stack=stack)
    return env

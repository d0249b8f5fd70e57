"""Stacked frames as observations, for any environment that renders."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from voc_rl.data import DataSpec
from voc_rl.envs.gl import prepare_gl
from voc_rl.envs.render import check_not_forked, note_drawing
from voc_rl.errors import VOCError, check_positive


class PixelObservation(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Replace observations by the last ``stack`` rendered frames: uint8 (3 * stack, size, size).

    Channels come first and the oldest frame comes first. At reset the first frame fills the stack, unless
    ``options["frames"]``, uint8 (stack, 3, size, size), oldest first, gives it: a state restored in the
    middle of an episode then looks as it did there. A step after an end only resets
    (``gymnasium.wrappers.Autoreset``), and fills the stack too. Where the wrapped observation is a flat vector,
    ``info["state"]`` holds it as float32.

    Args:
        env: an environment made with ``render_mode="rgb_array"``.
        size: height and width of the frames; rendered frames of another size are resized.
        stack: number of frames.
        render_only: False shows a Dict, the frames as "pixels" and the wrapped observation as "state", for agents of
            the state beside a VOC of the frames (as Gymnasium's ``AddRenderObservation``).

    Raises:
        VOCError: ``env`` does not render arrays; no headless OpenGL for a task of MuJoCo, or one in a process that was
            forked from one that had drawn.
    """

    def __init__(self, env: gym.Env, size: int = 84, stack: int = 3, render_only: bool = True) -> None:
        RecordConstructorArgs.__init__(self, size=size, stack=stack, render_only=render_only)
        gym.Wrapper.__init__(self, env)
        if env.render_mode != "rgb_array":
            raise VOCError(
                f"{env.unwrapped} has render_mode {env.render_mode!r}; PixelObservation needs an environment "
                "made with render_mode='rgb_array'."
            )
        check_positive(size, "size")
        check_positive(stack, "stack")
        self._mujoco = hasattr(env.unwrapped, "mujoco_renderer")
        if self._mujoco:  # Gymnasium's tasks choose their OpenGL at the first frame
            prepare_gl()
            check_not_forked()
        self.size, self.stack, self.render_only = size, stack, render_only
        pixels, inner = gym.spaces.Box(0, 255, (3 * stack, size, size), np.uint8), env.observation_space
        self.observation_space = pixels if render_only else gym.spaces.Dict({"pixels": pixels, "state": inner})
        self._flat = isinstance(inner, gym.spaces.Box) and len(inner.shape) == 1
        self._frames: deque[np.ndarray] = deque(maxlen=stack)
        self._over = False  # the next step only resets

    @property
    def data_spec(self) -> DataSpec:
        """How the frames are made: what the environment says itself, else the id that it was made by; of ``size``."""
        if self.env.has_wrapper_attr("data_spec"):
            return replace(self.env.get_wrapper_attr("data_spec"), size=self.size)
        made = self.unwrapped.spec
        return DataSpec(task=made.id if made is not None else "", size=self.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; ``options["frames"]`` fills the stack, the other options go to the environment.

        Raises:
            VOCError: frames of another shape or dtype.
        """
        frames = (options or {}).get("frames")
        if frames is not None:
            frames = self._check_frames(frames)
            options = {key: value for key, value in (options or {}).items() if key != "frames"}
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._frame()] * self.stack if frames is None else frames)
        self._over = False
        return self._seen(observation), self._info(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and push its new frame."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frames.extend([self._frame()] * (self.stack if self._over else 1))
        self._over = bool(terminated or truncated)
        return self._seen(observation), reward, terminated, truncated, self._info(observation, info)

    def _seen(self, observation: Any) -> Any:
        pixels = np.concatenate(list(self._frames))
        return pixels if self.render_only else {"pixels": pixels, "state": observation}

    def _info(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "state": np.array(observation, np.float32)} if self._flat else info

    def _frame(self) -> np.ndarray:
        """The rendered frame, (3, size, size)."""
        if self._mujoco:
            note_drawing()
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise VOCError(f"{self.env.unwrapped} renders {found}; uint8 (height, width, 3) is needed.")
        if frame.shape[:2] != (self.size, self.size):
            from PIL import Image

            resized = Image.fromarray(frame).resize((self.size, self.size), Image.Resampling.BILINEAR)
            frame = np.asarray(resized)
        return frame.transpose(2, 0, 1).copy()  # an environment may draw the next frame into the same array

    def _check_frames(self, frames: Any) -> np.ndarray:
        frames, needed = np.asarray(frames), (self.stack, 3, self.size, self.size)
        if frames.shape != needed or frames.dtype != np.uint8:
            raise VOCError(f"options['frames'] is {frames.dtype} {frames.shape}; uint8 {needed} is needed.")
        return frames.copy()

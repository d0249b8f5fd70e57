"""A VOC beside an environment: values in ``info``, in the observation, or as a potential that shapes rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from voc_rl.envs.raw_reward import RAW, raw_reward
from voc_rl.envs.value_overlay import draw_overlay
from voc_rl.envs.value_reader import Mode, Observe, Reading, ValueReader, ValueSettings, check_kind, warn_of
from voc_rl.errors import VOCError
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import Seen, pixels_of


class VOCValueWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Ask a VOC about every observation of a pixel environment.

    ``info["voc"]`` holds, at reset and at every step, of the observation that was returned with it:

    - ``value``: discounted sum of the rewards from the next step on, in reward units, of the policy that made the
      VOC's data (not of the policy that acts here); ``stderr``: its standard error; ``gamma``: its discount.
    - ``successor_features`` float32 (P,), at the VOC's own discount, and ``futures`` int64 (F, n_tokens), if asked for.
    - ``raw_reward``, at steps in mode ``shaping``: the reward before this or an inner VOC wrapper shaped it.

    Everything is a function of the frames: samples are drawn with the same random numbers each time.

    Modes:

    - ``info``: observations and rewards stay as they are.
    - ``observation``: the agent sees ``{"pixels": ..., "value": (1,)}``, ``{"pixels": ..., "features": (D,)}`` or
      features instead of pixels, as ``observe`` says.
    - ``shaping``: the reward becomes r + gamma Phi(s') - Phi(s) with Phi the value and gamma the *agent's* discount
      (Ng et al. 1999, which leaves optimal policies as they are). Phi(s') is 0 after a termination; at a truncation it
      is the value of the last observation. A step after an end only resets (``gymnasium.wrappers.Autoreset``): it is no
      transition, and its reward stays as it is.

    Args:
        env: an environment with stacked frames uint8 (3K, H, W), such as ``make_env`` and ``PixelObservation`` make,
            alone or as "pixels" in a Dict, whose other parts stay as they are.
        voc: a run folder (specs, pickles and saved agents then hold its path) or a VOC.
        mode: ``info``, ``observation`` or ``shaping``.
        estimator: ``head`` (one pass), ``sample`` or ``mve`` (``VOC.value``).
        gamma: the discount of the values; None is the VOC's own. In mode ``shaping`` the agent's discount (at most 1),
            which is required; the potential is then the value at the VOC's own discount.
        observe: ``value``, ``features`` or ``features_only``, for mode ``observation``.
        features: ``context``, ``tokens`` or ``successor``, the kind of features (``voc_rl.plugin.feature_vectors``), or
            ``codes``: all that the VOC reads of the frames, which ``VOCFeaturesExtractor`` and ``VOCCritic`` read.
        successor_features: put them into ``info["voc"]``.
        futures: number of sampled futures in ``info["voc"]``; pictures of them: ``voc.quantizer.decode``.
        samples: futures per state for ``sample``, ``mve`` and ``successor_features`` (``features="successor"``: 16).
        overlay: let ``render`` draw the frame, the value curve of the episode and decoded futures.

    Raises:
        VOCError: an environment of another kind, no VOC, frames of another size or stack, a word that is not accepted,
            an estimator or discount that the VOC does not have, or ``overlay`` without ``render_mode="rgb_array"``.

    Warns:
        UserWarning: the environment has another task, render profile, camera, action repeat, OpenGL backend or MuJoCo
            than the VOC's training data, or does not say (``data_spec``).
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        voc: VOC | str | Path,
        mode: Mode = "info",
        estimator: Estimator = "head",
        gamma: float | None = None,
        observe: Observe = "value",
        features: Seen = "context",
        successor_features: bool = False,
        futures: int = 0,
        samples: int = 100,
        overlay: bool = False,
    ) -> None:
        check_kind(env, gym.Env)
        voc = str(voc) if isinstance(voc, Path) else voc
        RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, voc=voc, mode=mode, estimator=estimator, gamma=gamma, observe=observe,
            features=features, successor_features=successor_features, futures=futures, samples=samples,
            overlay=overlay,
        )  # fmt: skip
        gym.Wrapper.__init__(self, env)
        settings = ValueSettings(mode, estimator, gamma, observe, features, successor_features, futures, samples)
        self._reader = ValueReader(voc, env.observation_space, settings)
        self.observation_space = self._reader.observation_space
        self._overlay = overlay
        if overlay and env.render_mode != "rgb_array":
            raise VOCError(f"The overlay needs render_mode='rgb_array'; this environment has {env.render_mode!r}.")
        warn_of(self.voc, [env.get_wrapper_attr("data_spec")] if env.has_wrapper_attr("data_spec") else [])
        self._pixels: Any = None
        self._readings: list[Reading] = []
        self._over = False  # the next step only resets

    @property
    def voc(self) -> VOC:
        """The VOC that is asked."""
        return self._reader.voc

    @property
    def value_settings(self) -> tuple[ValueSettings, ...]:
        """What it was asked for, and then what the value wrappers inside were."""
        inside = self.env.has_wrapper_attr("value_settings")
        return (self._reader.settings, *(self.env.get_wrapper_attr("value_settings") if inside else ()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode and read its first observation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._readings.clear()
        self._over = False
        reading = self._read(obs)
        return self._reader.observe_one(obs, reading), self._with(info, reading.row(0))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and read where it arrived."""
        before = self._readings[-1] if self._readings else None
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._over:
            self._readings.clear()
        reading = self._read(obs)
        shown = reading.row(0)
        if self._reader.settings.mode == "shaping":
            assert before is not None  # env.step refuses to come before a reset
            shown[RAW] = raw_reward(info, reward)
            if not self._over:
                reward = float(self._reader.shaped(reward, terminated, reading.value, before.value)[0])
        self._over = bool(terminated or truncated)
        return self._reader.observe_one(obs, reading), reward, terminated, truncated, self._with(info, shown)

    @staticmethod
    def _with(info: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
        return {**info, "voc": {**info.get("voc", {}), **shown}}  # a wrapper inside may have shaped the reward

    def _read(self, obs: Any) -> Reading:
        self._pixels = pixels_of(obs)
        reading = self._reader.read(self._pixels[None])
        if not self._overlay:
            self._readings.clear()  # the curve is the only thing that needs more than the last one
        self._readings.append(reading)
        return reading

    def render(self) -> Any:
        """The environment's frame; with ``overlay`` uint8 (height, width, 3), futures beside it, value curve below."""
        frame: Any = self.env.render()
        if not self._overlay or self._pixels is None:
            return frame
        curve = np.array([[r.value[0], r.low[0], r.high[0]] for r in self._readings])
        return draw_overlay(frame, curve, self.voc, self._pixels, self._readings[-1].gamma)

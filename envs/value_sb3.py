"""``VOCValueWrapper`` for Stable-Baselines3's vectorised environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.envs.raw_reward import RAW, raw_reward
from voc_rl.envs.value_reader import Mode, Observe, ValueReader, ValueSettings, check_kind, warn_of
from voc_rl.errors import VOCError
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import Seen, pixels_of
from voc_rl.policy import attributes_of, value_settings_of

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
except ImportError as error:
    raise ImportError("VecVOCValue needs Stable-Baselines3; `pip install stable-baselines3` installs it.") from error


class VecVOCValue(VecEnvWrapper):
    """``VOCValueWrapper`` around a ``VecEnv``; same arguments (but ``overlay``), modes and numbers, one batched call
    per step.

    ``infos[i]["voc"]`` belongs to the observation that is returned; where an episode ended, and the environment has
    been reset already, ``infos[i]["terminal_observation"]`` is what the agent would see, and
    ``infos[i]["terminal_voc"]`` its values. Rewards are shaped with those. ``Monitor``s inside go on recording the
    raw returns.

    Raises:
        VOCError: as ``VOCValueWrapper``, or rewards to be shaped that ``VecNormalize`` scales: potentials are in reward
            units.

    Warns:
        as ``VOCValueWrapper``.
    """

    def __init__(
        self,
        venv: VecEnv,
        voc: VOC | str | Path,
        mode: Mode = "info",
        estimator: Estimator = "head",
        gamma: float | None = None,
        observe: Observe = "value",
        features: Seen = "context",
        successor_features: bool = False,
        futures: int = 0,
        samples: int = 100,
    ) -> None:
        check_kind(venv, VecEnv)
        settings = ValueSettings(mode, estimator, gamma, observe, features, successor_features, futures, samples)
        normalize = unwrap_vec_normalize(venv)
        if mode == "shaping" and normalize is not None and normalize.norm_reward:
            raise VOCError("VecNormalize scales the rewards before they are shaped; put it around the shaping.")
        self._reader = ValueReader(voc, venv.observation_space, settings)
        super().__init__(venv, self._reader.observation_space)
        warn_of(self.voc, attributes_of(venv, "data_spec"))
        self._potential = np.zeros(venv.num_envs)

    @property
    def voc(self) -> VOC:
        """The VOC that is asked."""
        return self._reader.voc

    @property
    def value_settings(self) -> tuple[ValueSettings, ...]:
        """What it was asked for, and then what the value wrappers inside were."""
        return (self._reader.settings, *value_settings_of(self.venv))

    def reset(self) -> Any:
        """Reset all environments and read their first observations; ``reset_infos`` holds the values."""
        obs = self.venv.reset()
        reading = self._reader.read(pixels_of(obs))
        self._potential = reading.value
        self.reset_infos = [
            {**info, "voc": {**info.get("voc", {}), **reading.row(i)}} for i, info in enumerate(self.venv.reset_infos)
        ]
        return self._reader.observe(obs, reading)

    def step_wait(self) -> Any:
        """Read where all environments arrived, and where ended episodes did, in one call."""
        obs, rewards, dones, infos = self.venv.step_wait()
        n, finals = self.num_envs, np.flatnonzero(dones)
        last = [pixels_of(infos[i]["terminal_observation"])[None] for i in finals]
        reading = self._reader.read(np.concatenate([pixels_of(obs), *last]))
        arrived = reading.value[:n].copy()
        arrived[finals] = reading.value[n:]
        shown = [reading.row(i) for i in range(n)]
        shaped = rewards
        if self._reader.settings.mode == "shaping":
            truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
            shaped = self._reader.shaped(rewards, dones & ~truncated, arrived, self._potential)
            for i, info in enumerate(infos):  # a wrapper inside may have shaped the reward too, and knows the raw one
                shown[i][RAW] = raw_reward(info, rewards[i])
        self._potential = reading.value[:n]
        infos = [{**info, "voc": {**info.get("voc", {}), **shown[i]}} for i, info in enumerate(infos)]
        for row, i in enumerate(finals.tolist(), n):
            infos[i]["terminal_observation"] = self._reader.observe_one(infos[i]["terminal_observation"], reading, row)
            infos[i]["terminal_voc"] = reading.row(row)
        return self._reader.observe(obs, reading), np.asarray(shaped, np.float32), dones, infos

"""Predicted values beside the returns that really followed, episode by episode, of vectorised environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from voc_rl.errors import VOCError
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import check_space
from voc_rl.values import horizon, returns_to_go

RAW = "raw_reward"  # in info["voc"], where a wrapper shapes rewards


@dataclass(frozen=True)
class Calibration:
    """Mean predicted value against mean realised discounted return of the same states of several episodes.

    ``gap`` is realised minus predicted. Standard errors treat an episode, not a state, as the independent unit; NaN
    for a single episode.
    """

    predicted: float
    realised: float
    gap: float
    predicted_stderr: float
    realised_stderr: float
    gap_stderr: float
    states: int
    episodes: int


class ValueTraces:
    """Values of every observation of a ``VecEnv``, and of what episodes last looked like, in one call per step.

    Values are at the VOC's own discount, in reward units. Shaped rewards (``info["voc"]["raw_reward"]`` is there) are
    replaced by the raw ones.

    Raises:
        VOCError: observations that hold no frames the VOC can read, or normalised rewards.
    """

    def __init__(self, voc: VOC, env: VecEnv, estimator: Estimator) -> None:
        self.voc, self.estimator = voc, estimator
        self._pixels_key = _pixels_key(env, voc)
        check_raw_rewards(env)
        self._horizon = horizon(voc.gamma)
        self._values: list[list[float]] = [[] for _ in range(env.num_envs)]
        self._rewards: list[list[float]] = [[] for _ in range(env.num_envs)]

    def start(self, obs: Any) -> None:
        """Begin with the observations of a reset."""
        for trace, value in zip(self._values, self._read(self._frames(obs)), strict=True):
            trace[:] = [float(value)]
        for rewards in self._rewards:
            rewards[:] = [0.0]

    def step(
        self, obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """One step of all environments.

        Returns:
            The values of ``obs`` (n,); the TD residuals r + gamma V(s') - V(s) of the step (n,); and by environment,
            where an episode ended, predicted values and realised returns of its states whose return is known.
        """
        finals = np.flatnonzero(dones)
        last = [self._frames(infos[i]["terminal_observation"])[None] for i in finals]
        values = self._read(np.concatenate([self._frames(obs), *last]))
        now, arrived = values[: len(dones)], values[: len(dones)].copy()
        terminated = dones & ~np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        arrived[finals] = values[len(dones) :]
        arrived[terminated] = 0.0
        raw = raw_rewards(infos, rewards)
        before = np.array([trace[-1] for trace in self._values])
        residuals = raw + self.voc.gamma * arrived - before
        ended = {}
        for i, trace in enumerate(self._values):
            trace.append(float(arrived[i]))
            self._rewards[i].append(float(raw[i]))
            if dones[i]:
                ended[int(i)] = self._known(i, bool(terminated[i]))
                trace[:], self._rewards[i][:] = [float(now[i])], [0.0]
        return now, residuals, ended

    def _known(self, i: int, terminated: bool) -> tuple[np.ndarray, np.ndarray]:
        rewards = np.array(self._rewards[i])
        returns = returns_to_go(rewards, np.ones_like(rewards), self.voc.gamma)
        states = len(rewards) - 1 if terminated else max(len(rewards) - self._horizon, 0)
        return np.array(self._values[i][:states]), returns[:states]

    def _frames(self, obs: Any) -> np.ndarray:
        return obs if self._pixels_key is None else obs[self._pixels_key]

    def _read(self, frames: np.ndarray) -> np.ndarray:
        return self.voc.value(frames, estimator=self.estimator, common=True).mean


def raw_rewards(infos: Sequence[Mapping[str, Any]], rewards: np.ndarray) -> np.ndarray:
    """Rewards float64 (n,) of the environments, before a VOC wrapper shaped them."""
    return np.array([float(info.get("voc", {}).get(RAW, r)) for info, r in zip(infos, rewards, strict=True)])


def check_unshaped(infos: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rewards that a VOC wrapper shaped.

    Raises:
        VOCError: there are some.
    """
    if any(RAW in info.get("voc", {}) for info in infos):
        raise VOCError("The environment shapes the rewards, which Q_voc does not count; use mode='info'.")


def check_raw_rewards(env: VecEnv) -> None:
    """Refuse rewards in other units than the VOC's.

    Raises:
        VOCError: normalised rewards.
    """
    normalize = unwrap_vec_normalize(env)
    if isinstance(normalize, VecNormalize) and normalize.norm_reward:
        raise VOCError("VecNormalize scales the rewards, which then cannot be compared; use norm_reward=False.")


def _pixels_key(env: VecEnv, voc: VOC) -> str | None:
    """Where the frames are in an observation: None where they are all of it."""
    from gymnasium.spaces import Dict

    space = env.observation_space
    if isinstance(space, Dict) and "pixels" in space.spaces:
        check_space(space["pixels"], voc.observation_shape, "The environment's")
        return "pixels"
    check_space(space, voc.observation_shape, "The environment's")
    return None


def calibration(episodes: list[tuple[np.ndarray, np.ndarray]]) -> Calibration:
    """Compare means over the states of several episodes, each (predicted (T,), realised (T,)).

    Raises:
        VOCError: no state whose return is known.
    """
    kept = [(p, r) for p, r in episodes if len(p)]
    if not kept:
        raise VOCError(
            "No state has a known return: episodes are shorter than the horizon of the VOC's discount; play longer "
            "ones, or take a VOC of a smaller discount."
        )
    predicted, realised = np.concatenate([p for p, _ in kept]), np.concatenate([r for _, r in kept])
    groups = np.repeat(np.arange(len(kept)), [len(p) for p, _ in kept])
    gap = realised - predicted
    return Calibration(
        float(predicted.mean()), float(realised.mean()), float(gap.mean()), _stderr(predicted, groups),
        _stderr(realised, groups), _stderr(gap, groups), len(predicted), len(kept),
    )  # fmt: skip


def _stderr(x: np.ndarray, groups: np.ndarray) -> float:
    """Cluster-robust standard error of the mean of x; groups int (N,), 0..G-1."""
    count = int(groups.max()) + 1
    if count < 2:
        return float("nan")
    sums = np.bincount(groups, x - x.mean())
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(x))

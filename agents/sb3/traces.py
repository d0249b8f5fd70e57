"""Predicted values beside the returns that really followed, episode by episode, of vectorised environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from voc_rl.agents.sb3.checks import check_own_codes, check_specs
from voc_rl.envs.raw_reward import raw_reward
from voc_rl.errors import VOCError
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import check_readable, pixels_of, read
from voc_rl.values import completed, horizon, known_rows, returns_to_go


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


@dataclass(frozen=True)
class Ended:
    """Values and discounted returns, float64 (T,) each, of the states of an episode but for its last one.

    Returns that a time limit cut are ``values.completed``.
    """

    predicted: np.ndarray
    realised: np.ndarray
    terminated: bool


class ValueTraces:
    """Values of every observation of a ``VecEnv``, and of what episodes last looked like, in one call per step.

    Values are at the VOC's own discount, in reward units. Rewards that ``VecNormalize`` scaled, or that a VOC wrapper
    shaped (``info["voc"]["raw_reward"]`` is there), are replaced by the raw ones.

    Raises:
        VOCError: observations that hold no frames the VOC can read.

    Warns:
        UserWarning: frames that are made in another way than those of the VOC's training data.
    """

    def __init__(self, voc: VOC, env: VecEnv, estimator: Estimator) -> None:
        self.voc, self.estimator = voc, estimator
        check_readable(pixels_of(env.observation_space), voc, "The environment's")
        check_specs(env, voc)
        check_own_codes(env, voc)
        normalize = unwrap_vec_normalize(env)
        self._scaled = normalize if normalize is not None and normalize.norm_reward else None
        self._horizon = horizon(voc.gamma)
        self._values: list[list[float]] = [[] for _ in range(env.num_envs)]
        self._rewards: list[list[float]] = [[] for _ in range(env.num_envs)]

    def start(self, obs: Any) -> None:
        """Begin with the observations of a reset."""
        for trace, value in zip(self._values, self._read(pixels_of(obs)), strict=True):
            trace[:] = [float(value)]
        for rewards in self._rewards:
            rewards[:] = [0.0]

    def step(
        self, obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray, dict[int, Ended]]:
        """One step of all environments.

        Returns:
            The values of ``obs`` (n,); the TD residuals r + gamma V(s') - V(s) of the step (n,); and by environment
            the episodes that ended.
        """
        finals = np.flatnonzero(dones)
        last = [pixels_of(infos[i]["terminal_observation"])[None] for i in finals]
        values = self._read(np.concatenate([pixels_of(obs), *last]))
        now, arrived = values[: len(dones)], values[: len(dones)].copy()
        terminated = dones & ~np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        arrived[finals] = values[len(dones) :]
        arrived[terminated] = 0.0
        raw = self.raw_rewards(infos, rewards)
        before = np.array([trace[-1] for trace in self._values])
        residuals = raw + self.voc.gamma * arrived - before
        ended = {}
        for i, trace in enumerate(self._values):
            trace.append(float(arrived[i]))
            self._rewards[i].append(float(raw[i]))
            if dones[i]:
                ended[int(i)] = self._ended(i, bool(terminated[i]))
                trace[:], self._rewards[i][:] = [float(now[i])], [0.0]
        return now, residuals, ended

    def _ended(self, i: int, terminated: bool) -> Ended:
        rewards = np.array(self._rewards[i])
        returns = returns_to_go(rewards, np.ones_like(rewards), self.voc.gamma)[:-1]
        if not terminated:
            returns = completed(returns, np.arange(len(returns), 0, -1), self.voc.gamma)
        return Ended(np.array(self._values[i][:-1]), returns, terminated)

    def known(self, episodes: Sequence[Ended]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Predicted values and realised returns of the states of each episode whose return is known
        (``values.known_rows``)."""
        steps = np.array([len(episode.realised) for episode in episodes], np.int64)
        rows = known_rows(steps, np.array([episode.terminated for episode in episodes], bool), self._horizon)
        return [(e.predicted[known[:-1]], e.realised[known[:-1]]) for e, known in zip(episodes, rows, strict=True)]

    def raw_rewards(self, infos: Sequence[Mapping[str, Any]], rewards: np.ndarray) -> np.ndarray:
        """Rewards float64 (n,) of the environments in the last step, before anything shaped or scaled them."""
        rewards = rewards if self._scaled is None else self._scaled.get_original_reward()
        return np.array([raw_reward(info, r) for info, r in zip(infos, rewards, strict=True)])

    def _read(self, frames: np.ndarray) -> np.ndarray:
        return self.voc.value_of_codes(*read(self.voc, frames), estimator=self.estimator, common=True).mean


def calibration(episodes: list[tuple[np.ndarray, np.ndarray]]) -> Calibration:
    """Compare means over the states of several episodes, each (predicted (T,), realised (T,)).

    Raises:
        VOCError: no state whose return is known.
    """
    kept = [(p, r) for p, r in episodes if len(p)]
    if not kept:
        raise VOCError(
            "No state has a known return: play episodes whose time limit is further away than the horizon of the VOC's "
            "discount, and the same for all where many terminate, or take a VOC of a smaller discount."
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

"""What a VOC says of the states that an agent visits, beside the returns that the agent really gets there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from voc_rl.agents.sb3.traces import Calibration, Ended, ValueTraces, calibration
from voc_rl.errors import VOCError, check_positive
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import open_voc
from voc_rl.policy import Policy


@dataclass(frozen=True)
class PolicyValue(Calibration):
    """``Calibration`` of the states that an agent visits, at discount ``gamma``, in reward units.

    ``predicted`` is these states' value under the policy that made the VOC's data, ``realised`` under the agent;
    ``gap``, realised minus predicted, is the agent's lead over the data's policy (less the VOC's bias).
    ``episode_return``: mean undiscounted return of the episodes.
    """

    gamma: float
    episode_return: float


def evaluate_policy_value(
    model: Policy | BaseAlgorithm,
    voc: VOC | str | Path,
    env: VecEnv | gym.Env[Any, Any] | None = None,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    estimator: Estimator = "head",
) -> PolicyValue:
    """Let an agent act for some episodes and compare mean values with mean realised discounted returns.

    Args:
        model: a policy, or a Stable-Baselines3 agent. voc: a run folder or a VOC.
        env: where it acts; None is the environment of a Stable-Baselines3 agent, which is reset.
        n_eval_episodes: how many; split evenly among environments, so that short ones are not preferred.
        deterministic: as in ``predict``. estimator: ``head`` or ``sample``.

    Raises:
        VOCError: no environment, observations without frames that the VOC can read, or episodes shorter than the
            horizon of the VOC's discount.
    """
    agent: Any = model
    own: Any = getattr(agent, "get_env", lambda: None)()
    env = own if env is None else env
    if env is None:
        raise VOCError("The agent has no environment; pass env, one with the VOC's frames.")
    env = BaseAlgorithm._wrap_env(env, monitor_wrapper=False)  # as the agent's own: channels come first
    check_positive(n_eval_episodes, "n_eval_episodes")
    voc = open_voc(voc)
    traces = ValueTraces(voc, env, estimator)
    normalize = unwrap_vec_normalize(env)
    with _at_rest(normalize):
        returns, episodes = _play(model, env, traces, n_eval_episodes, deterministic)
    if env is own:  # a later learn() goes on from a reset, not from the observation before this
        agent._last_obs = env.reset()
        agent._last_episode_starts = np.ones(env.num_envs, bool)
        if normalize is not None:  # what the replay buffer of an off-policy agent stores
            agent._last_original_obs = normalize.get_original_obs()
    found = calibration(traces.known(episodes))
    return PolicyValue(**found.__dict__, gamma=voc.gamma, episode_return=float(np.mean(returns)))


@contextmanager
def _at_rest(normalize: VecNormalize | None) -> Iterator[None]:
    """Statistics of observations do not move: an agent is not changed by being looked at."""
    if normalize is None:
        yield
        return
    before, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = before


def _play(
    model: Policy | BaseAlgorithm, env: VecEnv, traces: ValueTraces, count: int, deterministic: bool
) -> tuple[list[float], list[Ended]]:
    """Returns of ``count`` episodes, and their predicted and realised values; shared out evenly."""
    quota = np.array([(count + i) // env.num_envs for i in range(env.num_envs)])
    obs: Any = env.reset()
    traces.start(obs)
    starts, state = np.ones(env.num_envs, bool), None
    totals, returns, episodes = np.zeros(env.num_envs), [], []
    while quota.any():
        actions, state = model.predict(obs, state, starts, deterministic)
        obs, rewards, dones, infos = env.step(actions)
        starts = np.asarray(dones, bool)
        totals += traces.raw_rewards(infos, rewards)
        for i, episode in traces.step(obs, rewards, starts, infos)[2].items():
            if quota[i]:
                episodes.append(episode)
                returns.append(totals[i])
                quota[i] -= 1
            totals[i] = 0.0
    return returns, episodes

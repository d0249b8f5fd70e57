"""What a VOC says of the states that an agent visits, beside the returns that the agent really gets there."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from voc_rl.agents.sb3.traces import Calibration, Ended, ValueTraces, calibration
from voc_rl.errors import VOCError, check_positive
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import open_voc
from voc_rl.policy import Policy, sees_normalised


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
        env: where it acts; None is the environment of a Stable-Baselines3 agent, which is reset, so that it is for
            between calls of ``learn``: a callback gives one made anew. Of a Dict with "pixels", which the VOC reads, an
            agent of one part is shown that part: one of the flat state acts in
            ``PixelObservation(env, render_only=False)``.
        n_eval_episodes: how many; split evenly among environments, so that short ones are not preferred.
        deterministic: as in ``predict``. estimator: ``head`` or ``sample``.

    Raises:
        VOCError: no ``predict``, no environment or one of another kind, one in which an agent is learning right now,
            observations without frames that the VOC can read or without what the agent sees (normalised ones, where it
            learned under ``VecNormalize``), or episodes shorter than the horizon of the VOC's discount.
    """
    if not callable(getattr(model, "predict", None)):
        raise VOCError(f"{model!r} is no policy; an agent, or an object with its `predict`, is needed.")
    agent: Any = model
    own: Any = getattr(agent, "get_env", lambda: None)()
    env = own if env is None else env
    if env is None:
        raise VOCError("The agent has no environment; pass env, one with the VOC's frames.")
    if not isinstance(env, VecEnv | gym.Env):
        raise VOCError(
            f"env is a {type(env).__name__}; one Gymnasium environment or a VecEnv of Stable-Baselines3 "
            "(make_vec_env) is needed."
        )
    env = BaseAlgorithm._wrap_env(env, monitor_wrapper=False)  # as the agent's own: channels come first
    _check_idle(env)
    _check_scales(agent, env)
    check_positive(n_eval_episodes, "n_eval_episodes")
    voc = open_voc(voc)
    traces = ValueTraces(voc, env, estimator)
    normalize = unwrap_vec_normalize(env)
    with _at_rest(normalize):
        returns, episodes = _play(model, env, traces, _shown(model, env), n_eval_episodes, deterministic)
    if own is not None and _inner(env) & _inner(own):  # a later learn() goes on from a reset, not from before this
        agent._last_obs = own.reset()
        agent._last_episode_starts = np.ones(own.num_envs, bool)
        if (normalize := unwrap_vec_normalize(own)) is not None:  # what the replay buffer of an off-policy agent stores
            agent._last_original_obs = normalize.get_original_obs()
    found = calibration(traces.known(episodes))
    return PolicyValue(**found.__dict__, gamma=voc.gamma, episode_return=float(np.mean(returns)))


def _shown(model: Any, env: VecEnv) -> Callable[[Any], Any]:
    """What of an environment's observations a policy is shown: of a Dict the part that it was made for, else all."""
    space, kind = env.observation_space, getattr(model, "observation", None)
    made = getattr(model, "observation_space", None)
    if made is None and kind is None:  # it does not say
        return lambda obs: obs
    if isinstance(space, Dict) and not isinstance(made, Dict):
        shape = getattr(made, "shape", None)
        for name, part in space.items():
            if name == kind or (shape is not None and part.shape == shape):
                return lambda obs: obs[name]
    elif kind != "state" and (made is None or made.shape == space.shape):
        return lambda obs: obs
    raise VOCError(
        f"The agent sees {made or kind}, and the environment shows {space}; PixelObservation(env, render_only=False) "
        "shows the state beside the frames."
    )


def _inner(env: VecEnv) -> set[int]:
    """Which environments are inside, whatever wraps them; of processes, the vector of them."""
    return {id(getattr(one, "unwrapped", one)) for one in getattr(env.unwrapped, "envs", [env.unwrapped])}


def _check_idle(env: VecEnv) -> None:
    """Refuse an environment in which an agent collects steps right now, as where one of its callbacks asks: it would go
    on from another state than it left, and store transitions that never were."""
    for call, _ in traceback.walk_stack(inspect.currentframe()):  # an agent keeps no other mark of it
        agent = call.f_locals.get("self")
        if call.f_code.co_name != "collect_rollouts" or not isinstance(agent, BaseAlgorithm):
            continue
        if (own := agent.get_env()) is not None and _inner(own) & _inner(env):
            raise VOCError(
                f"{type(agent).__name__} is in the middle of learn() in this environment, which must not be reset "
                "meanwhile; from a callback, pass env, one made anew."
            )


def _check_scales(agent: Any, env: VecEnv) -> None:
    """Refuse observations as they are for an agent that learned from normalised ones."""
    if sees_normalised(agent) and not getattr(unwrap_vec_normalize(env), "norm_obs", False):
        raise VOCError(
            f"{type(agent).__name__} learned under VecNormalize, and env shows observations as they are; wrap env in a "
            "VecNormalize with the same statistics, or give an object whose `predict` normalises first "
            "(VecNormalize.normalize_obs)."
        )


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
    model: Policy | BaseAlgorithm,
    env: VecEnv,
    traces: ValueTraces,
    shown: Callable[[Any], Any],
    count: int,
    deterministic: bool,
) -> tuple[list[float], list[Ended]]:
    """Returns of ``count`` episodes, and their predicted and realised values; shared out evenly."""
    quota = np.array([(count + i) // env.num_envs for i in range(env.num_envs)])
    obs: Any = env.reset()
    traces.start(obs)
    starts, state = np.ones(env.num_envs, bool), None
    totals, returns, episodes = np.zeros(env.num_envs), [], []
    while quota.any():
        actions, state = model.predict(shown(obs), state, starts, deterministic)
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

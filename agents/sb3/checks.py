"""What of an agent's environment a VOC, or logged data, do not fit: refused or warned of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    unwrap_vec_normalize,
    unwrap_vec_wrapper,
)

from voc_rl.envs import VecVOCValue
from voc_rl.envs.raw_reward import RAW
from voc_rl.envs.value_reader import warn_of
from voc_rl.errors import VOCError
from voc_rl.model import VOC
from voc_rl.model_files import weights_mark
from voc_rl.plugin import pixels_of, shows_codes
from voc_rl.policy import attributes_of, in_unit_bounds, value_settings_of


def check_unshaped(infos: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rewards that a VOC wrapper shaped.

    Raises:
        VOCError: there are some.
    """
    if any(RAW in info.get("voc", {}) for info in infos):
        raise VOCError("The environment shapes the rewards, which Q_voc does not count; use mode='info'.")


def check_specs(env: VecEnv, voc: VOC) -> None:
    """Warn where environments make frames in another way than those the VOC was trained on (``warn_of``)."""
    warn_of(voc, attributes_of(env, "data_spec"))


def check_own_codes(env: VecEnv, voc: VOC) -> None:
    """Refuse observations of codes that are not those of the VOC's quantizer, or that are scaled.

    Raises:
        VOCError: there are some.
    """
    if not shows_codes(pixels_of(env.observation_space), voc):
        return
    normalize = unwrap_vec_normalize(env)
    if normalize is not None and normalize.norm_obs:
        raise VOCError("VecNormalize scales the codes in the observations, which then are none; use norm_obs=False.")
    wrapped = unwrap_vec_wrapper(env, VecVOCValue)
    shown = [wrapped.voc] if wrapped is not None else env.get_attr("voc") if env.has_attr("voc") else []
    if any(weights_mark(other.quantizer) != weights_mark(voc.quantizer) for other in shown):
        raise VOCError("The environment shows codes of another VOC's quantizer; wrap it with the VOC that is asked.")


def check_actions(space: Space[Any], size: int, holder: str) -> None:
    """Refuse actions other than Box(-1, 1, (size,)), which is what ``holder`` ("the data hold") has.

    Raises:
        VOCError: another space.
    """
    if not (isinstance(space, Box) and space.shape == (size,) and in_unit_bounds(space)):
        raise VOCError(f"The agent's actions are {space}; {holder} Box(-1.0, 1.0, ({size},), float32).")


def check_raw_rewards(env: VecEnv) -> None:
    """Refuse rewards in other units than the VOC's.

    Raises:
        VOCError: normalised rewards.
    """
    normalize = unwrap_vec_normalize(env)
    if isinstance(normalize, VecNormalize) and normalize.norm_reward:
        raise VOCError("VecNormalize scales the rewards, which Q_voc does not; use norm_reward=False.")


def check_statistics(normalize: VecNormalize | None) -> None:
    """Refuse statistics of nothing: logged rows are stored as they are, and scaled by those when they are sampled.

    Raises:
        VOCError: there are none yet.
    """
    if normalize is None:
        return
    counts = []
    if normalize.norm_obs:
        found = normalize.obs_rms
        counts += [part.count for part in (found.values() if isinstance(found, dict) else [found])]
    if normalize.norm_reward:
        counts.append(normalize.ret_rms.count)
    if counts and min(counts) < 1:
        raise VOCError(
            "The agent's VecNormalize has no statistics yet, so it would cut logged numbers at its clip; load those of "
            "an earlier run, or leave it out."
        )


def check_logged(env: VecEnv | None) -> None:
    """Refuse an agent's environment with what logged rows do not hold, as these are of environments without a VOC.

    Raises:
        VOCError: shaped rewards, or a VOC's values or features in the observations.
    """
    settings = value_settings_of(env)
    if any(own.mode == "shaping" for own in settings):
        raise VOCError(
            "The agent's environment shapes rewards, and the data hold raw ones; use mode='info', or leave these data."
        )
    if any(own.mode == "observation" and own.features != "codes" for own in settings):
        raise VOCError(
            "The agent observes a value wrapper's values or features, which the data do not hold; show it "
            "features='codes', observe='features_only' (VOCFeaturesExtractor reads them), or frames."
        )


def warn_of_shaped_returns(env: VecEnv) -> None:
    """Warn where a Monitor around a wrapper that shapes rewards logs the shaped returns as the agent's."""
    outer = unwrap_vec_wrapper(env, VecMonitor)
    asked = value_settings_of(outer.venv) if outer is not None else []
    for one in getattr(env.unwrapped, "envs", []):
        monitor = one
        while isinstance(monitor, gym.Wrapper) and not isinstance(monitor, Monitor):
            monitor = monitor.env
        if isinstance(monitor, Monitor) and monitor.has_wrapper_attr("value_settings"):
            asked += monitor.get_wrapper_attr("value_settings")
    if any(own.mode == "shaping" for own in asked):
        warnings.warn(
            "Returns in the log (rollout/ep_rew_mean) are of shaped rewards: the Monitor is outside the wrapper that "
            'shapes them; use VOCValueWrapper(Monitor(env), ..., mode="shaping").',
            stacklevel=2,
        )

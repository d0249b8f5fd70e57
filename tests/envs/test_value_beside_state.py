"""Value wrappers where frames stand in a Dict beside the state: the numbers of frames alone, the state as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from square import SIDE, VALUE_MODES, Square, square_env
from stable_baselines3.common.vec_env import DummyVecEnv

from voc_rl import VecVOCValue, VOCValueVectorWrapper, VOCValueWrapper
from voc_rl.envs import PixelObservation

EVERY_KIND = [VALUE_MODES[0], VALUE_MODES[3], VALUE_MODES[5], VALUE_MODES[8]]
RIGHT = np.ones((2, 1), np.float32)


def both() -> gym.Env:
    return PixelObservation(Square(5, True), SIDE, 3, render_only=False)


def plain() -> gym.Env:
    return square_env(5, True)


def check(alone: Any, beside: Any) -> None:
    """What is shown beside the state is what is shown alone."""
    parts = dict(beside)
    state = parts.pop("state")
    assert state.dtype == np.float32
    expected = alone if isinstance(alone, Mapping) else {"pixels" if alone.dtype == np.uint8 else "features": alone}
    assert set(parts) == set(expected)
    for name, part in parts.items():
        np.testing.assert_array_equal(part, expected[name])


@pytest.mark.parametrize("options", VALUE_MODES)
def test_one_environment(options: dict[str, Any], square_voc: Path) -> None:
    one, two = (VOCValueWrapper(make(), square_voc, **options) for make in (plain, both))
    (alone, info), (beside, other) = one.reset(seed=3), two.reset(seed=3)
    for _ in range(4):
        assert two.observation_space.contains(beside)
        check(alone, beside)
        assert info["voc"]["value"] == other["voc"]["value"]
        assert beside["state"] == two.unwrapped.cell
        (alone, paid, *_, info), (beside, got, *_, other) = one.step(RIGHT[0]), two.step(RIGHT[0])
        assert paid == got


@pytest.mark.parametrize("options", EVERY_KIND)
@pytest.mark.parametrize("sb3", [False, True])
def test_vectors_of_environments(sb3: bool, options: dict[str, Any], square_voc: Path) -> None:
    """Also of what ended episodes last looked like."""

    def made(make: Any) -> Any:
        if sb3:
            return VecVOCValue(DummyVecEnv([make] * 2), square_voc, **options)
        return VOCValueVectorWrapper(
            SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP), square_voc, **options
        )

    one, two, finals = made(plain), made(both), 0
    for envs in (one, two):
        envs.seed(3) if sb3 else envs.reset(seed=3)
    check(*(envs.reset() if sb3 else envs.reset()[0] for envs in (one, two)))
    for _ in range(6):
        (alone, paid, *_, info), (beside, got, *_, other) = one.step(RIGHT), two.step(RIGHT)
        check(alone, beside)
        np.testing.assert_array_equal(paid, got)
        for i in range(2):
            last = [
                said[i].get("terminal_observation") if sb3 else said.get("final_obs", [None] * 2)[i]
                for said in (info, other)
            ]
            if last[0] is not None:
                finals += 1
                check(*last)
    assert finals >= 2

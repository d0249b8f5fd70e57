"""Planner and offline agents where Stable-Baselines3 and the wrappers expect one of its policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from square import square_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import CELLS

from voc_rl import VOC
from voc_rl.agents import (
    ActionValues,
    AgentConfig,
    Cloning,
    ImprovementConfig,
    OfflineAgent,
    VOCPlanner,
    weighted_clone,
)
from voc_rl.data import Episodes
from voc_rl.envs import VecVOCValue, VOCValueWrapper
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import tokenize

FEW = AgentConfig(width=32, loop=LoopConfig(steps=150, batch_size=64, learning_rate=3e-3))
LIMIT = 12
BEST = LIMIT // CELLS  # going right at every step, from any column


@pytest.fixture(scope="module")
def policies(square_actions: Path) -> dict[str, Any]:
    """Learned from uniform actions, of which only Q tells which are good."""
    voc, dataset = VOC.load(square_actions / "voc"), Episodes.open(square_actions / "data")
    tokens = tokenize(voc.quantizer, dataset)
    prior = OfflineAgent(dataset.observation_shape, 1, FEW, voc.quantizer).learn(dataset, Cloning, tokens)
    return {
        "prior": prior,
        "planner": VOCPlanner(prior, ActionValues(voc)),
        "weighted": weighted_clone(voc, dataset, tokens, ImprovementConfig(agent=FEW)),
        "less its values": weighted_clone(voc, dataset, tokens, ImprovementConfig(agent=FEW, baseline="voc")),
        "weighted by Q": weighted_clone(voc, dataset, tokens, ImprovementConfig(agent=FEW, trace=None)),
    }


@pytest.mark.parametrize("name", ["planner", "weighted", "less its values", "weighted by Q"])
def test_evaluate_policy_gives_the_best_return(name: str, policies: dict[str, Any]) -> None:
    envs = DummyVecEnv([lambda: square_env(LIMIT)] * 2)
    assert evaluate_policy(policies[name], envs, 4, warn=False) == (BEST, 0.0)
    assert evaluate_policy(policies[name], square_env(LIMIT), 2, warn=False) == (BEST, 0.0)
    blind, _ = evaluate_policy(policies["prior"], envs, 8, deterministic=False, warn=False)
    assert blind < 0.8 * BEST  # who acts as the data did gets about half


@pytest.mark.parametrize("name", ["planner", "weighted"])
def test_value_wrappers_tell_them_what_states_are_worth(
    name: str, policies: dict[str, Any], square_actions: Path
) -> None:
    folder = square_actions / "voc"
    env, voc = VOCValueWrapper(square_env(LIMIT), folder), VOC.load(folder)
    obs, info = env.reset(seed=0)
    truncated, total = False, 0.0
    while not truncated:
        assert info["voc"]["value"] == pytest.approx(float(voc.value(obs[None]).mean[0]), abs=1e-4)
        action, _ = policies[name].predict(obs, deterministic=True)
        assert action.shape == (1,)
        obs, reward, _, truncated, info = env.step(action)
        total += float(reward)
    assert total == BEST
    many = VecVOCValue(DummyVecEnv([lambda: square_env(LIMIT)] * 2), folder)
    returns, lengths = evaluate_policy(policies[name], many, 2, return_episode_rewards=True, warn=False)
    np.testing.assert_array_equal(returns, [BEST, BEST])
    assert lengths == [LIMIT, LIMIT]

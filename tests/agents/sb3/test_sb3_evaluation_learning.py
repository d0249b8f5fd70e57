"""Evaluating agents that are learning, or that learned from other observations than those of an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from corridor import STATES, Corridor, Walk, table_voc
from square import SIDE, Square
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from worlds import one_sentence, refusal

from voc_rl.agents.sb3 import evaluate_policy_value
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError

KNOWN = table_voc(np.random.default_rng(6).normal(size=STATES))


class Asks(BaseCallback):
    """Evaluates the agent, or what ``of`` takes of it, at the fifth step, and goes on where that is refused."""

    def __init__(self, env: gym.Env | None, of: Any = lambda model: model) -> None:
        super().__init__()
        self.env, self.of = env, of
        self.answers: list[Any] = []

    def _on_step(self) -> bool:
        if self.num_timesteps == 5:
            try:
                self.answers.append(evaluate_policy_value(self.of(self.model), KNOWN, self.env, 2))
            except VOCError as refused:
                self.answers.append(str(refused))
        return True


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(PPO, {"n_steps": 12, "batch_size": 12, "n_epochs": 1}), (SAC, {"buffer_size": 12, "learning_starts": 100})],
)
def test_what_an_agent_stores_while_it_learns_is_what_happened(algorithm: Any, settings: dict[str, Any]) -> None:
    """A callback that evaluates it: in another environment it may, in the agent's own it would be sent back."""
    long = [Walk(0, 30, False)]
    env = Corridor(long)
    asks = [Asks(None), Asks(env), Asks(env, lambda model: model.policy), Asks(Corridor(long))]
    model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", **settings)
    model.learn(12, callback=list(asks))
    stored = model.rollout_buffer if algorithm is PPO else model.replay_buffer
    assert stored.observations.reshape(12, -1)[:, 0].tolist() == [*range(12)]
    np.testing.assert_array_equal(stored.rewards[:, 0], np.array(long[0].rewards[:12], np.float32))
    for ask in asks[:3]:
        assert one_sentence(ask.answers[0])
        assert f"{algorithm.__name__} is in the middle of learn() in this environment" in ask.answers[0]
    assert asks[3].answers == [evaluate_policy_value(model, KNOWN, n_eval_episodes=2)]  # in its own, after learn()


def test_an_agent_of_normalised_observations_is_shown_such(square_voc: Path) -> None:
    """What it sees of an environment given to it is what it learned from; scaled rewards change no observation."""

    def both() -> gym.Env:
        return PixelObservation(Square(), SIDE, 3, render_only=False)

    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    known = VecNormalize(make_vec_env(Square, 2, seed=3), norm_reward=False)
    model = PPO("MlpPolicy", known, **settings).learn(16)
    raw = make_vec_env(both, 2, seed=3)
    for env in (raw, VecNormalize(raw, norm_obs=False)):
        said = refusal(evaluate_policy_value, model, square_voc, env, 2)
        assert one_sentence(said)
        assert "PPO learned under VecNormalize, and env shows observations as they are; wrap env" in said
    same = VecNormalize(raw, norm_reward=False, norm_obs_keys=["state"])
    same.obs_rms = {"state": known.obs_rms}  # type: ignore[dict-item]
    assert evaluate_policy_value(model, square_voc, same, 2).episodes == 2
    rewards = VecNormalize(make_vec_env(Square, 2, seed=3), norm_obs=False)
    assert evaluate_policy_value(PPO("MlpPolicy", rewards, **settings), square_voc, raw, 2).episodes == 2

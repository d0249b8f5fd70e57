"""What agents of Stable-Baselines3 would do at the logged rows: one-hot choices, and noise of its own at each row."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from predicting import DrawsOnce
from small import toy_dataset
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import refusal

from voc_rl.agents import EpsilonGreedy
from voc_rl.agents.behaviour import Deterministic
from voc_rl.occupancy import policy_actions


def test_numbers_of_discrete_actions_become_one_hot(tmp_path: Path) -> None:
    """An agent of Stable-Baselines3, and the noise around it, on data whose actions have as many entries."""
    dataset = toy_dataset(tmp_path, (5, 6))  # actions of two entries
    assert dataset.state is not None
    space = gym.spaces.Box(-np.inf, np.inf, dataset.state.shape[1:])
    env = SimpleNamespace(observation_space=space, action_space=gym.spaces.Discrete(2))
    linear = {"policy_kwargs": {"net_arch": []}, "device": "cpu", "buffer_size": 1}
    agent = DQN("MlpPolicy", DummyVecEnv([lambda: Spaces(env)]), **linear)
    agent.q_net.q_net[0].load_state_dict({"weight": torch.eye(2, 3), "bias": torch.tensor([0.0, 2.5])})
    numbers = (dataset.state[:, 0] <= 2.5 + dataset.state[:, 1]).astype(int)  # (t, -t) against (0, 2.5)
    assert set(numbers) == {0, 1}
    greedy = [agent, EpsilonGreedy(agent, 0.0), Deterministic(agent)]
    agent.exploration_rate = 0.0
    found = policy_actions([*greedy, EpsilonGreedy(agent, 1.0)], dataset, 3, np.random.default_rng(0))
    for own in found[:3]:
        np.testing.assert_array_equal(own, np.eye(2)[numbers][:, None].repeat(3, 1))
    assert set(map(tuple, found[3].reshape(-1, 2))) == {(0.0, 1.0), (1.0, 0.0)}
    env.action_space = gym.spaces.Discrete(3)
    other = DQN("MlpPolicy", DummyVecEnv([lambda: Spaces(env)]), **linear)
    assert "discrete ones are one-hot there" in refusal(policy_actions, [other], dataset, 3, np.random.default_rng(0))


def test_a_dqn_explores_at_each_row_by_itself_and_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks numpy's global numbers once for all rows, which would make each draw all random or all greedy."""
    dataset, k, epsilon, draws = toy_dataset(tmp_path, (90, 90, 90, 90)), 2, 0.2, 6
    assert dataset.state is not None
    space = gym.spaces.Box(-np.inf, np.inf, dataset.state.shape[1:])
    env = SimpleNamespace(observation_space=space, action_space=gym.spaces.Discrete(k))
    agent = DQN("MlpPolicy", DummyVecEnv([lambda: Spaces(env)]), device="cpu", buffer_size=1, seed=0)
    agent.exploration_rate = epsilon
    monkeypatch.setattr(np.random, "rand", lambda: pytest.fail("global random numbers"))
    before = torch.get_rng_state()
    found = policy_actions([agent, DrawsOnce()], dataset, draws, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)
    greedy = np.eye(k)[agent.predict(dataset.state, deterministic=True)[0]]
    strayed = (found[0] != greedy[:, None]).any(-1).mean(0)  # share of the rows, of each draw
    share = epsilon * (k - 1) / k
    np.testing.assert_allclose(strayed, share, atol=4 * np.sqrt(share * (1 - share) / len(dataset)))
    again = policy_actions([agent, DrawsOnce()], dataset, draws, np.random.default_rng(0))
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(policy_actions([agent], dataset, draws, np.random.default_rng(1))[0], found[0])
    alone = policy_actions([DrawsOnce()], dataset, draws, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(found[1], alone)


@pytest.mark.parametrize("around", [lambda agent: agent, lambda agent: Asking(agent)])
@pytest.mark.parametrize("kind", [PPO, SAC])
def test_an_agent_that_explores_by_use_sde_does_so_at_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, around: Any
) -> None:
    """Its noise is a matrix times what its layers say of the row: of normal entries, so their squares add up."""
    dataset, draws, std = toy_dataset(tmp_path, (30, 30)), 200, 0.05
    assert dataset.state is not None
    dataset.state += 0.5  # of zeros layers without biases say nothing
    monkeypatch.setattr(sys.modules["voc_rl.occupancy.policy_actions"], "ROWS_AT_ONCE", 25)
    spaces = SimpleNamespace(
        observation_space=gym.spaces.Box(-np.inf, np.inf, dataset.state.shape[1:]),
        action_space=gym.spaces.Box(-1.0, 1.0, (2,)),
    )
    torch.manual_seed(0)
    layers = {"net_arch": [4], "log_std_init": float(np.log(std)), "activation_fn": torch.nn.Tanh}
    agent = kind("MlpPolicy", DummyVecEnv([lambda: Spaces(spaces)]), use_sde=True, policy_kwargs=layers, device="cpu")
    network = getattr(agent.policy, "actor", agent.policy)
    before, numbers = network.action_dist.exploration_mat, torch.get_rng_state()
    found = policy_actions([around(agent), DrawsOnce()], dataset, draws, np.random.default_rng(0))
    assert network.action_dist.exploration_mat is before
    assert torch.equal(torch.get_rng_state(), numbers)
    mode = agent.predict(dataset.state, deterministic=True)[0]
    with torch.no_grad():
        shown = torch.from_numpy(dataset.state)
        seen = network.latent_pi(shown) if kind is SAC else network.mlp_extractor(shown)[0]
    steep = 1 - mode**2 if kind is SAC else 1.0  # SAC's noise goes through a tanh
    expected = steep * std * seen.square().sum(1).sqrt().numpy()[:, None]
    noise = (found[0] - mode[:, None]) / expected[:, None]
    np.testing.assert_allclose(np.sqrt(np.square(noise).mean(1)), 1.0, atol=0.3)
    flat = noise.swapaxes(0, 1).reshape(draws, -1)
    apart = np.corrcoef(flat.T)[~np.eye(flat.shape[1], dtype=bool)]
    np.testing.assert_allclose(apart, 0.0, atol=6 / np.sqrt(draws))
    network.reset_noise()
    again = policy_actions([around(agent), DrawsOnce()], dataset, draws, np.random.default_rng(0))
    np.testing.assert_array_equal(again, found)


class Asking:
    """An object that keeps an agent of Stable-Baselines3, as ``Normalized`` of the pages."""

    observation = "state"

    def __init__(self, agent: Any) -> None:
        self.agent, self.action_space = agent, agent.action_space

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return self.agent.predict(observation, state, episode_start, deterministic)


class Spaces(gym.Env[np.ndarray, np.integer[Any]]):
    """Where an agent comes from that never acts."""

    def __init__(self, spaces: Any) -> None:
        self.observation_space, self.action_space = spaces.observation_space, spaces.action_space

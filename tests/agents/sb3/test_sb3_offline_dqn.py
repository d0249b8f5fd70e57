"""Offline training of DQN, whose actions are numbers, against exact Q values of a short chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from links import GAMMA, LINKS, Chain, exact_q, reward, seen
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import one_sentence

from voc_rl.agents.sb3 import fill_replay_buffer, train_offline
from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.errors import VOCError


class Choices(Chain):
    """Of three actions the links pay the reward of -1/2, 0 and 1/2."""

    action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]


LEVELS = np.array([-0.5, 0.0, 0.5])


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    """The chain's walks, by one of three actions each step, one-hot."""
    folder, rng = tmp_path_factory.mktemp("choices"), np.random.default_rng(0)
    for i in range(120):
        first = int(rng.integers(LINKS))
        rows = LINKS + 1 - first
        link, number = first + np.arange(rows), rng.integers(3, size=rows - 1)
        step_type = np.full(rows, 1, np.uint8)
        step_type[[0, -1]] = 0, 2
        episode = Episode(
            frames=np.zeros((rows, 3, 2, 2), np.uint8),
            action=np.concatenate([np.zeros((1, 3)), np.eye(3)[number]]).astype(np.float32),
            reward=np.append(0.0, reward(link[:-1], LEVELS[number])).astype(np.float32),
            discount=(np.arange(rows) < rows - 1).astype(np.float32),
            step_type=step_type,
            state=seen(link)[:, None],
        )
        write_episode(folder / f"episode_{i:03d}.hdf5", episode, DataSpec(task="chain", size=2))
    return Episodes.open(folder)


def test_dqn_learns_the_exact_q_of_one_hot_actions(choices: Episodes) -> None:
    """Its target network, which it moves when it plays, moves here too: every Q reaches its later links' rewards."""
    model = DQN(
        "MlpPolicy", DummyVecEnv([Choices]), buffer_size=1000, gamma=GAMMA, batch_size=64, learning_rate=3e-3,
        target_update_interval=20, policy_kwargs={"net_arch": [32, 32]}, seed=0, device="cpu",
    )  # fmt: skip
    train_offline(model, choices, steps=1500, progress=False, say=None)
    assert model.replay_buffer is not None
    kept = model.replay_buffer.actions[: model.replay_buffer.size(), 0, 0]
    np.testing.assert_array_equal(kept, choices.action[choices.step_type > 0].argmax(1))
    with torch.no_grad():
        found = model.q_net(torch.from_numpy(seen(np.arange(LINKS))[:, None])).numpy()
    # the best of three levels is the best action of all
    np.testing.assert_allclose(found, np.array([exact_q(s, LEVELS) for s in range(LINKS)]), atol=0.06)


def dqn(envs: int = 1, **changed: Any) -> DQN:
    settings = {"gamma": GAMMA, "batch_size": 64, "policy_kwargs": {"net_arch": [8]}, **changed}
    return DQN(
        "MlpPolicy", DummyVecEnv([Choices] * envs), buffer_size=1000, seed=0, device="cpu",
        **settings,
    )  # fmt: skip


def test_dqn_acts_by_what_it_learned(choices: Episodes, tmp_path: Path) -> None:
    """A fresh agent explores nowhere, and training on data gives no reason to; one that explored goes on."""
    model = dqn()
    train_offline(model, choices, 5, progress=False, say=None)
    model.save(tmp_path / "agent")
    obs = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    for own in (model, DQN.load(tmp_path / "agent", device="cpu")):
        assert own.exploration_rate == 0.0
        acted = [int(own.predict(one)[0]) for one in obs]
        np.testing.assert_array_equal(acted, own.predict(obs, deterministic=True)[0])
    model.exploration_rate = 0.3
    train_offline(model, None, 200, log_every=100, progress=False)
    assert model.exploration_rate == 0.3


@pytest.mark.parametrize("envs", [1, 4])
@pytest.mark.parametrize("log_every", [7, 1000])
def test_dqn_moves_its_target_every_so_many_gradient_steps(envs: int, log_every: int, choices: Episodes) -> None:
    """By hand: a soft move after steps 20, 40 and 60, of which the first call makes 25."""
    model = dqn(envs, target_update_interval=20, tau=0.25)
    fill_replay_buffer(model, choices, say=None)
    target, seen = [p.clone() for p in model.q_net_target.parameters()], list[int]()
    for steps in (25, 35):
        before, moved = model._n_updates, len(seen)
        train = model.train

        def counted(count: int, size: int, train: Any = train) -> None:
            train(count, size)
            if model._n_updates % 20 == 0:
                seen.append(model._n_updates)
                for old, new in zip(target, model.q_net.parameters(), strict=True):
                    old.data.mul_(0.75).add_(0.25 * new.detach())

        model.train = counted  # type: ignore[method-assign]
        train_offline(model, None, steps, log_every=log_every, progress=False)
        model.train = train  # type: ignore[method-assign]
        assert model._n_updates == before + steps
        assert len(seen) > moved
    assert seen == [20, 40, 60]
    for old, new in zip(target, model.q_net_target.parameters(), strict=True):
        torch.testing.assert_close(old, new)


def test_dqn_trains_in_large_parts_between_moves(choices: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a logged loss is the mean of more than one batch."""
    model, asked = dqn(target_update_interval=40), list[int]()
    train = model.train
    monkeypatch.setattr(model, "train", lambda steps, size: (asked.append(steps), train(steps, size)))
    train_offline(model, choices, 3000, batch_size=4, log_every=50, progress=False, say=None)
    assert asked[:6] == [30, 10, 10, 10, 20, 10]  # to 30, 40 (a move), 50 (a dump), 60, 80 (a move), 90
    assert sum(asked) == 3000


class Three(Chain):
    action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


def test_actors_of_continuous_actions_learn_from_no_one_hot_ones(choices: Episodes) -> None:
    model = TD3("MlpPolicy", DummyVecEnv([Three]), buffer_size=1000, device="cpu")
    with pytest.raises(VOCError, match="one-hot rows of 3, discrete ones, which no continuous actor gives") as refused:
        fill_replay_buffer(model, choices, None)
    assert one_sentence(str(refused.value))


def test_what_is_not_one_hot_is_refused(chain: Path) -> None:
    model = DQN("MlpPolicy", DummyVecEnv([Choices]), buffer_size=1000, device="cpu")
    with pytest.raises(VOCError, match="are no one-hot rows of 3, which is how discrete ones are stored") as refused:
        fill_replay_buffer(model, Episodes.open(chain), None)
    assert one_sentence(str(refused.value))

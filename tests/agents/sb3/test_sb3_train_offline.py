"""Offline training against exact Q values of a short chain, and what would go wrong where rows are misaligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from corridor import Log
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import one_sentence

from voc_rl.agents.sb3 import fill_replay_buffer, train_offline
from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.errors import VOCError

GAMMA, LINKS = 0.9, 3
BEST, PAID = np.array([0.5, -0.5, 0.0]), np.array([1.0, -1.0, 2.0])


def reward(s: Any, a: Any) -> Any:
    """Of action a at link s: the most is paid for the best action."""
    return PAID[s] - (a - BEST[s]) ** 2


def exact_q(s: int, a: np.ndarray) -> np.ndarray:
    """Links follow one another and end after the last; the best actions' rewards follow."""
    return reward(s, a) + sum(GAMMA ** (later - s) * PAID[later] for later in range(s + 1, LINKS))


def seen(s: Any) -> Any:
    return np.float32(s) - np.float32((LINKS - 1) / 2)


class Chain(gym.Env[np.ndarray, np.ndarray]):
    """Only its spaces are used, and one learner's steps."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros(1, np.float32), 0.0, True, False, {}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks from random links by random actions; some end at the end, some are cut before."""
    folder, rng = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    for i in range(150):
        first = int(rng.integers(LINKS))
        rows = int(rng.integers(1, LINKS + 1 - first)) + 1
        link = first + np.arange(rows)
        action = np.append(0.0, rng.uniform(-1, 1, rows - 1))
        step_type = np.full(rows, 1, np.uint8)
        step_type[[0, -1]] = 0, 2
        discount = np.ones(rows, np.float32)
        discount[-1] = link[-1] < LINKS
        episode = Episode(
            frames=np.zeros((rows, 3, 2, 2), np.uint8),
            action=action[:, None].astype(np.float32),
            reward=np.append(0.0, reward(link[:-1], action[1:])).astype(np.float32),
            discount=discount,
            step_type=step_type,
            state=seen(link)[:, None],
        )
        write_episode(folder / f"episode_{i:03d}.hdf5", episode, DataSpec(task="chain", size=2))
    return folder


def agent(algorithm: Any = SAC, envs: int = 1, **changed: Any) -> Any:
    exact = {"ent_coef": 0.0} if algorithm is SAC else {"target_policy_noise": 0.0, "policy_delay": 1}
    settings = {"buffer_size": 1000, "gamma": GAMMA, "tau": 0.02, "batch_size": 64, **exact, **changed}
    env = DummyVecEnv([Chain] * envs)
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [32, 32]}, seed=0, device="cpu", **settings)


def largest_error(model: Any) -> float:
    actions, worst = np.linspace(-1, 1, 21, dtype=np.float32), 0.0
    for s in range(LINKS):
        with torch.no_grad():
            both = model.critic(torch.full((21, 1), float(seen(s))), torch.from_numpy(actions)[:, None])
        worst = max(worst, float(np.abs(torch.cat(both, 1).mean(1).numpy() - exact_q(s, actions)).max()))
    return worst


def trained(model: Any, dataset: Episodes | None, steps: int = 1200) -> Any:
    return train_offline(model, dataset, steps, log_every=100, progress=False, say=None)


@pytest.mark.parametrize(("algorithm", "envs"), [(SAC, 1), (TD3, 4)])
def test_exact_q_values_and_best_actions_are_learned(algorithm: Any, envs: int, chain: Path) -> None:
    model = agent(algorithm, envs, learning_rate=lambda left: 5e-3 * left)
    model.set_logger(log := Log())
    assert largest_error(model) > 1.0
    assert trained(model, Episodes.open(chain)) is model
    assert largest_error(model) < 0.2
    actions = model.predict(seen(np.arange(LINKS))[:, None], deterministic=True)[0][:, 0]
    np.testing.assert_allclose(actions, BEST, atol=0.2)
    losses = [row["train/critic_loss"] for _, row in log.dumps]
    assert len(losses) == 12
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("spoilt", ["reward", "action", "timeouts"])
def test_one_row_beside_is_not_what_is_learned(spoilt: str, chain: Path) -> None:
    """What the test above would catch: numbers of the row before, and time limits taken for terminations."""
    dataset = Episodes.open(chain)
    if spoilt != "timeouts":
        setattr(dataset, spoilt, np.roll(getattr(dataset, spoilt), 1, axis=0))
    model = agent(learning_rate=lambda left: 5e-3 * left)
    fill_replay_buffer(model, dataset, say=None)
    if spoilt == "timeouts":
        assert model.replay_buffer.timeouts.any()
        model.replay_buffer.timeouts[:] = 0
    assert largest_error(trained(model, None)) > 0.5


def test_what_is_logged_and_how_the_learning_rate_falls(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(learning_rate=lambda left: 1e-3 * left)
    model.set_logger(log := Log())
    asked: list[tuple[int, int]] = []
    train = model.train
    monkeypatch.setattr(model, "train", lambda steps, size: (asked.append((steps, size)), train(steps, size)))
    train_offline(model, Episodes.open(chain), 25, log_every=10, progress=False, say=None)
    assert asked == [(1, 64)] * 25
    assert [step for step, _ in log.dumps] == [10, 20, 25]
    for step, row in log.dumps:
        assert row["time/gradient_steps"] == step
        assert row["train/n_updates"] == step
        assert row["train/learning_rate"] == pytest.approx(1e-3 * (1 - (step - 1) / 25))
        assert np.isfinite([row["train/actor_loss"], row["train/critic_loss"]]).all()
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 25)
    train_offline(model, None, 3, batch_size=16, progress=False)  # goes on, from the full rate again
    assert asked[25:] == [(1, 16)] * 3
    assert log.dumps[-1][1]["train/n_updates"] == 28
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 3)


@pytest.mark.parametrize("log_every", [7, 50, 1000])
def test_when_something_is_logged_changes_nothing_that_is_learned(
    log_every: int, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of 250 gradient steps falls every third one."""
    learned = []
    for every in (250, log_every):
        model, rates = agent(learning_rate=lambda left: 1e-3 * left), list[float]()
        step = model.critic.optimizer.step
        monkeypatch.setattr(
            model.critic.optimizer, "step",
            lambda *a, model=model, rates=rates, step=step: (
                rates.append(model.critic.optimizer.param_groups[0]["lr"]), step(*a),
            ),
        )  # fmt: skip
        fill_replay_buffer(model, Episodes.open(chain), say=None)
        model.set_random_seed(3)
        train_offline(model, None, 250, log_every=every, progress=False)
        done = np.arange(250)
        np.testing.assert_allclose(rates, 1e-3 * (1 - (done - done % 3) / 250))
        learned.append(model.policy.state_dict())
    for name, tensor in learned[0].items():
        assert torch.equal(tensor, learned[1][name]), name


def test_sac_moves_its_target_as_often_as_it_is_told(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[float] = []
    monkeypatch.setattr("stable_baselines3.sac.sac.polyak_update", lambda *a: moves.append(a[2]))
    model = agent(target_update_interval=8)
    train_offline(model, Episodes.open(chain), 80, progress=False, say=None)
    assert sorted(moves) == [0.02] * 10 + [1.0] * 10


def test_an_agent_that_never_learned_before_and_goes_on_learning(chain: Path, tmp_path: Path) -> None:
    """Without a logger at first; then saved, loaded, filled again, and let loose in its environment."""
    model, said = agent(), list[str]()
    dataset = Episodes.open(chain)
    train_offline(model, dataset, 5, progress=False, say=said.append)
    transitions = int((dataset.steps_left > 0).sum())
    assert said == [f"The replay buffer takes 0.00 GB of memory for {transitions} transitions."]
    model.save(tmp_path / "agent")
    again = SAC.load(tmp_path / "agent", env=DummyVecEnv([Chain]), device="cpu")
    obs = seen(np.arange(LINKS))[:, None]
    np.testing.assert_array_equal(again.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert again.replay_buffer.size() == 0
    train_offline(again, dataset, 5, progress=False, say=None)
    again.learn(8)
    assert again.replay_buffer.size() == transitions + 8


class Played(BaseCallback):
    """Keeps the actions that an agent plays."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"][0])
        return True


def test_what_was_learned_offline_is_played_from_the_first_step_on(chain: Path) -> None:
    """And no random action, which TD3's first hundred are otherwise; nothing is learned while it plays."""
    model, played = trained(agent(TD3, gradient_steps=0), Episodes.open(chain), 5), Played()
    assert model.learning_starts == 0
    model.learn(20, callback=played)
    expected = model.predict(np.zeros(1, np.float32), deterministic=True)[0]
    np.testing.assert_allclose(played.actions, np.broadcast_to(expected, (20, 1)), atol=1e-6)


def test_nothing_to_train_on_is_refused(chain: Path) -> None:
    with pytest.raises(VOCError, match="The replay buffer is empty") as refusal:
        train_offline(agent(), None, 5, progress=False)
    assert one_sentence(str(refusal.value))
    for changed in ({"steps": 0}, {"steps": 5, "log_every": 0}):
        model = agent()
        with pytest.raises(VOCError, match=" is 0; a number above zero is needed"):
            train_offline(model, Episodes.open(chain), progress=False, **changed)
        assert model.replay_buffer.size() == 0


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


class Moves(TD3):
    """Learns a part of what it learns while it plays, as other packages' agents may."""

    def _on_step(self) -> None:
        raise AssertionError("played")


def test_an_agent_that_also_learns_while_it_plays_is_refused(chain: Path) -> None:
    model = agent(Moves)
    with pytest.raises(VOCError, match="Moves does more at its steps in an environment") as refused:
        train_offline(model, Episodes.open(chain), 5, progress=False)
    assert one_sentence(str(refused.value))
    assert model.replay_buffer.size() == 0


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

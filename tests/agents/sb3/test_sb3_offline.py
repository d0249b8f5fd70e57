"""Logged episodes in replay buffers, row by row, and what is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import pytest
from small import SPEC, numbered_frames, toy_dataset, toy_episode, write_v_d4rl
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import one_sentence

from voc_rl.agents.sb3 import fill_replay_buffer, offline, train_offline
from voc_rl.data import Episodes, write_episode
from voc_rl.data.border import machine_memory
from voc_rl.errors import VOCError

SIDE = 10  # of frames whose channels are the shortest axis, or Stable-Baselines3 turns them round
LENGTHS, TERMINATED = (5, 2, 7, 4, 6), (1, 3)
TRANSITIONS = sum(LENGTHS) - len(LENGTHS)
PIXELS = gym.spaces.Box(0, 255, (9, SIDE, SIDE), np.uint8)
STATE = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
MORE = 1000.0


class Blank(gym.Env[Any, Any]):
    """Nothing but spaces: where an agent comes from that never acts."""

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any] = ACTIONS) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def agent(
    algorithm: Any = SAC, space: gym.Space[Any] = STATE, envs: int = 1, actions: gym.Space[Any] = ACTIONS,
    policy: str = "MlpPolicy", **kwargs: Any,
) -> Any:  # fmt: skip
    env = DummyVecEnv([lambda: Blank(space, actions)] * envs)
    if algorithm is not PPO:
        kwargs = {"buffer_size": 100, **kwargs}
    return algorithm(policy, env, policy_kwargs={"net_arch": [4]}, device="cpu", seed=0, **kwargs)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("toy")
    for i, rows in enumerate(LENGTHS):
        episode = toy_episode(i, rows, i in TERMINATED, numbered_frames(40 * i, rows, SIDE, SIDE))
        write_episode(folder / f"episode_{i:03d}.hdf5", episode, SPEC)
    return Episodes.open(folder)


def richer(dataset: Episodes) -> Episodes:
    """The same episodes, but for ``MORE`` reward at each step."""
    other = dataset.subset(range(len(LENGTHS)))
    other.reward = other.reward + np.float32(MORE)
    return other


class Transition(NamedTuple):
    """What the numbers of ``toy_episode`` say of the step that leads to row t of episode i."""

    i: int
    t: int

    def observation(self, pixels: bool, t: int) -> np.ndarray:
        if not pixels:
            return np.array([t, -t, self.i], np.float32)
        stack = [40 * self.i + max(t - back, 0) for back in (2, 1, 0)]
        return np.repeat(np.array(stack, np.uint8), 3)[:, None, None] * np.ones((1, SIDE, SIDE), np.uint8)

    def numbers(self, pixels: bool) -> tuple[Any, ...]:
        over = self.t == LENGTHS[self.i] - 1
        return (
            self.observation(pixels, self.t - 1), self.observation(pixels, self.t),
            np.array([self.i, self.t], np.float32) / 100, 100.0 * self.i + self.t, float(over),
            float(over and self.i not in TERMINATED),
        )  # fmt: skip


EXPECTED = [Transition(i, t) for i, rows in enumerate(LENGTHS) for t in range(1, rows)]


def stored(buffer: Any, k: int) -> tuple[Any, ...]:
    """The k-th transition, where they are dealt to the environments in turn."""
    arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones,
              buffer.timeouts)  # fmt: skip
    return tuple(array[k // buffer.n_envs, k % buffer.n_envs] for array in arrays)


@pytest.mark.parametrize("at_once", [2, 512])
@pytest.mark.parametrize("envs", [1, 4])
@pytest.mark.parametrize("pixels", [False, True])
def test_every_transition_lands_once_and_whole(
    pixels: bool, envs: int, at_once: int, dataset: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "_AT_ONCE", at_once)
    model = agent(space=PIXELS if pixels else STATE, envs=envs)
    kept = TRANSITIONS // envs * envs
    assert (TRANSITIONS, kept) == (19, 19 if envs == 1 else 16)
    lots = [dataset, richer(dataset)]
    for lot in range(2):  # the second lot comes behind the first
        assert fill_replay_buffer(model, lots[lot], say=None) == kept
        assert model.replay_buffer.size() * envs == (lot + 1) * kept
        for k in range(kept):
            numbers = list(EXPECTED[k].numbers(pixels))
            numbers[3] += lot * MORE
            for found, exact in zip(stored(model.replay_buffer, lot * kept + k), numbers, strict=True):
                np.testing.assert_array_equal(found, exact)
    assert not model.replay_buffer.rewards[model.replay_buffer.size() :].any()


def test_states_may_be_observed_in_double_precision(dataset: Episodes) -> None:
    """As in Gymnasium's MuJoCo tasks."""
    model = agent(space=box((3,), -99, 99, np.float64))
    assert fill_replay_buffer(model, dataset, say=None) == TRANSITIONS
    np.testing.assert_array_equal(model.replay_buffer.observations[7, 0], EXPECTED[7].numbers(False)[0])


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_only_terminations_end_what_is_bootstrapped(algorithm: Any, dataset: Episodes) -> None:
    model = agent(algorithm)
    fill_replay_buffer(model, dataset, say=None)
    sample = model.replay_buffer.sample(1000)
    ended = dict.fromkeys((100 * t.i + t.t for t in EXPECTED), 0.0)
    ended |= {100 * i + LENGTHS[i] - 1: 1.0 for i in TERMINATED}
    rewards, dones = sample.rewards[:, 0].tolist(), sample.dones[:, 0].tolist()
    assert set(rewards) == set(ended)
    assert dones == [ended[round(reward)] for reward in rewards]
    assert sum(ended.values()) == 2


def test_returns_of_several_steps_stay_inside_their_episode(dataset: Episodes, tmp_path: Path) -> None:
    model = agent(n_steps=3, gamma=0.5)
    fill_replay_buffer(model, dataset, say=None)
    sample = model.replay_buffer.sample(500)
    for action, reward, discount in zip(sample.actions, sample.rewards, sample.discounts, strict=True):
        i, t = (round(100 * float(number)) for number in action)
        ahead = range(min(3, LENGTHS[i] - t))
        assert float(reward) == sum(0.5**k * (100 * i + t + k) for k in ahead)
        assert float(discount) == 0.5 ** len(ahead)
    with pytest.raises(VOCError, match="n_steps=3 needs an agent with one environment, not 4") as refusal:
        fill_replay_buffer(agent(n_steps=3, envs=4), dataset)
    assert one_sentence(str(refusal.value))

    # V-D4RL files may end without a last step
    write_v_d4rl(tmp_path / "shard.hdf5", (4, 3), size=SIDE, step_type=np.array([0, 1, 1, 1, 0, 1, 1]))
    with pytest.warns(UserWarning, match="without a last step"):
        cut = Episodes.open(tmp_path / "shard.hdf5")
    model = agent(space=PIXELS)
    fill_replay_buffer(model, cut, say=None)
    for array in (model.replay_buffer.dones, model.replay_buffer.timeouts):
        assert array[:6, 0].tolist() == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(("pixels", "envs", "kept"), [(False, 4, 16), (True, 1, 19)])
def test_memory_is_said_and_held_against_what_is_free(
    pixels: bool, envs: int, kept: int, dataset: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = 9 * SIDE * SIDE if pixels else 3 * 4
    needed = kept * (2 * observation + 2 * 4 + 3 * 4)  # actions; reward, done, timeout
    model, said = agent(space=PIXELS if pixels else STATE, envs=envs), list[str]()
    monkeypatch.setattr(offline, "_free_memory", lambda: needed - 1)
    with pytest.raises(VOCError, match="use fewer episodes") as refusal:
        fill_replay_buffer(model, dataset, said.append)
    assert one_sentence(str(refusal.value))
    assert len(said) == 1
    assert model.replay_buffer.size() == 0

    def say(line: str) -> None:
        said.append(line)
        assert model.replay_buffer.size() == 0  # before it is taken

    for free in (needed, None):
        monkeypatch.setattr(offline, "_free_memory", lambda free=free: free)
        model.replay_buffer.reset()
        fill_replay_buffer(model, dataset, say)
    assert set(said) == {f"The replay buffer takes 0.00 GB of memory for {kept} transitions."}
    assert len(said) == 3


def test_free_memory_is_what_the_system_says() -> None:
    free = offline._free_memory()
    known = min(psutil.virtual_memory().available, machine_memory())
    assert free is None or free == pytest.approx(known, rel=0.3)


def test_free_memory_is_no_more_than_a_container_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "machine_memory", lambda: 1000)
    assert offline._free_memory() in (None, 1000)


def test_the_buffer_has_to_be_large_enough(dataset: Episodes) -> None:
    exact = agent(buffer_size=TRANSITIONS)
    assert fill_replay_buffer(exact, dataset, say=None) == TRANSITIONS
    assert exact.replay_buffer.full
    assert exact.replay_buffer.pos == 0
    half = agent(buffer_size=2 * TRANSITIONS - 1)
    fill_replay_buffer(half, dataset, say=None)
    for model, free, enough in (
        (exact, 0, 38), (half, 18, 38), (agent(buffer_size=18), 18, 19), (agent(buffer_size=15, envs=4), 12, 16)
    ):  # fmt: skip
        before = model.replay_buffer.rewards.copy()
        with pytest.raises(VOCError) as refusal:
            fill_replay_buffer(model, richer(dataset))
        assert f"free {free}; make the agent with buffer_size={enough} or more" in str(refusal.value)
        assert one_sentence(str(refusal.value))
        np.testing.assert_array_equal(model.replay_buffer.rewards, before)


def box(shape: tuple[int, ...], low: float, high: float, dtype: Any = np.float32) -> gym.spaces.Box:
    return gym.spaces.Box(low, high, shape, dtype)


DICT = {"space": gym.spaces.Dict({"state": STATE}), "policy": "MultiInputPolicy"}
IN_TURN = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
NO_LIMITS = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: agent(PPO), "PPO keeps no replay buffer"),
        (lambda: agent(**DICT), "The agent keeps a DictReplayBuffer"),
        (lambda: agent(**IN_TURN), "optimize_memory_usage=True stores no next observations"),
        (lambda: agent(**NO_LIMITS), "handle_timeout_termination=False would take time limits for"),
        (lambda: agent(actions=box((3,), -1, 1)), "Box(-1.0, 1.0, (3,), float32); the data hold Box(-1.0, 1.0, (2,)"),
        (lambda: agent(actions=box((2,), -2, 2)), "Box(-2.0, 2.0, (2,), float32); the data hold"),
        (lambda: agent(actions=box((2,), -1, 2)), "Box(-1.0, 2.0, (2,), float32); the data hold"),
        (lambda: agent(actions=box((2,), 0, 1)), "Box(0.0, 1.0, (2,), float32); the data hold"),
        (lambda: agent(DQN, actions=gym.spaces.Discrete(4)), "are Discrete(4); the data's are no one-hot rows of 4"),
        (
            lambda: agent(DQN, space=box((4,), -9, 9), actions=gym.spaces.Discrete(4)),
            "The agent's actions are Discrete(4); the data's are no one-hot rows",
        ),
        (
            lambda: agent(space=box((4,), -9, 9)),
            "the data hold uint8 (9, 10, 10) frames and (3,) states",
        ),
        (lambda: agent(space=box((3,), -9, 9, np.int64)), "The agent observes int64 (3,)"),
        (lambda: agent(space=box((3, 12, 12), 0, 255, np.uint8)), "The agent observes uint8 (3, 12, 12)"),
        (lambda: agent(space=box((9, SIDE, SIDE), 0, 1)), "The agent observes float32 (9, 10, 10)"),
    ],
)
def test_agents_that_the_data_do_not_fit_are_refused(made: Callable[[], Any], words: str, dataset: Episodes) -> None:
    said: list[str] = []
    for refused in (
        lambda: fill_replay_buffer(made(), dataset, said.append),
        lambda: train_offline(made(), dataset, 1, progress=False, say=said.append),
    ):
        with pytest.raises(VOCError) as refusal:
            refused()
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))
    assert not said


def test_logged_numbers_that_the_agent_would_cut_are_refused(dataset: Episodes) -> None:
    def normalized(**which: bool) -> Any:
        env = VecNormalize(DummyVecEnv([lambda: Blank(STATE)]), **which)
        return SAC("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, device="cpu", buffer_size=100)

    for which in ({"norm_reward": False}, {"norm_obs": False}):
        with pytest.raises(VOCError, match="VecNormalize has no statistics yet") as refusal:
            fill_replay_buffer(normalized(**which), dataset, None)
        assert one_sentence(str(refusal.value))
    known = normalized()
    known.get_env().reset()
    for _ in range(3):
        known.get_env().step(np.zeros((1, 2), np.float32))
    assert fill_replay_buffer(known, dataset, None) == len(EXPECTED)
    assert fill_replay_buffer(normalized(norm_obs=False, norm_reward=False), dataset, None) == len(EXPECTED)


def test_actions_of_another_range_are_refused(dataset: Episodes) -> None:
    wide = dataset.subset(range(len(LENGTHS)))
    wide.action[3] = 2.0
    with pytest.raises(VOCError, match="data's actions reach 2"):
        fill_replay_buffer(agent(), wide, None)


def test_data_without_states(tmp_path: Path) -> None:
    write_episode(tmp_path / "one.hdf5", replace(toy_episode(0, 4), state=None), SPEC)
    with pytest.raises(VOCError, match=r"float32 \(3,\); the data hold uint8 .* frames and no states"):
        fill_replay_buffer(agent(), Episodes.open(tmp_path))
    few = toy_dataset(tmp_path / "few", (3,))
    assert fill_replay_buffer(agent(envs=4), few, say=None) == 0  # not one whole row of the buffer
    with pytest.raises(VOCError, match="The replay buffer is empty") as refusal:
        train_offline(agent(envs=4), few, 1, progress=False, say=None)
    assert one_sentence(str(refusal.value))

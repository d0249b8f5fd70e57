"""One episode of an environment of one's own: rows in their places, and what is refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tables import TableVOC
from worlds import refusal

from voc_rl.agents import EpsilonGreedy, NoisyPolicy, StickyMixture
from voc_rl.data import DataSpec, Episodes, write_episode
from voc_rl.envs import PixelObservation, VOCValueWrapper, record_episode
from voc_rl.errors import VOCError


def test_an_episode_of_any_environment(tmp_path):
    """What the suite's say of physics and discounts is not asked of others."""
    env = PixelObservation(Ramp(), 16, 3)
    for seed, length, terminated in ((0, 4, True), (1, 3, False)):
        env.unwrapped.length, env.unwrapped.terminates = length, terminated
        episode = record_episode(env, NoisyPolicy(Steady(), 0.1), np.random.SeedSequence(seed))
        assert episode.physics is None
        np.testing.assert_array_equal(episode.state, np.arange(length + 1)[:, None])
        np.testing.assert_array_equal(episode.frames[:, 0, 0, 0], 10 * np.arange(length + 1))
        np.testing.assert_array_equal(episode.reward, np.arange(length + 1) / 2)
        np.testing.assert_array_equal(episode.discount, [1.0] * length + [0.0 if terminated else 1.0])
        np.testing.assert_array_equal(episode.step_type, [0] + [1] * (length - 1) + [2])
        np.testing.assert_allclose(episode.action[1:], 0.5, atol=0.5)
        assert not episode.action[0].any()
        write_episode(tmp_path / f"{seed}.hdf5", episode, DataSpec(task="ramp"))
    assert Episodes.open(tmp_path).terminal.tolist() == [False] * 4 + [True] + [False] * 4


def test_what_the_environment_paid_is_recorded_where_a_wrapper_shapes_it():
    voc = TableVOC(np.random.default_rng(0).normal(size=99))
    voc.observation_shape = (3, 16, 16)
    env = VOCValueWrapper(PixelObservation(Ramp(), 16, 1), voc, mode="shaping", gamma=0.9)
    env.unwrapped.length, env.unwrapped.terminates = 4, True
    episode = record_episode(env, NoisyPolicy(Steady(), 0.1), np.random.SeedSequence(0))
    np.testing.assert_array_equal(episode.reward, np.arange(5) / 2)


class Falls(gym.Wrapper):
    """Ends an episode at its third step."""

    def step(self, action):
        observation, reward, _, truncated, info = self.env.step(action)
        return observation, reward, self.unwrapped.at == 3, truncated, info


def test_an_end_that_a_wrapper_adds_is_an_end(tmp_path):
    """The environment inside, as those of dm_control, says its own discounts, which know nothing of it."""
    for i, wrapper in enumerate((Falls, gym.Wrapper)):
        env = Odd(1.0, discount=0.75)
        env.length, env.terminates = 5, False
        episode = record_episode(
            wrapper(PixelObservation(env, 16)), NoisyPolicy(Steady(), 0.1), np.random.SeedSequence(0)
        )
        write_episode(tmp_path / f"{i}.hdf5", episode, DataSpec(task="ramp"))
    found = Episodes.open(tmp_path)
    np.testing.assert_array_equal(found.discount, [*[0.75] * 3, 0.0, *[0.75] * 6])
    assert np.flatnonzero(found.terminal).tolist() == [3]


class Steady:
    observation = "state"

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((*observation.shape[:-1], 1), 0.5, np.float32), None


class Seeing:
    observation = "pixels"

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(1, 0.5, np.float32), None


class Ramp(gym.Env):
    """Counts its steps; the reward is half the count, the picture ten times it."""

    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(0, 99, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at += 1
        over = self.at == self.length
        ends = (over and self.terminates, over and not self.terminates)
        return np.full(1, self.at, np.float32), self.at / 2, *ends, {}

    def render(self):
        return np.full((16, 16, 3), 10 * self.at, np.uint8)


def test_what_is_no_pixel_environment_of_bounded_actions_is_refused():
    seed, policy = np.random.SeedSequence(0), NoisyPolicy(Steady(), 0.1)
    wide = gym.wrappers.RescaleAction(Ramp(), np.float32(-2), np.float32(2))
    for env, words in ((Ramp(), "PixelObservation"), (PixelObservation(wide, 16), "RescaleAction")):
        with pytest.raises(VOCError, match=words):
            record_episode(env, policy, seed)
    blind = gym.wrappers.TransformObservation(
        Ramp(), lambda seen: seen, gym.spaces.Dict({"at": Ramp.observation_space})
    )
    with pytest.raises(VOCError, match=r"gives none in info\['state'\]"):
        record_episode(PixelObservation(blind, 16), policy, seed)
    with pytest.raises(VOCError, match=r"NoisyPolicy \(EpsilonGreedy, .*\) adds to anything with `predict`"):
        record_episode(PixelObservation(Ramp(), 16), Steady(), seed)
    with pytest.raises(VOCError, match="is a DummyVecEnv; one Gymnasium environment is needed"):
        record_episode(DummyVecEnv([lambda: PixelObservation(Ramp(), 16)]), policy, seed)
    for shape in ((16, 16, 3), (84, 84, 9), (4, 16, 16)):  # the channels last; four gray frames
        space = gym.spaces.Box(0, 255, shape, np.uint8)
        other = gym.wrappers.TransformObservation(Ramp(), lambda seen: seen, space)
        with pytest.raises(VOCError, match=r"\(3K, H, W\), channels first, are needed"):
            record_episode(other, policy, seed)


class Lift(Ramp):
    """Goes up by its action: 1, 2 or 3."""

    action_space = gym.spaces.Discrete(3, start=1)
    length, terminates = 5, True

    def step(self, action):
        assert action in self.action_space
        self.went = [*getattr(self, "went", []), int(action)]
        return super().step(action)


class Turns:
    """The third and the first action in turn."""

    observation, action_space = "state", Lift.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation[..., 0] % 2 == 0, 3, 1), None


def test_discrete_actions_are_recorded_one_hot():
    lift = Lift()
    policy = StickyMixture([EpsilonGreedy(Turns(), 0.0)])
    episode = record_episode(PixelObservation(lift, 16), policy, np.random.SeedSequence(0))
    np.testing.assert_array_equal(episode.action, [[0, 0, 0], *np.eye(3)[[2, 0, 2, 0, 2]]])
    assert lift.went == [3, 1, 3, 1, 3]
    np.testing.assert_array_equal(episode.log_prob, np.zeros(6))
    for wrong, words in ((NoisyPolicy(Steady(), 0.1), r"of shape \(3,\), one-hot"), (Steady(), "EpsilonGreedy")):
        with pytest.raises(VOCError, match=words):
            record_episode(PixelObservation(Lift(), 16), wrong, np.random.SeedSequence(0))


class Draws:
    """Always the same."""

    observation = "state"

    def __init__(self, action):
        self.action = action

    def start_episode(self, rng):
        pass

    def sample(self, observation, rng):
        return self.action, 0.0, 0


@pytest.mark.parametrize("number", [2, np.int64(2), np.array(2)])
def test_the_number_of_a_discrete_action_is_refused(number):
    said = refusal(record_episode, PixelObservation(Lift(), 16), Draws(number), np.random.SeedSequence(0))
    assert "drew the action 2; one of shape (3,), one-hot as EpsilonGreedy's, is needed here" in said


def test_what_is_no_action_and_no_seed_is_said_before_the_environment_moves():
    ramp, policy = Ramp(), Draws(np.array([np.nan]))
    ramp.length, ramp.terminates = 2, True
    said = refusal(record_episode, PixelObservation(ramp, 16), policy, np.random.SeedSequence(0))
    assert said == f"{policy!r} drew the action [nan]; one of shape (1,) and finite numbers is needed here."
    assert ramp.at == 0
    said = refusal(record_episode, PixelObservation(Ramp(), 16), Draws(np.zeros(1)), 0)
    assert said == "seed is 0; a SeedSequence is needed, as np.random.SeedSequence(0)."


class Buffers(gym.Env):
    """Draws every step into the same arrays, and says its state at all steps or at the first alone."""

    observation_space = gym.spaces.Box(0, 255, (6, 16, 16), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, always):
        self.always, self.at = always, 0
        self.frames, self.state = np.zeros((6, 16, 16), np.uint8), np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return self._seen()

    def step(self, action):
        self.at += 1
        frames, info = self._seen()
        return frames, 0.0, self.at == 4, False, info if self.always else {}

    def _seen(self):
        self.frames[:], self.state[:] = self.at, self.at
        return self.frames, {"state": self.state}


class Odd(Ramp):
    """Gives a reward, and what else it says of a step."""

    length, terminates = 2, True

    def __init__(self, reward, **info):
        self.reward, self.info = reward, info

    def reset(self, *, seed=None, options=None):
        return super().reset()[0], self.info

    def step(self, action):
        observation, _, *ends, _ = super().step(action)
        return observation, self.reward, *ends, self.info


def test_a_reward_is_one_number_and_what_is_said_of_a_step_a_vector():
    policy, seed = NoisyPolicy(Steady(), 0.1), np.random.SeedSequence(0)
    episode = record_episode(PixelObservation(Odd(np.array([1.5]), physics=[3, 4]), 16), policy, seed)
    assert episode.reward.tolist() == [0, 1.5, 1.5]
    np.testing.assert_array_equal(episode.physics, [[3, 4]] * 3)
    for odd, said in (
        (Odd(None), "The environment gave the reward None; one number is needed."),
        (Odd([1.0, 2.0]), "The environment gave the reward [1.0, 2.0]; one number is needed."),
        (Odd(1.0, physics=7), "info['physics'] is 7; a vector of numbers is needed."),
        (Odd(1.0, physics={"a": 1}), "info['physics'] is {'a': 1}; a vector of numbers is needed."),
    ):
        odd.at = 0
        assert refusal(record_episode, PixelObservation(odd, 16), policy, seed) == said
        assert odd.at <= 1  # at the first step


def test_environments_may_use_the_same_arrays_again_and_give_no_state():
    policy, seed = NoisyPolicy(Steady(), 0.1), np.random.SeedSequence(0)
    episode = record_episode(Buffers(True), policy, seed)
    np.testing.assert_array_equal(episode.frames[:, 0, 0, 0], np.arange(5))
    np.testing.assert_array_equal(episode.state, np.arange(5)[:, None])
    with pytest.raises(VOCError, match=r"gives none in info\['state'\]"):
        record_episode(Buffers(False), policy, seed)
    assert record_episode(Buffers(False), NoisyPolicy(Seeing(), 0.1), seed).state is None

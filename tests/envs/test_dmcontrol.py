"""The environment on dm_control: restoring, truncation, termination, actions, seeds, checkers."""

from __future__ import annotations

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

from voc_rl.envs import TASKS, DMControlEnv, make_env
from voc_rl.envs.gl import import_suite
from voc_rl.errors import VOCError


def random_actions(env: gym.Env, count: int, seed: int = 0) -> np.ndarray:
    shape = env.action_space.shape or ()
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def walker():
    env = DMControlEnv("walker-walk", action_repeat=2)
    yield env
    env.close()


@pytest.mark.parametrize("profile", ["fast", "faithful"])
@pytest.mark.parametrize("steps_before", [0, 17])
def test_restored_physics_gives_the_same_frames_and_rewards(profile, steps_before):
    original = make_env("cheetah-run", render=profile)
    other = make_env("cheetah-run", render=profile)
    frames, info = original.reset(seed=5)
    for action in random_actions(original, steps_before):
        frames, _, _, _, info = original.step(action)
    other.reset(seed=77)
    stack = frames.reshape(3, 3, 84, 84)
    restored, restored_info = other.reset(options={"physics": info["physics"], "frames": stack})
    np.testing.assert_array_equal(restored, frames)
    np.testing.assert_array_equal(original.render(), other.render())
    np.testing.assert_array_equal(restored_info["state"], info["state"])
    np.testing.assert_array_equal(restored_info["physics"], info["physics"])
    for action in random_actions(original, 20, seed=1):
        expected, found = original.step(action), other.step(action)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:4] == expected[1:4]
        np.testing.assert_array_equal(found[4]["physics"], expected[4]["physics"])
    original.close(), other.close()


@pytest.mark.parametrize("task", ["reacher-easy", "finger-turn_hard", "quadruped-escape", "lqr-lqr_6_2"])
def test_what_a_task_draws_into_its_model_follows_from_the_seed(task):
    original, other = DMControlEnv(task), DMControlEnv(task)
    original.reset(seed=3)
    for action in random_actions(original, 5):
        *_, info = original.step(action)
    other.reset(seed=4)
    other.reset(seed=3, options={"physics": info["physics"]})
    np.testing.assert_array_equal(other.render(), original.render())
    for action in random_actions(original, 5, seed=1):
        expected, found = original.step(action), other.step(action)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1] == expected[1]
    # Without a seed the running episode's target stays where it is.
    original.reset(options={"physics": info["physics"]})
    other.reset(seed=3, options={"physics": info["physics"]})
    np.testing.assert_array_equal(original.render(), other.render())
    original.close(), other.close()


def test_time_limit_truncates_and_restoring_starts_the_count_again(walker):
    assert walker.max_episode_steps == 500
    assert DMControlEnv("walker-walk", action_repeat=3).max_episode_steps == 333  # never beyond 1000 steps
    env = DMControlEnv("walker-walk", max_episode_steps=3)
    _, info = env.reset(seed=0)
    assert info["discount"] == 1.0
    ends = [env.step(action)[2:4] for action in random_actions(env, 3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.reset(options={"physics": info["physics"]})
    assert [env.step(action)[3] for action in random_actions(env, 3)] == [False, False, True]
    env.close()


def test_termination_has_discount_zero_and_stops_the_repeats():
    env = DMControlEnv("lqr-lqr_2_1", action_repeat=4)
    assert env.max_episode_steps is None
    _, info = env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, info["discount"]) == (False, False, 1.0)
    env.reset(options={"physics": np.zeros_like(info["physics"])})  # at rest: the task's own end
    _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, info["discount"]) == (True, False, 0.0)
    assert env.physics.data.time == pytest.approx(env.physics.timestep())
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1, np.float32))
    env.close()
    for use in (env.reset, env.render, lambda: env.step(np.zeros(1, np.float32))):
        with pytest.raises(ClosedEnvironmentError, match="make a new one"):
            use()


def test_action_repeat_sums_the_rewards():
    once, twice = DMControlEnv("walker-walk"), DMControlEnv("walker-walk", action_repeat=2)
    once.reset(seed=1), twice.reset(seed=1)
    for action in random_actions(once, 5):
        first, second, both = once.step(action), once.step(action), twice.step(action)
        assert both[1] == first[1] + second[1]
        np.testing.assert_array_equal(both[0], second[0])
    once.close(), twice.close()


def test_actions_are_rescaled_to_the_bounds_and_clipped():
    env = DMControlEnv("quadruped-walk")
    env.reset(seed=0)
    low, high = env.physics.model.actuator_ctrlrange.T
    assert high.max() > 1
    for value, expected in ((-1, low), (1, high), (-7, low), (7, high)):
        env.step(np.full(12, value, np.float32))
        np.testing.assert_allclose(env.physics.data.ctrl, expected, rtol=1e-15)
    env.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(5), r"shape \(5,\); \(6,\) is needed"),
        (np.zeros((1, 6)), r"shape \(1, 6\)"),
        (np.full(6, np.nan), "not finite"),
        (np.full(6, np.inf), "not finite"),
    ],
)
def test_bad_actions_are_refused(walker, action, message):
    walker.reset(seed=0)
    with pytest.raises(VOCError, match=message):
        walker.step(action)


def test_bad_physics_is_refused(walker):
    _, info = walker.reset(seed=0)
    with pytest.raises(VOCError, match=r"shape \(3,\); \(\d+,\) is needed"):
        walker.reset(options={"physics": np.zeros(3)})
    with pytest.raises(VOCError, match="NaN"):
        walker.reset(options={"physics": np.full_like(info["physics"], np.nan)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "walker-wlak"}, "did you mean walker-walk"),
        ({"task": "zzz"}, "Unknown task 'zzz'"),
        ({"task": "walker-walk", "render": "nice"}, "render profile 'nice'; accepted: faithful, fast"),
        ({"task": "walker-walk", "camera": 9}, "cameras -1 to 1"),
        ({"task": "walker-walk", "action_repeat": 0}, "action_repeat is 0"),
        ({"task": "walker-walk", "max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"task": "walker-walk", "size": 0}, "size is 0"),
        ({"task": "walker-walk", "render_mode": "human"}, "'rgb_array' is needed"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(VOCError, match=message) as caught:
        DMControlEnv(**arguments)
    assert "\n" not in str(caught.value)


def test_observations_are_the_flat_state_in_dm_controls_order(walker):
    observation, info = walker.reset(seed=0)
    physics = walker.physics
    parts = [physics.orientations(), [physics.torso_height()], physics.velocity()]
    np.testing.assert_array_equal(observation, np.concatenate(parts).astype(np.float32))
    np.testing.assert_array_equal(info["state"], observation)
    assert info["state"].dtype == np.float32
    assert info["physics"].dtype == np.float64


def test_seeds_repeat_and_unseeded_episodes_differ(walker):
    first, again = walker.reset(seed=9)[0], walker.reset(seed=9)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(walker.reset()[0], walker.reset()[0])
    fresh = DMControlEnv("walker-walk", action_repeat=2)
    np.testing.assert_array_equal(fresh.reset(seed=9)[0], first)
    fresh.close()


def test_pickled_environment_is_made_anew(walker):
    copy = pickle.loads(pickle.dumps(make_env("cheetah-run", size=32, max_episode_steps=7)))
    assert copy.unwrapped.max_episode_steps == 7
    assert copy.reset(seed=0)[0].shape == (9, 32, 32)
    copy.close()


def test_static_list_of_tasks_is_dm_controls():
    suite = import_suite()  # with a backend that the tests after this one can draw with

    assert set(TASKS) == {f"{domain}-{task}" for domain, task in suite.ALL_TASKS}


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning", "ignore:.*unwrapped version:UserWarning")
def test_checkers_of_gymnasium_and_stable_baselines_pass(walker):
    stable_baselines = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(dtype|bounds|deterministic|within).*")
        check_env(walker, skip_render_check=True)
        env = gym.make("voc_rl/cheetah-run-v0", size=36)  # Stable-Baselines3 warns below 36 pixels
        check_env(env, skip_render_check=True)
        stable_baselines.check_env(env)
    env.close()

"""gymnasium.make, specs that make the same environment again, and vector environments."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np

from voc_rl.envs import TASKS, make_env, register_envs


def test_every_task_is_registered_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Gymnasium warns where an id is registered twice
        register_envs()
    assert all(f"voc_rl/{task}-v0" in gym.registry for task in TASKS)


def test_made_by_name_and_by_spec_it_is_the_same_environment():
    env = gym.make("voc_rl.envs:voc_rl/walker-walk-v0", size=32, stack=2, action_repeat=4, render_mode=None)
    assert env.render_mode == "rgb_array"  # Gymnasium's default, None, is ours
    again = gym.make(env.spec)
    assert again.spec == env.spec
    assert gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).spec == env.spec
    direct = make_env("walker-walk", size=32, stack=2, action_repeat=4)
    expected, info = direct.reset(seed=3)
    for made in (env, again):
        found, found_info = made.reset(seed=3)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_info["physics"], info["physics"])
        made.close()
    direct.close()


def test_asynchronous_vector_environment_equals_single_ones():
    vector = gym.make_vec(
        "voc_rl/cheetah-run-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        size=32,
        max_episode_steps=3,
    )
    try:
        found, info = vector.reset(seed=[4, 5])
        assert info["physics"].shape[0] == 2
        actions = np.zeros((2, 6), np.float32)
        stepped = [vector.step(actions) for _ in range(3)]
    finally:
        vector.close()
    assert [step[3].tolist() for step in stepped] == [[False, False], [False, False], [True, True]]
    for index in range(2):
        env = make_env("cheetah-run", size=32)
        np.testing.assert_array_equal(env.reset(seed=4 + index)[0], found[index])
        for step in stepped:
            observation, reward, *_ = env.step(actions[index])
            np.testing.assert_array_equal(observation, step[0][index])
            assert reward == step[1][index]
        env.close()

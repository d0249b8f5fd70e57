"""The value wrapper: what it shows is what the VOC says, and Gymnasium's and Stable-Baselines3's checks pass."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from square import VALUE_MODES, square_env
from stable_baselines3.common import env_checker

from voc_rl import VOC, VOCValueVectorWrapper, VOCValueWrapper
from voc_rl.plugin import codes_as_vectors, codes_size, feature_size, feature_vectors

RIGHT, STAY = np.ones(1, np.float32), -np.ones(1, np.float32)


@pytest.fixture(scope="module")
def voc(square_voc: Path) -> VOC:
    return VOC.load(square_voc)


@pytest.mark.parametrize("options", VALUE_MODES)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # both checkers advise against unbounded observations
def test_checkers_pass(options: dict[str, Any], ends: bool, square_voc: Path) -> None:
    check_env(VOCValueWrapper(square_env(ends=ends), square_voc, **options), skip_render_check=True)
    env_checker.check_env(VOCValueWrapper(square_env(ends=ends), square_voc, **options))


def test_info_holds_what_the_voc_says(voc: VOC, square_voc: Path) -> None:
    env = VOCValueWrapper(square_env(), square_voc, successor_features=True, futures=5, samples=30)
    plain = square_env()
    obs, info = env.reset(seed=4)
    seen = [(obs, info["voc"])]
    np.testing.assert_array_equal(obs, plain.reset(seed=4)[0])
    for action in (RIGHT, RIGHT, STAY, RIGHT):
        obs, reward, terminated, truncated, info = env.step(action)
        expected = plain.step(action)
        np.testing.assert_array_equal(obs, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        seen.append((obs, info["voc"]))
    for obs, shown in seen:
        assert set(shown) == {"value", "stderr", "gamma", "successor_features", "futures"}
        estimate = voc.value(obs[None])
        assert (shown["value"], shown["stderr"]) == (estimate.mean[0], estimate.stderr[0])
        assert shown["gamma"] == voc.gamma
        np.testing.assert_array_equal(
            shown["successor_features"], voc.successor_features(obs[None], 30, common=True)[0]
        )
        np.testing.assert_array_equal(shown["futures"], voc.sample_futures(obs[None], 5, common=True)[0])
        assert shown["futures"].shape == (5, voc.quantizer.n_tokens)
    assert len({shown["value"] for _, shown in seen}) > 2


def test_sampled_values_at_a_larger_discount_are_a_function_of_the_frames(voc: VOC, square_voc: Path) -> None:
    options: dict[str, Any] = {"estimator": "sample", "gamma": 0.8, "samples": 40}
    one, other = (VOCValueWrapper(square_env(), square_voc, **options) for _ in range(2))
    obs, info = one.reset(seed=1)
    for _ in range(3):
        other.step(RIGHT) if other.get_wrapper_attr("steps") else other.reset(seed=9)
    again = other.reset(seed=1)[1]
    assert info["voc"] == again["voc"]  # whatever was asked before
    assert info["voc"]["gamma"] == 0.8
    expected = voc.value(obs[None], 0.8, "sample", 40, common=True)
    assert (info["voc"]["value"], info["voc"]["stderr"]) == (expected.mean[0], expected.stderr[0])


@pytest.mark.parametrize("kind", ["context", "tokens", "successor", "codes"])
def test_observations_hold_values_and_features(kind: Any, voc: VOC, square_voc: Path) -> None:
    def first(observe: str) -> tuple[Any, gym.Space[Any]]:
        shown = {"observe": observe} if observe == "value" else {"observe": observe, "features": kind}
        env = VOCValueWrapper(square_env(), square_voc, "observation", **shown)  # type: ignore[arg-type]
        obs, _ = env.reset(seed=2)
        assert env.observation_space.contains(obs)
        return obs, env.observation_space

    pixels = square_env().reset(seed=2)[0]
    with torch.no_grad():
        of_codes = codes_as_vectors(*voc.context(pixels[None]))
        expected = (of_codes if kind == "codes" else feature_vectors(voc, pixels[None], kind)).numpy()[0]
    value, _ = first("value")
    both, space = first("features")
    alone, _ = first("features_only")
    assert set(value) == {"pixels", "value"}
    assert set(both) == {"pixels", "features"}
    np.testing.assert_array_equal(value["pixels"], pixels)
    np.testing.assert_array_equal(value["value"], voc.value(pixels[None]).mean.astype(np.float32))
    np.testing.assert_array_equal(both["features"], expected)
    np.testing.assert_array_equal(alone, expected)
    assert expected.shape == (codes_size(voc) if kind == "codes" else feature_size(voc, kind),)
    assert space["features"].dtype == np.float32  # type: ignore[index]


def test_shaping_adds_the_potential_at_the_agents_discount(voc: VOC, square_voc: Path) -> None:
    env = VOCValueWrapper(square_env(limit=4, ends=True), square_voc, "shaping", gamma=0.99)
    obs, _ = env.reset(seed=0)
    over, ends = False, []
    for action in [RIGHT, RIGHT, STAY, RIGHT, STAY] * 4:
        before = voc.value(obs[None]).mean[0]
        obs, reward, terminated, truncated, info = env.step(action)
        after = 0.0 if terminated else voc.value(obs[None]).mean[0]
        assert reward == pytest.approx(info["voc"]["raw_reward"] + 0.99 * after - before, abs=1e-9)
        assert info["voc"]["gamma"] == voc.gamma  # the potential is at the VOC's own discount
        over = terminated or truncated
        if over:
            ends.append(terminated)
            obs, _ = env.reset()
    assert set(ends) == {True, False}


# --- specs, pickles, processes


def test_spec_round_trip(square_voc: Path) -> None:
    gym.register("voc_rl_test/Square-v0", "square:square_env")
    try:
        made = gym.make("voc_rl_test/Square-v0", limit=7)
        env = VOCValueWrapper(made, square_voc, "observation", observe="features_only", futures=2)
        spec = env.spec
        assert spec is not None
        for again in (gym.make(spec), gym.make(EnvSpec.from_json(spec.to_json()))):
            assert again.spec == spec
            assert again.observation_space == env.observation_space
            one, two = env.reset(seed=3), again.reset(seed=3)
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1]["voc"]["futures"], two[1]["voc"]["futures"])
        kwargs = spec.additional_wrappers[-1].kwargs
        assert kwargs is not None
        assert kwargs["voc"] == str(square_voc)  # a path, not the weights
    finally:
        del gym.registry["voc_rl_test/Square-v0"]


def test_pickles_hold_the_path(square_voc: Path, voc: VOC) -> None:
    env = VOCValueWrapper(square_env(), square_voc)
    path, weights = pickle.dumps(env), (square_voc / "voc.safetensors").stat().st_size
    assert len(path) < weights / 2
    assert len(pickle.dumps(VOCValueWrapper(square_env(), voc))) > weights
    again = pickle.loads(path)
    assert again.reset(seed=5)[1]["voc"] == env.reset(seed=5)[1]["voc"]


# --- cost


def test_a_step_costs_one_question_and_little_time(square_voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = VOC.context
    monkeypatch.setattr(VOC, "context", lambda self, obs: asked.append(len(obs)) or whole(self, obs))
    env: Any = SyncVectorEnv([lambda: square_env()] * 8)
    together = VOCValueVectorWrapper(env, square_voc, "observation", observe="features", futures=2)
    together.reset(seed=0)
    asked.clear()
    together.step(np.ones((8, 1), np.float32))
    assert asked == [8]
    one = VOCValueWrapper(square_env(limit=10**6), square_voc)
    one.reset(seed=0)
    asked.clear()
    times = []
    for _ in range(50):
        start = time.thread_time()  # of this thread alone: other work on the machine does not count
        one.step(RIGHT)
        times.append(time.thread_time() - start)
    assert asked == [1] * 50
    assert np.median(times) < 0.01

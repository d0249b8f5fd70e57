"""Agents whose environment shows, pays or is something else than the logged data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from square import SIDE, SPEC, Square, square_env, write_square_walks
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from worlds import refusal

from voc_rl.agents.sb3 import VOCFeaturesExtractor, fill_replay_buffer
from voc_rl.data import Episodes
from voc_rl.envs import VOCValueWrapper
from voc_rl.envs.value_sb3 import VecVOCValue
from voc_rl.policy import observation_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return Episodes.open(write_square_walks(tmp_path_factory.mktemp("square")))


def agent(env: Any, **kwargs: Any) -> SAC:
    frames = env.observation_space.dtype == np.uint8
    policy: Any = "CnnPolicy" if frames else "MlpPolicy"
    return SAC(policy, env, buffer_size=1000, learning_starts=10**6, device="cpu", seed=0, **kwargs)


def wrapped(voc: Path, vectorised: bool, **settings: Any) -> Any:
    if vectorised:
        return VecVOCValue(DummyVecEnv([square_env]), voc, **settings)
    return VOCValueWrapper(square_env(), voc, **settings)


@pytest.mark.parametrize("vectorised", [False, True])
def test_what_a_value_wrapper_shows_or_pays_is_not_logged(
    square_voc: Path, dataset: Episodes, vectorised: bool
) -> None:
    plain = agent(wrapped(square_voc, vectorised))
    assert fill_replay_buffer(plain, dataset, say=None) == (dataset.steps_left > 0).sum()
    shaped = agent(wrapped(square_voc, vectorised, mode="shaping", gamma=0.9))
    assert "shapes rewards, and the data hold raw ones" in refusal(fill_replay_buffer, shaped, dataset, say=None)
    features = wrapped(square_voc, vectorised, mode="observation", observe="features_only", features="tokens")
    seeing = agent(features)
    assert "observes a value wrapper's values or features" in refusal(fill_replay_buffer, seeing, dataset, say=None)
    assert seeing.replay_buffer is not None
    assert seeing.replay_buffer.size() == shaped.replay_buffer.size() == 0  # type: ignore[union-attr]
    nested = wrapped(square_voc, vectorised, mode="shaping", gamma=0.9)
    outer = VecVOCValue(nested, square_voc) if vectorised else VOCValueWrapper(nested, square_voc)
    for env in (outer, VecVOCValue(DummyVecEnv([lambda: outer]), square_voc)) if not vectorised else (outer,):
        assert "shapes rewards" in refusal(fill_replay_buffer, agent(env), dataset, say=None)
    # of the width of states it would be taken for one of states
    assert "observes what a VOC says of frames" in refusal(observation_of, seeing)
    assert observation_of(plain) == "pixels"


def test_a_closed_environment_says_nothing(dataset: Episodes) -> None:
    env = SubprocVecEnv([square_env], start_method="spawn")
    model = agent(env)
    env.close()
    assert observation_of(model) == "pixels"
    assert fill_replay_buffer(model, dataset, say=None) == (dataset.steps_left > 0).sum()
    env = SubprocVecEnv([flat_env], start_method="spawn")
    model = agent(env)
    assert observation_of(model) == "state"
    env.close()
    assert observation_of(model) == "state"


def flat_env() -> Square:
    return Square()


def test_data_of_another_environment_are_warned_of(dataset: Episodes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_replay_buffer(agent(square_env(spec=replace(SPEC, policy="another"))), dataset, say=None)
    other = replace(SPEC, task="triangle", action_repeat=7, camera=3)
    with pytest.warns(UserWarning, match="logged with") as caught:
        fill_replay_buffer(agent(square_env(spec=other)), dataset, say=None)
    said = [str(w.message) for w in caught]
    assert f"The data were logged with task {dataset.spec.task!r}, the environment has 'triangle'." in said
    assert len(said) == len(dataset.spec.differences(other))


def test_data_of_another_task_than_the_vocs_are_warned_of(square_voc: Path, dataset: Episodes) -> None:
    """Of an agent that sees frames through it."""
    eyes = {"features_extractor_class": VOCFeaturesExtractor, "features_extractor_kwargs": {"voc": square_voc}}
    other = dataset.subset(range(2))
    other.spec = replace(dataset.spec, task="triangle")
    with pytest.warns(UserWarning, match="The VOC was trained with task 'square', this data has 'triangle'"):
        fill_replay_buffer(agent(square_env(), policy_kwargs=eyes), other, say=None)


def test_what_was_played_before_does_not_go_on_in_the_data(dataset: Episodes) -> None:
    """Returns of three steps of the last one played would be of logged rewards, from a logged frame."""
    model = agent(square_env(), n_steps=3, gamma=0.5)
    model.learn(4)
    buffer = model.replay_buffer
    assert buffer is not None
    assert not buffer.dones[3]
    buffer.rewards[:4] = 0.0
    fill_replay_buffer(model, dataset, say=None)
    found = buffer._get_samples(np.arange(4))
    assert not found.rewards.any()
    # as of a time limit: bootstrapped where playing stopped
    assert found.discounts[:, 0].tolist() == [0.125, 0.125, 0.25, 0.5]  # type: ignore[union-attr]
    assert not found.dones.any()
    last = np.asarray(found.next_observations[3]).reshape(9, SIDE, SIDE)
    np.testing.assert_array_equal(last, buffer.next_observations[3, 0])

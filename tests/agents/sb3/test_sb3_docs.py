"""The snippets of docs/wrappers_and_agents.md run, with agents that take a few steps."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from pages import README, blocks
from square import square_env
from stable_baselines3 import SAC
from stable_baselines3.common.monitor import Monitor
from worlds import small_config, write_world

import voc_rl
from voc_rl.agents.sb3 import VOCCritic, VOCFeaturesExtractor, evaluate_policy_value
from voc_rl.data import DataSpec
from voc_rl.envs import PixelObservation, VOCValueWrapper

DOCS = README.parent / "docs" / "wrappers_and_agents.md"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="there is no docs/wrappers_and_agents.md")


def run(words: str, **names: Any) -> dict[str, Any]:
    """What the page's one snippet with these words leaves behind."""
    (code,) = (block for block in blocks("python", page=DOCS) if words in block)
    exec(compile(code, DOCS.name, "exec"), names)
    return names


class Hasty(SAC):
    """Learns for no longer than it takes to see that it does."""

    def learn(self, *given: Any, **settings: Any) -> Any:
        assert given == (100_000,)
        return super().learn(20, **settings)


def test_an_agent_of_the_state_is_evaluated_beside_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "data", episodes=2, rows=12, size=84, spec=DataSpec(task="HalfCheetah-v5", size=84))
    config = small_config(0.5, quantizer=2, steps=2, reward=2)
    voc_rl.train(voc_rl.Episodes.open("data").load_frames(), config).save("runs/cheetah_voc")
    monkeypatch.setattr(gymnasium, "make", partial(gymnasium.make, max_episode_steps=8, width=84, height=84))
    left = run(
        "evaluate_policy_value(", gymnasium=gymnasium, Monitor=Monitor, PixelObservation=PixelObservation,
        VOCValueWrapper=VOCValueWrapper, SAC=partial(Hasty, device="cpu", seed=0),
        evaluate_policy_value=evaluate_policy_value,
    )  # fmt: skip
    assert (left["found"].episodes, left["model"].num_timesteps) == (10, 20)
    assert left["model"].observation_space.shape == left["env"].observation_space.shape


def test_an_agent_is_loaded_with_a_voc_that_moved(
    square_actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = shutil.copytree(square_actions / "voc", tmp_path / "here")
    policy: Any = {"features_extractor_class": VOCFeaturesExtractor, "features_extractor_kwargs": {"voc": "here"}}
    made = VOCCritic("CnnPolicy", square_env(), voc="here", policy_kwargs=policy, buffer_size=10, device="cpu", seed=0)
    made.save("agent.zip")
    (tmp_path / "moved").mkdir()
    here.rename(tmp_path / "moved/actions")
    agent = run("VOCCritic.load(", VOCCritic=VOCCritic, VOCFeaturesExtractor=VOCFeaturesExtractor)["agent"]
    frames = square_env().reset(seed=0)[0]
    np.testing.assert_array_equal(agent.predict(frames)[0], made.predict(frames)[0])

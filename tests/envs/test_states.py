"""D4RL's states set in Gymnasium's models: frames of the right rows, the simulator's check, the states not stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from voc_rl.benchmarks.layouts import d4rl_arrays, write_d4rl
from voc_rl.data.d4rl import open_d4rl
from voc_rl.envs import render_states
from voc_rl.envs.states import MODELS, StateRenderer
from voc_rl.errors import VOCError
from voc_rl.quantizers import VQVAE, VQVAEConfig

STEPS = (6, 4)


def play(task: str, seed: int = 0) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Episodes as D4RL's collection script records them, and the true state after the last step of each."""
    env: Any = gym.make(task, **MODELS[task]).unwrapped
    rng, rows, after = np.random.default_rng(seed), [], []
    for i, steps in enumerate(STEPS):
        observation, _ = env.reset(seed=seed + i)
        for t in range(steps):
            row = {"observations": observation, "infos/qpos": env.data.qpos.copy(), "infos/qvel": env.data.qvel.copy()}
            row["actions"] = rng.uniform(-1, 1, 6).astype(np.float32)
            observation, row["rewards"], *_ = env.step(row["actions"])
            row |= {"next_observations": observation, "terminals": False, "timeouts": t == steps - 1}
            rows.append(row)
        after.append(np.concatenate([env.data.qpos, env.data.qvel]))
    env.close()
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}, after


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Walker2d-v5"])
@pytest.mark.parametrize("stored", [True, False])
def test_frames_of_stored_states(tmp_path: Path, task: str, stored: bool) -> None:
    arrays, after = play(task)
    if not stored:
        del arrays["next_observations"]
    path = tmp_path / f"{task.split('-')[0].lower()}_random-v2.hdf5"
    write_d4rl(path, arrays)
    states = open_d4rl(path)
    dataset, check = render_states(states, size=24)
    assert (dataset.spec.task, dataset.spec.size, dataset.spec.render) == (task, 24, "fast")
    assert check.steps == sum(STEPS) - (0 if stored else len(STEPS))
    assert check.rate == 0, check
    assert check.worst < 1e-3
    np.testing.assert_array_equal(dataset.reward, states.reward)
    np.testing.assert_array_equal(dataset.action, states.action)
    for end, true in zip(dataset.ends, after, strict=True):  # no file has the last state: it is stepped to
        np.testing.assert_allclose(dataset.physics[end - 1], true, atol=1e-4)
        expected = np.concatenate([true[1:9], np.clip(true[9:], -10, 10) if task == "Walker2d-v5" else true[9:]])
        np.testing.assert_allclose(dataset.state[end - 1], expected, atol=1e-4)
    renderer = StateRenderer(task, 24)
    for row in (0, 1, 6, 7, 8, 11):  # first, second and last of each episode
        np.testing.assert_array_equal(dataset.frames(np.array([row]))[0], renderer.frame(dataset.physics[row]))
    renderer.close()
    assert len(np.unique(dataset.frames(np.arange(12)).reshape(12, -1), axis=0)) == 12
    quantizer = VQVAE(dataset.observation_shape, VQVAEConfig())
    with torch.no_grad():
        codes = quantizer.encode(torch.as_tensor(dataset.observations(np.arange(12))))
    assert codes.shape == (12, quantizer.n_tokens)


def test_shifted_actions_are_noticed(tmp_path: Path) -> None:
    """What the check is for: the same file with each action one step late."""
    arrays, _ = play("HalfCheetah-v5")
    arrays["actions"] = np.roll(arrays["actions"], 1, 0)
    write_d4rl(tmp_path / "halfcheetah.hdf5", arrays)
    _, check = render_states(open_d4rl(tmp_path / "halfcheetah.hdf5"), size=16)
    assert check.rate == 1
    assert "10 of 10 stored steps (100.00%) differ" in str(check)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    arrays, _ = play("HalfCheetah-v5")
    write_d4rl(tmp_path / "unnamed.hdf5", arrays)
    with pytest.raises(VOCError, match="does not say its task; name one of HalfCheetah-v5, Walker2d-v5"):
        render_states(open_d4rl(tmp_path / "unnamed.hdf5"))
    assert render_states(open_d4rl(tmp_path / "unnamed.hdf5"), 16, "Walker2d-v5")[1].rate > 0.5
    with pytest.raises(VOCError, match="Ant-v5 cannot be drawn; only those of HalfCheetah-v5 and Walker2d-v5 can"):
        render_states(open_d4rl(tmp_path / "unnamed.hdf5"), task="Ant-v5")
    del arrays["infos/qpos"]
    write_d4rl(tmp_path / "halfcheetah.hdf5", arrays)
    with pytest.raises(VOCError, match="The episode has no simulator states"):
        render_states(open_d4rl(tmp_path / "halfcheetah.hdf5"))
    write_d4rl(tmp_path / "walker2d.hdf5", d4rl_arrays((3,)))
    with pytest.raises(VOCError, match="states of 18 numbers and actions of 2"):
        render_states(open_d4rl(tmp_path / "walker2d.hdf5"))

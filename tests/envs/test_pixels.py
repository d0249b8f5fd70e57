"""The pixel wrapper on a small environment whose frames say which step they show."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from voc_rl.data import DataSpec
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError


class Counter(gym.Env[np.ndarray, int]):
    """Its frame is filled with 10 times the step count; its observation is the step count."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = "rgb_array", height: int = 8, flat: bool = True) -> None:
        self.render_mode, self.height = render_mode, height
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(0, 99, (2,) if flat else (2, 2), np.float64)
        self.options: Any = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.options = 0, options
        return self._observation(), {"kept": 1}

    def step(self, action):
        self.steps += 1
        return self._observation(), 1.0, False, False, {"kept": 1}

    def render(self) -> Any:
        return np.full((self.height, 8, 3), 10 * self.steps, np.uint8)

    def _observation(self) -> np.ndarray:
        return np.full(self.observation_space.shape, float(self.steps))


def shown(observation: np.ndarray) -> list[int]:
    return (observation[::3, 0, 0] // 10).tolist()


def test_stack_has_the_oldest_frame_first_and_starts_full():
    env = PixelObservation(Counter(), size=8, stack=3)
    observation, info = env.reset()
    assert env.observation_space.contains(observation)
    assert shown(observation) == [0, 0, 0]
    assert info["kept"] == 1
    seen = [shown(env.step(0)[0]) for _ in range(4)]
    assert seen == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert shown(env.reset()[0]) == [0, 0, 0]


def test_a_step_that_only_resets_fills_the_stack():
    ends = gym.wrappers.TimeLimit(Counter(), 2)
    env = PixelObservation(gym.wrappers.Autoreset(ends), size=8, stack=3)
    env.reset()
    assert [shown(env.step(0)[0]) for _ in range(4)] == [[0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1]]
    env.step(0)
    env.reset()  # asked for, after an end
    assert shown(env.step(0)[0]) == [0, 0, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a choice of backends")
def test_tasks_of_mujoco_draw_without_a_screen():
    code = """
import gymnasium as gym
from voc_rl.envs import PixelObservation
env = PixelObservation(gym.make("HalfCheetah-v5", render_mode="rgb_array"), 36, 2)
observation, _ = env.reset(seed=0)
print(observation.shape, observation.std() > 20)
"""
    headless = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=headless)
    assert found.stdout.strip() == "(6, 36, 36) True", found.stderr[-2000:]


def test_an_environment_may_draw_into_one_array():
    class Reusing(Counter):
        buffer = np.zeros((3, 8, 8), np.uint8)

        def render(self) -> Any:
            self.buffer[:] = 10 * self.steps
            return self.buffer.transpose(1, 2, 0)

    env = PixelObservation(Reusing(), size=8, stack=3)
    env.reset()
    assert [shown(env.step(0)[0]) for _ in range(3)] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_given_frames_fill_the_stack_and_other_options_pass():
    env = PixelObservation(Counter(), size=8, stack=3)
    frames = np.stack([np.full((3, 8, 8), 10 * step, np.uint8) for step in (5, 6, 7)])
    observation, _ = env.reset(options={"frames": frames, "physics": 1})
    frames[:] = 0  # the stack holds its own copy
    assert shown(observation) == [5, 6, 7]
    assert env.unwrapped.options == {"physics": 1}
    assert shown(env.step(0)[0]) == [6, 7, 1]


def test_wrong_frames_are_refused():
    env = PixelObservation(Counter(), size=8, stack=3)
    for frames in (
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((3, 3, 8, 8)),
        np.zeros((3, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(VOCError, match=r"uint8 \(3, 3, 8, 8\) is needed"):
            env.reset(options={"frames": frames})


def test_flat_observations_are_kept_as_state():
    env = PixelObservation(Counter(), size=8)
    env.reset()
    info = env.step(0)[4]
    np.testing.assert_array_equal(info["state"], np.ones(2, np.float32))
    assert info["state"].dtype == np.float32
    assert "state" not in PixelObservation(Counter(flat=False), size=8).reset()[1]


def test_the_state_may_stay_beside_the_frames():
    env = PixelObservation(Counter(flat=False), size=8, stack=3, render_only=False)
    for observation, at in ((env.reset()[0], 0), (env.step(0)[0], 1)):
        assert env.observation_space.contains(observation)
        assert shown(observation["pixels"]) == [0, 0, at]
        np.testing.assert_array_equal(observation["state"], np.full((2, 2), float(at)))


def test_it_says_of_which_task_frames_are():
    gym.register("voc_rl_test/Counter-v0", Counter)
    made = gym.make("voc_rl_test/Counter-v0", render_mode="rgb_array")
    del gym.registry["voc_rl_test/Counter-v0"]
    assert PixelObservation(made, size=8).data_spec == DataSpec(task="voc_rl_test/Counter-v0", size=8)
    made.unwrapped.data_spec = DataSpec(task="own", size=20, render="mine")
    assert PixelObservation(made, size=8).data_spec == DataSpec(task="own", size=8, render="mine")
    assert PixelObservation(Counter(), size=8).data_spec == DataSpec(size=8)  # not made by an id


def test_frames_of_another_size_are_resized():
    env = PixelObservation(Counter(height=20), size=12, stack=2)
    env.reset()
    observation = env.step(0)[0]
    assert observation.shape == (6, 12, 12)
    assert (observation[:3] == 0).all()
    assert (observation[3:] == 10).all()


def test_environment_that_renders_no_arrays_is_refused():
    with pytest.raises(VOCError, match="render_mode='rgb_array'") as caught:
        PixelObservation(Counter(render_mode=None))
    assert "\n" not in str(caught.value)
    env = PixelObservation(Counter(), size=8)
    env.unwrapped.render = lambda: None
    with pytest.raises(VOCError, match="renders NoneType; uint8"):
        env.reset()


def test_spec_holds_the_arguments():
    gym.register("voc_rl_test/Counter-v0", Counter)
    env = PixelObservation(
        gym.make("voc_rl_test/Counter-v0", render_mode="rgb_array"), size=10, stack=2, render_only=False
    )
    again = gym.make(env.spec)
    assert again.observation_space == env.observation_space
    assert again.spec == env.spec
    del gym.registry["voc_rl_test/Counter-v0"]

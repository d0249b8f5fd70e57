"""The world of ``worlds`` as an environment that an agent moves in, and a VOC of it for plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from worlds import CELLS, loop, picture, small_config, write_world

import voc_rl
from voc_rl.agents import train_action_voc
from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID
from voc_rl.envs import PixelObservation
from voc_rl.occupancy import OccupancyTraining, PolicyTraining

SIDE = 36  # the smallest frame that Stable-Baselines3's own convolutions take
SPEC = DataSpec(task="square", size=SIDE, render="fast", mujoco="3.0", action_repeat=1)

# one of each of what the value wrappers can be asked for
VALUE_MODES: list[dict[str, Any]] = [
    {},
    {"successor_features": True, "futures": 3, "samples": 10},
    {"estimator": "sample", "samples": 20, "gamma": 0.8},
    {"mode": "observation"},
    {"mode": "observation", "observe": "features"},
    {"mode": "observation", "observe": "features_only", "features": "tokens"},
    {"mode": "observation", "observe": "features_only", "features": "successor"},
    {"mode": "observation", "observe": "features_only", "features": "codes"},
    {"mode": "shaping", "gamma": 0.9},
]


class Square(gym.Env[np.ndarray, np.ndarray]):
    """A bright square that goes one column to the right where the action is above zero, else stays.

    Arriving at the last column pays 1; from there it goes on at the first one. Truncated after ``limit`` steps;
    with ``ends`` an episode terminates at the last column.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, limit: int = 12, ends: bool = False, spec: DataSpec = SPEC) -> None:
        self.render_mode = "rgb_array"
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gym.spaces.Box(0.0, CELLS, (1,), np.float32)
        self.limit, self.ends, self.data_spec = limit, ends, spec
        self.cell = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(CELLS - 1)), 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        before = self.cell
        if action[0] > 0:
            self.cell = (self.cell + 1) % CELLS
        self.steps += 1
        paid = float(self.cell == CELLS - 1 and before != self.cell)
        terminated = self.ends and bool(paid)
        return self._observation(), paid, terminated, self.steps >= self.limit and not terminated, {}

    def render(self) -> Any:
        return picture(np.array([self.cell]), SIDE)[0].transpose(1, 2, 0)

    def _observation(self) -> np.ndarray:
        return np.array([self.cell], np.float32)


def square_env(limit: int = 12, ends: bool = False, spec: DataSpec = SPEC) -> gym.Env:
    """``Square`` seen through three stacked frames, uint8 (9, 36, 36)."""
    return PixelObservation(Square(limit, ends, spec), size=SIDE, stack=3)


def train_square_voc(folder: Path, gamma: float = 0.5) -> Path:
    """Train a small VOC on logged walks of the square; returns its run folder."""
    write_world(folder / "data", episodes=8, rows=40, size=SIDE, spec=SPEC)
    config = small_config(gamma, quantizer=100, steps=150, reward=300)
    voc_rl.train(voc_rl.Episodes.open(folder / "data").load_frames(), config).save(folder / "voc")
    return folder / "voc"


def write_square_walks(folder: Path, episodes: int = 8, rows: int = 40) -> Path:
    """Write episodes of ``Square`` under uniform actions, one file each; returns their folder."""
    rng = np.random.default_rng(0)
    for i in range(episodes):
        world = Square(rows)
        world.reset(seed=i)
        actions = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
        actions[0] = 0
        cells, rewards = [world.cell], [0.0]
        for action in actions[1:]:
            rewards.append(world.step(action)[1])
            cells.append(world.cell)
        step_type = np.full(rows, MID, np.uint8)
        step_type[0], step_type[-1] = FIRST, LAST
        episode = Episode(
            frames=picture(np.array(cells), SIDE), action=actions, reward=np.array(rewards, np.float32),
            discount=np.ones(rows, np.float32), step_type=step_type,
        )  # fmt: skip
        write_episode(folder / f"episode_{i:06d}.hdf5", episode, SPEC)
    return folder


def train_square_actions(folder: Path, gamma: float = 0.5) -> Path:
    """Train a small VOC that reads actions on such walks; returns a folder with ``data`` and its run folder ``voc``."""
    dataset = Episodes.open(write_square_walks(folder / "data")).load_frames()
    occupancy = OccupancyTraining(gamma=gamma, loop=loop(150))
    training = PolicyTraining(occupancy=occupancy, action_share=0.7, start_share=0.0)
    train_action_voc(dataset, training, small_config(gamma, quantizer=250, reward=300)).save(folder / "voc")
    return folder

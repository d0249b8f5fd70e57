"""A ring of columns that walkers go round: policies, what columns pay, logged episodes and exact values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import worlds
from chains import values

from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID
from voc_rl.loop import LoopConfig
from voc_rl.training import VOCConfig

CELLS, GAMMA, SLIP = 6, 0.8, 0.1
QUANTIZED = VOCConfig(  # with a quantizer of columns
    quantizer_config={"n_tokens": 2, "components": 8, "hidden": 64, "decoder_width": 8},
    quantizer_training=LoopConfig(steps=150, batch_size=64, learning_rate=2e-3),
)


class Walk:
    """Goes right with probability ``right``, else left; actions are +1 and -1."""

    observation = "state"

    def __init__(self, right: float) -> None:
        self.right = right

    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random((*observation.shape[:-1], 1)) < self.right, 1.0, -1.0).astype(np.float32)

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return self.draw(observation, np.random.default_rng(0)), state


def moves(right: float) -> np.ndarray:
    """(CELLS, CELLS) of a policy: slips one column further now and then."""
    P = np.zeros((CELLS, CELLS))
    for s in range(CELLS):
        for step, share in ((1, right), (-1, 1 - right)):
            P[s, (s + step) % CELLS] += share * (1 - SLIP)
            P[s, (s + 2 * step) % CELLS] += share * SLIP
    return P


def pay() -> np.ndarray:
    """Columns 0 and 1 pay 1 and .5: walking right pays other than walking left."""
    reward = np.zeros(CELLS)
    reward[:2] = 1.0, 0.5
    return reward


def walks(folder: Path) -> Episodes:
    """40 episodes of 50 rows by the behaviour, which goes either way."""
    rng = np.random.default_rng(3)
    for i in range(40):
        cell, action = [int(rng.integers(CELLS))], [0.0]
        for _ in range(49):
            step = int(rng.choice([-1, 1]))
            action.append(float(step))
            cell.append((cell[-1] + step * (2 if rng.random() < SLIP else 1)) % CELLS)
        place = np.array(cell)
        step_type = np.full(50, MID, np.uint8)
        step_type[0], step_type[-1] = FIRST, LAST
        reward = pay()[place].astype(np.float32)
        reward[0] = 0
        episode = Episode(
            frames=worlds.picture(place, 24, CELLS), action=np.array(action, np.float32)[:, None], reward=reward,
            discount=np.ones(50, np.float32), step_type=step_type, state=place[:, None].astype(np.float32),
        )  # fmt: skip
        write_episode(folder / f"episode_{i:03d}.hdf5", episode, DataSpec(task="ring", size=24, action_repeat=1))
    return Episodes.open(folder, stack=1).load_frames()


def exact(data: Episodes, right: float, rows: np.ndarray, reward: np.ndarray | None = None) -> np.ndarray:
    assert data.state is not None
    known = values(moves(right), pay() if reward is None else reward, GAMMA)
    return known[data.state[rows, 0].astype(int)]

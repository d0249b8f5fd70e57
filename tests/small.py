"""Small data that tests write and read: episodes whose every number says where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID

SPEC = DataSpec(task="toy", size=2, action_repeat=2, render="fast")
LENGTHS = (7, 2, 9)  # rows of the episodes that tests/data opens
SIDE = 12  # pixels of the frames of squares


def generator(seed: int = 0) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def numbered_frames(first: int, rows: int, height: int = 2, width: int = 2) -> np.ndarray:
    """uint8 (rows, 3, H, W): the frame of row t is filled with first + t (mod 256)."""
    return np.broadcast_to(
        ((first + np.arange(rows)) % 256).astype(np.uint8)[:, None, None, None], (rows, 3, height, width)
    ).copy()


def toy_episode(index: int, rows: int, terminated: bool = False, frames: np.ndarray | None = None) -> Episode:
    """Episode ``index``: the frame of row t is 40 index + t, its action (index, t) / 100, its reward 100 index + t."""
    t = np.arange(rows)
    step_type = np.full(rows, MID, np.uint8)
    step_type[0], step_type[-1] = FIRST, LAST
    discount = np.ones(rows, np.float32)
    discount[-1] = 0.0 if terminated else 1.0
    action = np.stack([np.full(rows, index), t], 1).astype(np.float32) / 100
    reward = (100.0 * index + t).astype(np.float32)
    action[0], reward[0] = 0, 0
    return Episode(
        frames=numbered_frames(40 * index, rows) if frames is None else frames,
        action=action,
        reward=reward,
        discount=discount,
        step_type=step_type,
        state=np.stack([t, -t, t * 0 + index], 1).astype(np.float32),
        physics=np.stack([t / 3, t / 7], 1),
        log_prob=(-t / 10).astype(np.float32),
        unclipped_action=2 * action,
        policy_id=np.full(rows, index, np.int16),
    )


def toy_folder(folder: Path, lengths: tuple[int, ...], terminated: tuple[int, ...] = ()) -> Path:
    """One file per episode; those in ``terminated`` end by a termination."""
    for i, rows in enumerate(lengths):
        write_episode(folder / f"episode_{i:03d}.hdf5", toy_episode(i, rows, i in terminated), SPEC)
    return folder


def toy_dataset(folder: Path, lengths: tuple[int, ...], terminated: tuple[int, ...] = (), stack: int = 3) -> Episodes:
    return Episodes.open(toy_folder(folder, lengths, terminated), stack)


def moving_square(rows: int, speed: int, offset: int) -> np.ndarray:
    """uint8 (rows, 3, SIDE, SIDE): a bright square that walks over a shaded, grainy ground."""
    grain = np.random.default_rng(offset).integers(0, 20, (rows, 3, SIDE, SIDE))
    frames = (grain + np.linspace(20, 80, SIDE).astype(int)[:, None]).astype(np.uint8)
    for t in range(rows):
        left = (offset + speed * t) % (SIDE - 3)
        frames[t, :, 4:8, left : left + 4] = np.array([250, 160, 40], np.uint8)[:, None, None]
    return frames


def squares(folder: Path) -> Episodes:
    """Eight episodes of a square that walks at three speeds, frames in memory."""
    for i in range(8):
        write_episode(folder / f"{i}.hdf5", toy_episode(i, 20, frames=moving_square(20, 1 + i % 3, i)), SPEC)
    return Episodes.open(folder).load_frames()


def write_v_d4rl(
    path: Path, lengths: tuple[int, ...], first: int = 0, size: int = 2, **changed: np.ndarray | None
) -> dict[str, Any]:
    """A shard in V-D4RL's 84 px layout: many episodes, step types and small arrays as floats, no keys of ours.

    ``changed`` replaces arrays, or leaves one out where it is None. Returns what was written.
    """
    rows = sum(lengths)
    step_type = np.ones(rows)
    ends = np.cumsum(lengths)
    step_type[ends - np.array(lengths)], step_type[ends - 1] = 0, 2
    arrays: dict[str, np.ndarray | None] = {
        "observation": numbered_frames(first, rows, size, size),
        "action": np.linspace(-1, 1, rows * 2).reshape(rows, 2),
        "reward": np.where(step_type > 0, np.arange(rows) / 8, 0.0),
        "discount": np.ones((rows,)),
        "step_type": step_type,
    }
    arrays.update(changed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array)
    return arrays

"""Files in exactly the layouts of the published datasets: their keys, dtypes, compression and chunking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voc_rl.data import Episode


def write_84px(path: Path, episodes: Sequence[Episode], **changed: np.ndarray) -> None:
    """A shard as V-D4RL's conversion script writes it: gzip, automatic chunks, float64 beside float32 actions."""
    arrays = {
        "action": np.concatenate([e.action for e in episodes]).astype(np.float32),
        "discount": np.concatenate([e.discount for e in episodes]).astype(np.float64),
        "observation": np.concatenate([e.frames for e in episodes]),
        "reward": np.concatenate([e.reward for e in episodes]).astype(np.float64),
        "step_type": np.concatenate([e.step_type for e in episodes]).astype(np.float64),
    }
    arrays.update(changed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")


def write_64px(path: Path, episode: Episode, **changed: Any) -> None:
    """One episode as V-D4RL's 64 px folders hold it: np.savez_compressed, channels last, three flags."""
    rows = np.arange(len(episode.reward))
    arrays = {
        "image": np.ascontiguousarray(episode.frames.transpose(0, 2, 3, 1)),
        "action": episode.action.astype(np.float32),
        "reward": episode.reward.astype(np.float64),
        "discount": episode.discount.astype(np.float64),
        "is_first": rows == 0,
        "is_last": rows == rows[-1],
        "is_terminal": episode.discount == 0,
    }
    arrays.update(changed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})


def write_d4rl(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A file as D4RL's collection script writes it: float32 and bool, gzip, automatic chunks, a policy's metadata."""
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            kind = bool if key in ("terminals", "timeouts") else np.float32
            file.create_dataset(key, data=array.astype(kind), compression="gzip")
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["metadata/iteration"] = np.array([3], np.int32)[0]
        file["metadata/policy/nonlinearity"] = np.bytes_("relu")
        file["metadata/policy/fc0/weight"] = np.zeros((4, 17), np.float32)


def d4rl_arrays(lengths: Sequence[int], terminated: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Steps whose numbers say where they stand: in episode i, observation t is 100 i + t everywhere, qpos the same,
    qvel its negative, the action (i, t) / 1000 and its reward 1000 i + t."""
    i = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(n) for n in lengths])
    ended = np.append(np.diff(i) > 0, True)
    here = (100.0 * i + t)[:, None]
    return {
        "observations": here.repeat(17, 1),
        "actions": np.stack([i, t], 1) / 1000,
        "next_observations": here.repeat(17, 1) + 1,
        "rewards": 1000.0 * i + t,
        "terminals": ended & np.isin(i, terminated),
        "timeouts": ended & ~np.isin(i, terminated),
        "infos/action_log_probs": -here[:, 0],
        "infos/qpos": here.repeat(9, 1),
        "infos/qvel": -here.repeat(9, 1),
    }

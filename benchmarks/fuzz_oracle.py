"""Whether loaded episodes are valid, and are what the files say; written without the readers, to judge them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voc_rl.data import Episodes

_COLUMNS = ("action", "reward", "discount", "state", "physics", "log_prob", "unclipped_action", "policy_id")


def what_is_wrong(dataset: Episodes, frames: np.ndarray | None, place: Path, name: str) -> str:
    """What keeps episodes loaded from the files of a folder from being right; empty where nothing does.

    Args:
        frames: of every row, uint8 (N, 3, H, W), or None where there are none. name: of the format.
    """
    wrong = _invalid(dataset, frames)
    if wrong:
        return wrong
    try:
        return _AGAIN[name](dataset, frames, place)
    except Exception as error:
        return f"it loaded, but cannot be read by other means ({type(error).__name__}: {error})"


def _invalid(dataset: Episodes, frames: np.ndarray | None) -> str:
    rows = len(dataset.reward)
    step_type, starts = dataset.step_type, np.flatnonzero(dataset.step_type == 0)
    last = np.append(starts[1:], rows) - 1
    inside = np.setdiff1d(np.arange(rows), np.concatenate([starts, last]))
    if rows == 0 or step_type[0] != 0 or (step_type[inside] != 1).any() or not np.isin(step_type, (0, 1, 2)).all():
        return "step types that make no whole episodes"
    if frames is not None and (frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[:2] != (rows, 3)):
        return f"frames {frames.dtype} {frames.shape} for {rows} rows"
    for name in _COLUMNS:
        column = getattr(dataset, name)
        if column is not None and (len(column) != rows or not np.isfinite(column).all()):
            return f"{name} of shape {column.shape} or not finite"
    if np.abs(dataset.action).max(initial=0) > 1.001:
        return "actions outside [-1, 1]"
    if dataset.discount.min() < 0 or dataset.discount.max() > 1.001:
        return "discounts outside [0, 1]"
    return ""


def _differing(pairs: dict[str, tuple[Any, Any]]) -> str:
    """Names of what was loaded otherwise than it is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        odd = [
            name
            for name, (loaded, stored) in pairs.items()
            if not np.array_equal(loaded, np.asarray(stored).astype(np.asarray(loaded).dtype))
        ]
    return f"{', '.join(odd)} differ from what is stored" if odd else ""


def _shard(dataset: Episodes, frames: np.ndarray | None, place: Path) -> str:
    """Every row that was kept is the file's row of that number, frame and all."""
    with h5py.File(next(place.glob("*.hdf5"))) as file:
        raw = {key: file[key][()] for key in file}
    rows = dataset.stored_rows
    columns = [name for name in (*_COLUMNS, "step_type") if getattr(dataset, name) is not None]
    pairs = {name: (getattr(dataset, name), raw[name][rows]) for name in columns}
    return _differing({**pairs, "frames": (frames, raw["observation"][rows])})


def _npz(dataset: Episodes, frames: np.ndarray | None, place: Path) -> str:
    """The episodes are those of some of the files, in their order."""
    assert frames is not None
    files = sorted(place.glob("*.npz"))
    for start, end in zip(dataset.starts, dataset.ends, strict=True):
        while files:
            try:
                with np.load(files.pop(0)) as raw:
                    same = {
                        "action": (dataset.action[start:end], raw["action"]),
                        "reward": (dataset.reward[start:end], raw["reward"]),
                        "discount": (dataset.discount[start:end], raw["discount"]),
                        "frames": (frames[start:end], raw["image"].transpose(0, 3, 1, 2)),
                    }
                    if not _differing(same):
                        break
            except Exception:  # a malformed one, which was to be left out
                continue
        else:
            return "an episode that is in no file"
    return ""


def _d4rl(dataset: Episodes, frames: np.ndarray | None, place: Path) -> str:
    """Rewards, actions and states in the order of the steps, and ends where the file has them."""
    with h5py.File(next(place.glob("*.hdf5"))) as file:
        raw = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals")}
        following = file["next_observations"][()] if "next_observations" in file else None
    last = np.cumsum(dataset.ends - dataset.starts - 1) - 1  # the last step of every episode
    terminated = np.zeros(len(raw["rewards"]), bool)
    terminated[last] = dataset.terminal[dataset.ends - 1]
    assert dataset.state is not None
    pairs = {
        "reward": (np.delete(dataset.reward, dataset.starts), raw["rewards"].reshape(-1)),
        "action": (np.delete(dataset.action, dataset.starts, 0), raw["actions"]),
        "state": (np.delete(dataset.state, dataset.ends - 1, 0), raw["observations"]),
        "terminal": (terminated, raw["terminals"].reshape(-1)),
    }
    if following is not None:
        pairs["last state"] = (dataset.state[dataset.ends - 1], following[last])
    return _differing(pairs)


def _minari(dataset: Episodes, frames: np.ndarray | None, place: Path) -> str:
    """Every episode is the group of its number, one row longer than its actions."""
    with h5py.File(place / "main_data.hdf5") as file:
        raw = [{key: file[f"episode_{i}"][key][()] for key in ("rewards", "terminations")} for i in range(len(file))]
        pictures = [file[f"episode_{i}"]["observations"][()] for i in range(len(file))]
    pairs = {
        "reward": (np.delete(dataset.reward, dataset.starts), np.concatenate([e["rewards"] for e in raw])),
        "terminal": (dataset.terminal[dataset.ends - 1], [e["terminations"][-1] for e in raw]),
        "steps": (dataset.ends - dataset.starts - 1, [len(e["rewards"]) for e in raw]),
    }
    if frames is not None:
        pairs["frames"] = (frames, np.concatenate(pictures).transpose(0, 3, 1, 2))
    return _differing(pairs)


_AGAIN: dict[str, Callable[[Episodes, np.ndarray | None, Path], str]] = {
    "voc": _shard, "vd4rl": _shard, "vd4rl_npz": _npz, "d4rl": _d4rl, "minari": _minari,
}  # fmt: skip

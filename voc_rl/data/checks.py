"""What a dataset holds, what is odd about it, and what training refuses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.checkpoints import atomic_path
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import COLUMNS
from voc_rl.data.spec import DataSpec
from voc_rl.data.transitions import arrived_rows
from voc_rl.errors import VOCError

LARGEST_REWARD = 1e15  # squares of values of larger ones leave float32
_SHEET_EPISODES, _SHEET_FRAMES = 6, 8


def dataset_remarks(dataset: Episodes) -> list[str]:
    """Remarks, a sentence each, on what is allowed but odd, once every frame has been read.

    Raises:
        VOCError: a frame that cannot be read.
    """
    same = dataset.has_frames and len(dataset) > 1
    if dataset.has_frames:
        first = dataset.frames(np.zeros(1, int))
        for some in dataset.blocks():
            frames = dataset.frames(some)  # of all blocks, also once two frames differ
            same = same and bool((frames == first).all())
    pictures = ["Every frame is the same picture, so that no quantizer can be trained on them."] if same else []
    return [*pictures, *_remarks(dataset)]


def check_discounts(dataset: Episodes) -> None:
    """Refuse to learn from discounts of the data's own: all that learns here discounts by gamma alone.

    Raises:
        VOCError: a discount that is not 1, or 0 in the last row of an episode.
    """
    odd = _odd_discounts(dataset)
    if len(odd):
        raise VOCError(
            f"{dataset}: {len(odd)} row(s) have a discount that training does not know (the first, row "
            f"{dataset.stored_rows[odd[0]]}, has {dataset.discount[odd[0]]:g}); write 1, leave discounting to gamma, "
            "and end an episode (step type 2) in the row where its discount is 0."
        )


def check_reward_sizes(reward: np.ndarray) -> None:
    """Refuse rewards (N,) that training cannot square.

    Raises:
        VOCError: one above ``LARGEST_REWARD``.
    """
    if (largest := float(np.abs(reward).max(initial=0))) > LARGEST_REWARD:
        raise VOCError(
            f"Rewards are as large as {largest:.3g}, and training takes {LARGEST_REWARD:.0e} at most; divide the "
            f"rewards by {largest:.0e}."
        )


def _odd_discounts(dataset: Episodes) -> np.ndarray:
    """Rows int64 that a step arrived at with a discount other than 1, or than 0 at the end of an episode."""
    fits = dataset.discount > 0.99999  # float32 may have rounded
    fits[dataset.ends - 1] |= dataset.discount[dataset.ends - 1] == 0
    fits[dataset.starts] = True  # nothing led there
    return np.flatnonzero(~fits)


def _remarks(dataset: Episodes) -> list[str]:
    remarks = []
    short = int((dataset.ends - dataset.starts < 2).sum())
    if short:
        remarks.append(f"{short} episodes have a single row, which holds no step.")
    if len(dataset) > 1 and not dataset.action.any():
        remarks.append("Every action is zero.")
    odd = len(_odd_discounts(dataset))
    if odd:
        remarks.append(
            f"{odd} rows have a discount that is neither 1 nor, in the last row of an episode, 0; such data can be "
            "read, but not trained on."
        )
    if (largest := float(np.abs(dataset.reward[arrived_rows(dataset)]).max(initial=0))) > LARGEST_REWARD:
        remarks.append(f"Rewards are as large as {largest:.3g}; such data can be read, but not trained on.")
    if not dataset.has_frames:
        remarks.append(f"There are {dataset.without_frames}.")
    return remarks


def summary(dataset: Episodes) -> dict[str, str]:
    """What a dataset holds, as words for a table."""
    lengths = dataset.ends - dataset.starts - 1
    keys = [key for key in COLUMNS if getattr(dataset, key) is not None]
    channels, height, width = dataset.frame_shape
    unsaid = asdict(DataSpec())
    made = {key: value for key, value in asdict(dataset.spec).items() if value != unsaid[key]}
    ended = int(dataset.terminal.sum())
    return {
        "episodes": f"{len(lengths)} ({ended} terminated, {len(lengths) - ended} cut by a time limit)",
        "steps": f"{lengths.sum()}",
        "steps of an episode": _spread(lengths),
        "return of an episode": _spread(dataset.returns),
        "reward of a step": _spread(np.delete(dataset.reward, dataset.starts)),
        "frames": f"{channels} x {height} x {width} uint8" if dataset.has_frames else "none",
        "arrays": ", ".join(f"{key} {list(getattr(dataset, key).shape[1:]) or ''}".strip() for key in keys),
        "made with": ", ".join(f"{key} {value}" for key, value in made.items()) or "not said",
    }


def _spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "none"
    return f"{values.min():.6g} to {values.max():.6g}, mean {values.mean(dtype=np.float64):.6g}"


def format_summary(table: dict[str, Any]) -> str:
    """Two columns of text."""
    width = max(len(key) for key in table)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in table.items())


def contact_sheet(dataset: Episodes, path: Path) -> None:
    """Draw frames of some episodes into a PNG, an episode a line, from its first row to its last.

    Raises:
        VOCError: a dataset without frames.
    """
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(dataset.starts) - 1, _SHEET_EPISODES).round().astype(int))
    lines = []
    for episode in chosen:
        rows = np.linspace(dataset.starts[episode], dataset.ends[episode] - 1, _SHEET_FRAMES).round().astype(int)
        lines.append(np.concatenate(list(dataset.frames(rows).transpose(0, 2, 3, 1)), axis=1))
    picture = Image.fromarray(np.concatenate(lines))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")

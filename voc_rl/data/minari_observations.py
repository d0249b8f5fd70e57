"""What the observations of Minari's datasets become here: frames and flat numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from voc_rl.errors import VOCError


def read_observations(observations: Any, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames uint8 (T + 1, 3, H, W), empty where there are none, and flat numbers float32 (T + 1, S) or None."""
    pictures, flat, others = sorted_leaves(observations)
    if len(pictures) > 1 or not (pictures or flat):
        found = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in (*pictures, *flat, *others))
        raise VOCError(
            f"{where}: observations are {found}; one picture, uint8 (H, W, 3K) or (3K, H, W), or numbers are needed."
        )
    state = np.concatenate(flat, 1).astype(np.float32) if flat else None
    if not pictures:
        return np.zeros((len(flat[0]), 3, 0, 0), np.uint8), state
    return np.ascontiguousarray(_channels_first(pictures[0], where)[:, -3:]), state


def sorted_leaves(observations: Any) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Pictures uint8 (T + 1, ., ., .), numbers (T + 1, S), of which a single one is a column, and all other leaves."""
    pictures, flat, others = [], [], []
    for leaf in map(np.asarray, _leaves(observations)):
        if leaf.dtype == np.uint8 and leaf.ndim == 4:
            pictures.append(leaf)
        elif leaf.dtype.kind in "biuf" and leaf.ndim in (1, 2):
            flat.append(leaf.reshape(len(leaf), -1))
        else:
            others.append(leaf)
    return pictures, flat, others


def _channels_first(pictures: np.ndarray, where: str) -> np.ndarray:
    """(N, H, W, 3K) or (N, 3K, H, W) as the latter: the channels are the few."""
    first, second, last = pictures.shape[1:]
    if last == 3 or (last % 3 == 0 and last < min(first, second)):
        return pictures.transpose(0, 3, 1, 2)
    if first % 3 == 0 and first < min(second, last):
        return pictures
    raise VOCError(f"{where}: pictures are {pictures.shape[1:]}; (H, W, 3K) or (3K, H, W) is needed.")


def _leaves(observations: Any) -> Iterator[Any]:
    if isinstance(observations, dict):
        observations = tuple(observations[key] for key in sorted(observations))
    if isinstance(observations, tuple):
        for part in observations:
            yield from _leaves(part)
    else:
        yield observations

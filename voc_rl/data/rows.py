"""Which rows of a dataset, or which of its episodes, are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voc_rl.errors import VOCError


def chosen(which: Sequence[int] | np.ndarray, count: int, name: str = "row", flat: bool = True) -> np.ndarray:
    """Numbers int64 from 0 to ``count`` - 1, of the same shape as those asked for; of a mask, where it is true.

    Args:
        which: whole numbers, of which -1 is the last, or a mask of bool (count,). count: how many there are.
        name: what messages call one. flat: whether one axis is needed.

    Raises:
        VOCError: other numbers than whole ones, another shape, or numbers beyond ``count``.
    """
    asked = np.asarray(which)
    if asked.dtype == bool:
        if asked.shape != (count,):
            raise VOCError(f"The mask of {name}s has shape {asked.shape}; one of shape ({count},) is needed.")
        return np.flatnonzero(asked)
    if asked.size and asked.dtype.kind not in "iu":  # an empty list has no dtype of its own
        raise VOCError(f"The {name}s asked for have dtype {asked.dtype}; whole numbers or a mask of bool are needed.")
    if flat and asked.ndim != 1:
        raise VOCError(f"The {name}s asked for have shape {asked.shape}; one axis is needed.")
    outside = asked[(asked < -count) | (asked >= count)]
    if outside.size:
        raise VOCError(f"There is no {name} {outside.flat[0]}; there are {count}, from 0 to {count - 1}.")
    return asked.astype(np.int64) % count

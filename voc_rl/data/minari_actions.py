"""Minari's actions, as rows hold them: in [-1, 1], discrete ones one-hot."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.errors import VOCError
from voc_rl.policy import choices_of, one_hot

_UNBOUNDED = 1e6  # larger bounds, such as the largest float, mean that there are none


@dataclass(frozen=True)
class ActionReader:
    """Reads the actions of one dataset.

    shape: of one action there. low, high: bounds float64 (A,) of continuous ones. space: of discrete ones, or None.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    space: Any = None

    @classmethod
    def of(cls, space: Any, folder: Path) -> ActionReader:
        """The reader for a dataset's space; warns of other bounds than -1 and 1.

        Raises:
            VOCError: neither a flat Box of floats nor a Discrete space.
        """
        if (choices := choices_of(space)) is not None:
            return cls((), np.zeros(choices), np.ones(choices), space)
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        if low is None or high is None or low.ndim != 1 or low.dtype.kind != "f":
            raise VOCError(
                f"{folder}: actions are {type(space).__name__}{space.shape}; a flat Box of floats or a Discrete space "
                "is needed."
            )
        low, high = low.astype(np.float64), high.astype(np.float64)
        bounded = (np.abs(low) <= _UNBOUNDED) & (np.abs(high) <= _UNBOUNDED) & (low < high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        if (low != -1).any() or (high != 1).any():
            warnings.warn(
                f"{folder}: actions are rescaled from {_numbers(low)}..{_numbers(high)} to [-1, 1]; policies that are "
                "asked about these data have to answer in [-1, 1].",
                stacklevel=4,
            )
        return cls(low.shape, low, high)

    def read(self, actions: np.ndarray, where: str) -> np.ndarray:
        """Actions (T, A) as rows hold them, of (T, *shape) as they are stored.

        Raises:
            VOCError: numbers that no discrete action has.
        """
        if self.space is not None:
            if actions.dtype.kind not in "iu" or not all(self.space.contains(number) for number in np.unique(actions)):
                raise VOCError(f"{where}: actions {np.unique(actions)[:5]} are not all in {self.space}.")
            return one_hot(actions, self.space)
        if (self.low == -1).all() and (self.high == 1).all():
            return actions
        return 2 * (actions.astype(np.float64) - self.low) / (self.high - self.low) - 1


def _numbers(bounds: np.ndarray) -> str:
    """One number where all are the same."""
    return f"{bounds[0]:.6g}" if (bounds == bounds[0]).all() else str([float(f"{bound:.6g}") for bound in bounds])

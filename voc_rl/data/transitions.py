"""The steps of logged episodes: which rows they left and arrived at, and by which actions."""

from __future__ import annotations

import numpy as np

from voc_rl.data.episodes import Episodes
from voc_rl.errors import VOCError


def arrived_rows(dataset: Episodes) -> np.ndarray:
    """Rows int64 that a step arrived at: all but the first of each episode. Their rewards are real."""
    return np.flatnonzero(dataset.step_type > 0)


def going_rows(dataset: Episodes) -> np.ndarray:
    """Rows int64 at which an action was taken: those with a step left.

    Raises:
        VOCError: there is none.
    """
    going = np.flatnonzero(dataset.steps_left > 0)
    if len(going) == 0:
        raise VOCError("No row has a step left; episodes of at least 2 rows are needed.")
    return going


def taken_actions(dataset: Episodes) -> np.ndarray:
    """The action taken at each row, float32 (N, A): stored in the next row; 0 at the last rows of episodes."""
    taken = np.zeros_like(dataset.action)
    going = np.flatnonzero(dataset.steps_left > 0)
    taken[going] = dataset.action[going + 1]
    return taken

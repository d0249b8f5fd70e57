"""What policies would do at the logged rows: all that policy evaluation needs to know of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_positive

ROWS_AT_ONCE = 1024  # stacked frames shown to a pixel policy at once


@dataclass(frozen=True)
class PolicyActions:
    """Actions of P policies at each of N rows.

    drawn: float32 (P, N, M, A) in [-1, 1], M draws of each policy. accept: float32 (P, N), the probability
    min(1, pi / b) of keeping the action that was taken at the row, or None where densities are not known. residual:
    float32 (P, N, M, A), draws of what takes its place when it is not kept, or None.
    """

    drawn: np.ndarray
    accept: np.ndarray | None = None
    residual: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.drawn)


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


def actions_at(policy: Any, dataset: Episodes, rng: np.random.Generator) -> np.ndarray:
    """One drawn action of a policy at each row, float32 (N, A) in [-1, 1].

    From ``policy.draw(observation, rng)`` where there is one, else from Stable-Baselines3's ``predict`` with its noise.

    Raises:
        VOCError: no ``predict``, a policy of the state where the data hold none, or actions that do not fit the data's.
    """
    if not callable(getattr(policy, "predict", None)):
        raise VOCError(f"{policy!r} is no policy; `predict` and `observation` ('state' or 'pixels') are needed.")
    kind = getattr(policy, "observation", None)
    if kind == "state":
        if dataset.state is None:
            raise VOCError(f"{policy!r} observes the flat state, which these data do not hold.")
        actions = _draw(policy, dataset.state, rng)
    elif kind == "pixels":
        parts = [
            _draw(policy, dataset.observations(np.arange(first, min(first + ROWS_AT_ONCE, len(dataset)))), rng)
            for first in range(0, len(dataset), ROWS_AT_ONCE)
        ]
        actions = np.concatenate(parts)
    else:
        raise VOCError(f"{policy!r} says that it observes {kind!r}; 'state' or 'pixels' is needed.")
    if actions.shape != dataset.action.shape:
        raise VOCError(
            f"{policy!r} gave actions of shape {actions.shape[1:]}; the data have {dataset.action.shape[1:]}."
        )
    if not np.isfinite(actions).all() or np.abs(actions).max() > 1.0 + 1e-6:
        raise VOCError(f"{policy!r} gave actions outside [-1, 1]; rescale them as the data's are.")
    return actions.astype(np.float32)


def _draw(policy: Any, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if hasattr(policy, "draw"):
        return np.clip(np.asarray(policy.draw(observation, rng)), -1.0, 1.0)
    return np.asarray(policy.predict(observation, deterministic=False)[0])


def policy_actions(policies: Sequence[Any], dataset: Episodes, draws: int, rng: np.random.Generator) -> PolicyActions:
    """``draws`` actions of each policy at every row; densities are not asked for."""
    check_positive(draws, "draws")
    drawn = [np.stack([actions_at(policy, dataset, rng) for _ in range(draws)], 1) for policy in policies]
    return PolicyActions(np.stack(drawn))

"""What policies would do at the logged rows: all that policy evaluation needs to know of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_positive
from voc_rl.policy import asking, choices_of, epsilon_greedy, memoryless, named, observation_of, space_shape
from voc_rl.precision import seeded

ROWS_AT_ONCE = 1024  # stacked frames shown to a pixel policy at once


def actions_at(policy: Any, dataset: Episodes, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Drawn actions of a policy at each row, float32 (N, draws, A) in [-1, 1].

    All from one pass of ``policy.draws(observation, count, rng)``, (count, B, A), where there is one; else from
    ``policy.draw(observation, rng)`` or Stable-Baselines3's ``predict`` with its noise, a pass per draw. That noise is
    PyTorch's global one, as Stable-Baselines3's is, or the policy's own; the former follows ``rng``. Of an agent of
    discrete actions with an ``exploration_rate`` (DQN) each row explores by itself, by ``rng``, as ``EpsilonGreedy``.

    A policy is asked as it acts: its networks are in eval mode meanwhile.

    Raises:
        VOCError: no ``predict``, one with a recurrent state or that fails, a policy of the state where the data hold
            none, of observations of another shape, or actions that do not fit the data's.
    """
    if observation_of(policy) == "state":
        if dataset.state is None:
            raise VOCError(f"{named(policy)} observes states, which these data do not hold; give a policy of pixels.")
        _check_shape(policy, dataset.state.shape[1:], "states")
        actions = _draws(policy, dataset.state, draws, rng)
    else:
        _check_shape(policy, dataset.observation_shape, "stacked frames")
        parts = [
            _draws(policy, dataset.observations(np.arange(first, min(first + ROWS_AT_ONCE, len(dataset)))), draws, rng)
            for first in range(0, len(dataset), ROWS_AT_ONCE)
        ]
        actions = np.concatenate(parts, 1)
    if actions.shape != (draws, *dataset.action.shape):
        raise VOCError(
            f"{named(policy)} gave actions of shape {actions.shape}; {(draws, *dataset.action.shape)} is needed "
            "(draws, rows of the data, size of their actions; discrete ones are one-hot there)."
        )
    if not np.isfinite(actions).all() or np.abs(actions).max() > 1.0 + 1e-6:
        raise VOCError(f"{named(policy)} gave actions outside [-1, 1]; rescale them as the data's are.")
    return actions.swapaxes(0, 1).astype(np.float32, order="C")


def _check_shape(policy: Any, shape: tuple[int, ...], what: str) -> None:
    own = space_shape(policy)
    if own not in (None, shape):
        raise VOCError(
            f"{named(policy)} was made for observations of shape {own}, these data hold {what} of shape {shape}; give "
            "a policy whose `predict` takes those."
        )


def _draws(policy: Any, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, B, A): clipped, but for those of ``predict``, which promises actions in the space."""
    if hasattr(policy, "draws"):
        with asking(policy, observation, "draws(observation, count, rng)"):
            return np.clip(np.asarray(policy.draws(observation, count, rng)), -1.0, 1.0)
    if hasattr(policy, "draw"):
        with asking(policy, observation, "draw(observation, rng)"):
            return np.clip([np.asarray(policy.draw(observation, rng)) for _ in range(count)], -1.0, 1.0)
    own = rng.spawn(1)[0]  # no number of `rng` itself: other policies' draws stay what they were
    if choices_of(getattr(policy, "action_space", None)) is not None and hasattr(policy, "exploration_rate"):
        # DQN's `predict` tosses one coin for all rows, and numpy's global one
        return epsilon_greedy(memoryless(policy, observation, True), policy.exploration_rate, count, own)
    seed = int(own.integers(2**63))
    with seeded(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"), seed):
        return np.stack([memoryless(policy, observation, deterministic=False) for _ in range(count)])


def policy_actions(policies: Sequence[Any], dataset: Episodes, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``draws`` actions of each of P policies at every row, float32 (P, N, draws, A) in [-1, 1]: ``actions_at``."""
    check_positive(draws, "draws")
    return np.stack([actions_at(policy, dataset, draws, rng) for policy in policies])

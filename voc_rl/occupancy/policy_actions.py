"""What policies would do at the logged rows: all that policy evaluation needs to know of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_count
from voc_rl.policy import (
    asking,
    check_actions,
    choices_of,
    epsilon_greedy,
    holds_choices,
    memoryless,
    named,
    observation_of,
    one_hot_rows,
    space_shape,
)
from voc_rl.precision import seeded

ROWS_AT_ONCE = 1024  # stacked frames shown to a pixel policy, or matrices of noise drawn, at once


def actions_at(policy: Any, dataset: Episodes, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Drawn actions of a policy at each row, float32 (N, draws, A) in [-1, 1].

    All from one pass of ``policy.draws(observation, count, rng)``, (count, B, A), where there is one; else from
    ``policy.draw(observation, rng)`` or Stable-Baselines3's ``predict`` with its noise, a pass per draw. That noise is
    PyTorch's global one, as Stable-Baselines3's is, or the policy's own; the former follows ``rng``. Of an agent of
    discrete actions with an ``exploration_rate`` (DQN) each row explores by itself, by ``rng``, as ``EpsilonGreedy``;
    of one that explores by ``use_sde``, given or an attribute of the policy, each row of each draw by a matrix of its
    own.

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
    check_actions(policy, actions)
    if holds_choices(dataset) and not one_hot_rows(actions.reshape(-1, actions.shape[-1])):
        raise VOCError(
            f"{named(policy)} gave actions that are not one-hot, as the data's are, which are discrete; one choice a "
            "row is needed, not the chances of all (EpsilonGreedy is the noise)."
        )
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
        if explorers := _explorers(policy):
            return np.stack([_explored(policy, explorers, observation) for _ in range(count)])
        return np.stack([memoryless(policy, observation, deterministic=False) for _ in range(count)])


def _explorers(policy: Any) -> list[Any]:
    """The networks of Stable-Baselines3's that explore by ``use_sde``, in a policy or its attributes."""
    held = [getattr(own, "policy", own) for own in (policy, *getattr(policy, "__dict__", {}).values())]
    modules = (module for own in held if isinstance(own, torch.nn.Module) for module in own.modules())
    return [module for module in dict.fromkeys(modules) if getattr(module, "use_sde", False)]


def _explored(policy: Any, explorers: list[Any], observation: np.ndarray) -> np.ndarray:
    """A draw of ``predict`` (B, A), which alone would apply to all rows the one matrix of noise that was drawn last."""
    before, parts = [vars(network.action_dist).copy() for network in explorers], []
    try:
        for first in range(0, len(observation), ROWS_AT_ONCE):
            some = observation[first : first + ROWS_AT_ONCE]
            for network in explorers:
                with torch.no_grad():
                    network.reset_noise(len(some))
            parts.append(memoryless(policy, some, deterministic=False))
    finally:  # a training that goes on has the matrices that it drew
        for network, own in zip(explorers, before, strict=True):
            vars(network.action_dist).update(own)
    return np.concatenate(parts)


def policy_actions(policies: Sequence[Any], dataset: Episodes, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``draws`` actions of each of P policies at every row, float32 (P, N, draws, A) in [-1, 1]: ``actions_at``."""
    check_count(draws, "draws")
    return np.stack([actions_at(policy, dataset, draws, rng) for policy in policies])

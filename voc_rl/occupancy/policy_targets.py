"""Training targets for the futures of chosen policies, drawn from data that other policies made.

Two kinds behind one interface, for a context row t of policy p, with the action that was taken there or without:

- ``StitchedTargets``: a real row at a geometric time along the policy's chain through logged rows (``stitching.py``);
  nothing is bootstrapped. ``evaluate_policy`` uses these alone: no other kind stays near the truth with little data.
- ``CoupledTargets``: real steps as long as the logged actions can pass for the policy's (rejection coupling), at most
  n; then a sample of the target network at the policy's own action. Exact, given an exact target network and
  densities; with n = 1 the paper's target with the policy's action, which needs no densities. For ``train_policies``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_gamma, check_positive
from voc_rl.occupancy.policy_actions import PolicyActions
from voc_rl.occupancy.stitching import StitchedChain, follow
from voc_rl.occupancy.targets import geometric_times

NOWHERE = -1


@dataclass(frozen=True)
class PolicyTargets:
    """M targets for each of B contexts.

    row int64 (B, M): the dataset row that is the target, or -1. bootstrap int64 (B, M): the row from which the target
    network samples it, with ``action`` float32 (B, M, A), or -1. Where both are -1 the target is END.
    """

    row: np.ndarray
    bootstrap: np.ndarray
    action: np.ndarray


class TargetSource(Protocol):
    """Draws targets: policies int64 (B,) and rows int64 (B,) of the contexts; known bool (B,): whether the first
    action is the one that was taken (else the policy draws it, as it does at last rows, where none was taken); gamma
    (B,): discounts of the contexts; None: the source's own. ``bootstraps``: whether targets may go on in the target
    network, with an action of the policy's."""

    bootstraps: bool

    def draw(
        self, policies: np.ndarray, rows: np.ndarray, known: np.ndarray, per_row: int, rng: np.random.Generator,
        gamma: np.ndarray | None = None,
    ) -> PolicyTargets: ...  # fmt: skip


class StitchedTargets:
    """Real rows along the chain of each policy."""

    bootstraps = False

    def __init__(self, dataset: Episodes, chains: Sequence[StitchedChain], gamma: float) -> None:
        self.gamma, self.terminal, self.steps_left = check_gamma(gamma), dataset.terminal, dataset.steps_left
        self.action_size = dataset.action.shape[1]
        self.arrival = np.stack([chain.arrival for chain in chains])  # (P, N, draws)

    def draw(
        self, policies: np.ndarray, rows: np.ndarray, known: np.ndarray, per_row: int, rng: np.random.Generator,
        gamma: np.ndarray | None = None,
    ) -> PolicyTargets:  # fmt: skip
        shape = (len(rows), per_row)
        known = known & (self.steps_left[rows] > 0)
        policies, rows, known = (np.broadcast_to(x[:, None], shape) for x in (policies, rows, known))
        discount = self.gamma if gamma is None else gamma[:, None]
        at = follow(self.arrival, self.terminal, policies, rows, discount, rng, known)
        return PolicyTargets(at, np.full(shape, NOWHERE), np.zeros((*shape, self.action_size), np.float32))


class CoupledTargets:
    """Real steps while the logged actions are kept, then the target network. ``n`` = 1 needs no densities.

    Raises:
        VOCError: n above 1 without acceptance probabilities and residual draws.
    """

    bootstraps = True

    def __init__(self, dataset: Episodes, actions: PolicyActions, gamma: float, n: int) -> None:
        check_positive(n, "n")
        if n > 1 and (actions.accept is None or actions.residual is None):
            raise VOCError(
                "Coupled targets of more than one step need the density of the logged actions and the behaviour's "
                "own; use StitchedTargets, or CoupledTargets with n=1, which need neither."
            )
        self.dataset, self.actions, self.gamma, self.n = dataset, actions, check_gamma(gamma), n

    def draw(
        self, policies: np.ndarray, rows: np.ndarray, known: np.ndarray, per_row: int, rng: np.random.Generator,
        gamma: np.ndarray | None = None,
    ) -> PolicyTargets:  # fmt: skip
        dataset, actions, shape = self.dataset, self.actions, (len(rows), per_row)
        steps = geometric_times(self.gamma if gamma is None else gamma, shape, rng)
        policy, at = (np.broadcast_to(x[:, None], shape).copy() for x in (policies, rows))
        row, bootstrap = np.full(shape, NOWHERE), np.full(shape, NOWHERE)
        action = np.zeros((*shape, actions.drawn.shape[-1]), np.float32)
        open_ = ~dataset.terminal[at]  # after a termination there is only END

        def stop(where: np.ndarray, source: np.ndarray) -> None:
            """Continue in the target network, at the rows where these targets stand, with an action of ``source``."""
            drawn = rng.integers(source.shape[2], size=int(where.sum()))
            bootstrap[where], action[where] = at[where], source[policy[where], at[where], drawn]
            open_[where] = False

        def reject(where: np.ndarray) -> None:
            """Keep the logged action of these rows, or stop with a residual one."""
            if actions.accept is None or actions.residual is None:
                stop(where, actions.drawn)
                return
            refused = where & (rng.random(shape) >= actions.accept[policy, at])
            stop(refused, actions.residual)

        stop(open_ & (dataset.steps_left[at] == 0), actions.drawn)
        reject(open_ & ~known[:, None])
        for k in range(1, self.n + 1):
            at = np.where(open_, at + 1, at)
            arrived = open_ & (steps == k)
            row[arrived] = at[arrived]
            open_ &= ~arrived & ~dataset.terminal[at]
            if k < self.n:
                stop(open_ & (dataset.steps_left[at] == 0), actions.drawn)
                reject(open_.copy())
        stop(open_.copy(), actions.drawn)
        return PolicyTargets(row, bootstrap, action)

"""What the logged rows alone say of policies: their chains through the rows, values of these, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.data.checks import check_discounts
from voc_rl.errors import VOCError, check_at_least, check_count, check_positive
from voc_rl.occupancy import Candidates, StitchedChain, find_candidates, policy_actions, stitch
from voc_rl.ope.error import ErrorParts
from voc_rl.values import FittedQ, discounted_returns
from voc_rl.values.fitted_q import MEMBERS
from voc_rl.values.statistics import grouped_stderr

VISITS = 20  # futures per start, for the diagnostics
MANY_ROWS = 10_000  # from here on FEWEST of each; fewer rows get more, up to MOST, at the same cost of one chain
FEWEST_DRAWS, MOST_DRAWS = 4, 32
FEWEST_REPLICATES, MOST_REPLICATES = 8, 16


@dataclass(frozen=True)
class StitchingConfig:
    """How chains are made.

    draws: actions drawn per row and policy. action_weight: length of a unit of action against a typical distance of
    frames. bandwidth: how alike rows have to be to share visits (``voc_rl.occupancy.stitch``). replicates: chains of
    resampled episodes behind an interval. draws and replicates None: 4 and 8 for 10,000 rows and more, for fewer rows
    as many more, up to 32 and 16 (``counts``).
    """

    draws: int | None = None
    action_weight: float = 1.0
    bandwidth: float = 0.2
    replicates: int | None = None

    def __post_init__(self) -> None:
        if self.draws is not None:
            check_count(self.draws, "draws")
        check_positive(self.bandwidth, "bandwidth")
        check_at_least(self.action_weight, 0, "action_weight")
        if self.replicates is not None:
            check_count(self.replicates, "replicates")
            check_at_least(self.replicates, 2, "replicates")

    def counts(self, rows: int) -> tuple[int, int]:
        """draws and replicates for data of ``rows`` rows."""
        more = MANY_ROWS / rows
        draws = int(np.clip(FEWEST_DRAWS * more, FEWEST_DRAWS, MOST_DRAWS))
        replicates = int(np.clip(FEWEST_REPLICATES * more, FEWEST_REPLICATES, MOST_REPLICATES))
        return self.draws or draws, self.replicates or replicates


def checked_starts(dataset: Episodes, starts: np.ndarray | None) -> np.ndarray:
    """Rows int64 (S,) that values are averaged over; None: the first row of every episode.

    Raises:
        VOCError: no rows, others than the data's, a mask or fractions, or nothing but terminations.
    """
    rows = dataset.starts if starts is None else np.asarray(starts)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(dataset):
        raise VOCError(
            f"starts have to be rows of the data, whole numbers from 0 to {len(dataset) - 1}, at least one of them (of "
            "a mask, its np.flatnonzero)."
        )
    if dataset.terminal[rows].all():
        raise VOCError("Every start is a termination, after which nothing is left to value; give rows before one.")
    return rows.astype(np.int64)  # PyTorch takes uint8 for a mask


def state_features(dataset: Episodes) -> Tensor:
    """The states of the rows, each number in its own spread, float32 (N, S): features of data without frames.

    Raises:
        VOCError: data without states.
    """
    if dataset.state is None:
        raise VOCError("These data hold no states to take for features; leave features out, for those of the frames.")
    state = torch.from_numpy(dataset.state.astype(np.float64))
    return ((state - state.mean(0)) / state.std(0, False).clamp(min=1e-6)).float()


class PolicyChains:
    """Chains of several policies through one dataset, each made when first asked for.

    Args:
        dataset: logged episodes. policies: by name; they are asked for their actions at every row at once, so one that
            does not fit is refused here. starts: rows int64 (S,) that values are averaged over.
        features: gives the rows' continuous features (N, F), when they are needed.

    Raises:
        VOCError: policies that do not fit the data, or discounts of the data's own.
    """

    def __init__(
        self,
        dataset: Episodes,
        policies: Mapping[str, Any],
        starts: np.ndarray,
        config: StitchingConfig,
        seed: int,
        features: Callable[[], Tensor],
    ) -> None:
        check_discounts(dataset)
        self.dataset, self.names, self.starts = dataset, list(policies), starts
        self.config, self.seed, self._features = config, seed, features
        self.draws, self.replicates = config.counts(len(dataset))
        drawn = [policy_actions([policy], dataset, self.draws, self._generator(31)) for policy in policies.values()]
        self.actions = np.concatenate(drawn)
        self._chains: dict[tuple[str, int], StitchedChain] = {}
        self._told: tuple[Any, dict[str, float]] = (None, {})
        self._values: dict[tuple[str, int, float, FittedQ | None], tuple[np.ndarray, np.ndarray]] = {}

    def _generator(self, purpose: int, place: int = 0) -> np.random.Generator:
        """The same random numbers for every policy: its chain is the same, whatever it is called and whoever is
        evaluated beside it, and policies differ by what they do alone."""
        return np.random.default_rng([self.seed, purpose, place])

    @cached_property
    def candidates(self) -> Candidates:
        return find_candidates(self.dataset, self._features())

    @cached_property
    def episodes(self) -> int:
        """How many episodes have a step."""
        return len(self._stepped)

    @cached_property
    def _stepped(self) -> np.ndarray:
        return np.unique(self.dataset.episode[self.dataset.steps_left > 0])

    def whole(self, name: str) -> StitchedChain:
        """The chain of a policy through all rows."""
        return self._chain(name, 0, None, None)

    def values(self, name: str, reward: np.ndarray, gamma: float, critic: FittedQ | None = None) -> np.ndarray:
        """V float64 (N,) of every row along the policy's chain, for rewards (N,) on arrival.

        ``critic``: of all the policies, for these rewards and this discount; it then corrects the jumps.
        """
        return self._known(name, reward, gamma, critic)[0]

    def error(self, name: str, reward: np.ndarray, gamma: float, critic: FittedQ | None = None) -> ErrorParts:
        """How wrong the mean value of the starts may be, by the resampled chains and by what a critic moved."""
        whole, resampled = self._known(name, reward, gamma, critic)
        value = float(whole[self.starts].mean())
        moved = 0.0 if critic is None else value - float(self.values(name, reward, gamma)[self.starts].mean())
        return ErrorParts(value, resampled, self.episodes, moved)

    def diagnostics(self, name: str, reward: np.ndarray, gamma: float) -> dict[str, float]:
        """How far the data support a policy, along its own chain from the starts: at the rows where it jumps.

        ``excluded_followed``: share of the rows where resampled chains found no candidate of their own episodes, and so
        followed excluded ones; where it is large, intervals are too narrow. ``logged``: mean discounted return that
        was logged from the starts where it is known, with its standard error where they are of several episodes; left
        out where it is known at none.
        """
        chain, values = self.whole(name), self.values(name, reward, gamma)
        terminal, rng = self.dataset.terminal, np.random.default_rng([self.seed, 43])
        # the jump to the row at time k is made at k - 1: from the start itself with chance 1 - gamma
        starts = np.repeat(self.starts, VISITS)
        visited = np.where(rng.random(len(starts)) < gamma, chain.futures(starts, gamma, rng), starts)
        visited = visited[(visited >= 0) & ~terminal[visited]]
        if len(visited) == 0:  # every future came after the end; the steps from the starts are left
            visited = self.starts[~terminal[self.starts]]
        followed = self.actions[self.names.index(name)][visited]
        taken = self.candidates.taken[chain.arrival[visited] - 1]
        return {
            "match_distance": float(chain.distance[visited].mean()),
            "action_distance": float(np.sqrt(np.square(followed - taken).sum(-1)).mean()),
            "rows_used": float(len(np.unique(visited))),
            "value_at_starts": float(values[self.starts].mean()),
            "value_elsewhere": float(values.mean()),
            "excluded_followed": float(np.mean([chain.excluded for chain in self._resampled(name)])),
            **self._logged(reward, gamma),
        }

    def _logged(self, reward: np.ndarray, gamma: float) -> dict[str, float]:
        """What was logged from the starts, the same for all policies, and kept for the last that was asked."""
        key = (hash(reward.tobytes()), gamma)
        if self._told[0] != key:
            returns, known = discounted_returns(self.dataset, gamma, reward)
            rows, told = self.starts[known[self.starts]], {}
            if len(rows):
                there, alike = returns[rows], np.full((1, len(rows)), 1 / len(rows))
                stderr, _ = grouped_stderr(alike, there, self.dataset.episode[rows])
                told = {"logged": float(there.mean()), "logged_stderr": float(stderr[0])}
                told = {name: number for name, number in told.items() if not np.isnan(number)}
            self._told = (key, told)
        return self._told[1]

    def forget(self, critic: FittedQ) -> None:
        """Keep no longer what a critic corrected, nor the critic."""
        self._values = {key: known for key, known in self._values.items() if key[-1] is not critic}

    def _known(
        self, name: str, reward: np.ndarray, gamma: float, critic: FittedQ | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values (N,) of the policy's chain, and the mean value of the starts by each resampled one; kept.

        The critic's outputs, which differ in their weights of the episodes, take turns.
        """
        key = (name, hash(reward.tobytes()), gamma, critic)
        if key not in self._values:
            policy = self.names.index(name)
            self._drop_all_but_last(key[1:3])

            def values(chain: StitchedChain, outputs: slice) -> np.ndarray:
                if critic is None:
                    return chain.values(reward, gamma)
                value, taken = (q[policy][:, outputs].mean(1) for q in (critic.value, critic.taken))
                return chain.values(reward, gamma, chain.jump_correction(value, taken))

            resampled = []
            for i, chain in enumerate(self._resampled(name)):
                output = i % MEMBERS
                resampled.append(values(chain, slice(output, output + 1))[self.starts].mean())
            self._values[key] = (values(self.whole(name), slice(None)), np.array(resampled))
        return self._values[key]

    def _drop_all_but_last(self, asked: tuple[int, float]) -> None:
        """Keep what no critic corrected for the reward and discount that are asked for, and the last others: each takes
        float64 (N,) per policy."""
        others = [key for key in self._values if key[-1] is None and key[1:3] != asked]
        for key in others:
            if key[1:3] != others[-1][1:3]:
                del self._values[key]

    def _resampled(self, name: str) -> list[StitchedChain]:
        """The policy's chains of resampled episodes."""
        few = max(self.draws // 2, 1)  # half the cost, and their mean is what counts
        return [self._chain(name, 1 + i, mask, few) for i, mask in enumerate(self._masks)]

    @cached_property
    def _masks(self) -> list[np.ndarray]:
        """Rows of the episodes that a bootstrap sample drew at least once, bool (N,); the same for all policies."""
        rng, count = np.random.default_rng([self.seed, 37]), self.episodes
        drawn = [self._stepped[rng.integers(count, size=count)] for _ in range(self.replicates)]
        return [np.isin(self.dataset.episode, some) for some in drawn]

    def _chain(self, name: str, place: int, allowed: np.ndarray | None, draws: int | None) -> StitchedChain:
        if (name, place) not in self._chains:
            policy, config = self.names.index(name), self.config
            rng = self._generator(47, place)
            self._chains[name, place] = stitch(
                self.candidates, self.actions[policy][:, :draws], self.dataset.terminal, rng,
                config.action_weight, config.bandwidth, allowed,
            )  # fmt: skip
        return self._chains[name, place]

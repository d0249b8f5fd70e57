"""What a policy is worth, from logged episodes alone: ``evaluate_policy``.

    episodes, policies -> actions at every row -> chains of logged rows (stitching) -> ``stitch``
                                              \\-> occupancy network of the policies -> ``head``, ``sample``

``stitch`` needs no network and is the reference; the network learns from the same chains, answers in one pass at any
state, and gives samples of the future: pictures, other rewards, chances of events. Nothing is bootstrapped, and no
densities of logged actions are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_choice, check_gamma
from voc_rl.loop import StepLog, step_seed
from voc_rl.occupancy import (
    Candidates,
    Condition,
    OccupancyTransformer,
    PolicyTraining,
    StitchedChain,
    StitchedTargets,
    ValueHead,
    find_candidates,
    policy_actions,
    sample_futures,
    stitch,
    train_policies,
)
from voc_rl.policy_estimate import COVERS, PolicyEstimate, warning_of
from voc_rl.precision import autocast
from voc_rl.quantizers import Quantizer, tokenize, train_quantizer
from voc_rl.training import VOCConfig, fit_reward_head, fresh_networks, fresh_quantizer
from voc_rl.values import RewardHead, from_ensemble, from_samples, rewards_of_futures
from voc_rl.values.statistics import student_interval

PolicyEstimator = Literal["stitch", "head", "sample"]
ESTIMATORS: tuple[PolicyEstimator, ...] = ("stitch", "head", "sample")


@dataclass(frozen=True)
class EvaluationConfig:
    """How policies are evaluated.

    draws: actions drawn per row and policy. action_weight: length of a unit of action against a typical distance of
    frames. bandwidth: how alike rows have to be to share visits (``voc_rl.occupancy.stitch``). replicates: chains of
    resampled episodes behind an interval. samples: futures per start, for ``sample``. training: of the policies'
    network. voc: quantizer, sizes of the network, reward head and seed.
    """

    draws: int = 4
    action_weight: float = 1.0
    bandwidth: float = 0.2
    replicates: int = 8
    samples: int = 64
    training: PolicyTraining = field(default_factory=PolicyTraining)
    voc: VOCConfig = field(default_factory=VOCConfig)


class PolicyEvaluator:
    """Everything that is shared by the estimates of several policies on one dataset; parts are made when first needed.

    Args:
        dataset: logged episodes. policies: by name; see ``voc_rl.policy.Policy``. gamma: the discount.
        starts: rows of ``dataset`` that values are averaged over; None: the first row of every episode.
        quantizer: a trained one; None trains one on ``dataset``. tokens: its codes and features of every row.

    Raises:
        VOCError: no policies, policies that do not fit the data, or starts outside it.
    """

    def __init__(
        self,
        dataset: Episodes,
        policies: Mapping[str, Any],
        gamma: float = 0.95,
        starts: np.ndarray | None = None,
        config: EvaluationConfig | None = None,
        *,
        quantizer: Quantizer | None = None,
        tokens: tuple[Tensor, Tensor] | None = None,
        log: StepLog | None = None,
        progress: bool = False,
    ) -> None:
        if not policies:
            raise VOCError("No policy was given; at least one is needed.")
        if not np.isfinite(dataset.reward).all():
            raise VOCError("The data's rewards hold NaN or infinity; finite rewards are needed.")
        self.dataset, self.policies, self.gamma = dataset, dict(policies), check_gamma(gamma)
        self.starts = dataset.starts if starts is None else np.asarray(starts)
        if self.starts.ndim != 1 or len(self.starts) == 0 or self.starts.min() < 0 or self.starts.max() >= len(dataset):
            raise VOCError(f"starts have to be rows of the data, 0 to {len(dataset) - 1}, at least one of them.")
        config = config or EvaluationConfig()
        occupancy = replace(config.training.occupancy, gamma=self.gamma)
        self.config = replace(config, training=replace(config.training, occupancy=occupancy))
        self.seed, self.log, self.progress = config.voc.seed, log, progress
        self._quantizer, self._tokens = quantizer, tokens
        self._known: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        if tokens is not None and quantizer is None:
            raise VOCError("Tokens were given without the quantizer that made them; give both.")
        # before anything is trained, so that a policy that does not fit is refused at once
        rng = np.random.default_rng([self.seed, 31])
        self.actions = policy_actions(list(self.policies.values()), dataset, config.draws, rng)

    @cached_property
    def quantizer(self) -> Quantizer:
        if self._quantizer is not None:
            return self._quantizer
        fresh = fresh_quantizer(self.dataset, self.config.voc)
        loop = self.config.voc.quantizer_training
        return train_quantizer(fresh, self.dataset, loop, self.seed, log=self.log, progress=self.progress)

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Codes and features of every row."""
        return self._tokens if self._tokens is not None else tokenize(self.quantizer, self.dataset)

    @cached_property
    def candidates(self) -> Candidates:
        return find_candidates(self.dataset, self.tokens[1])

    @cached_property
    def chains(self) -> dict[str, StitchedChain]:
        """The chain of each policy through all rows."""
        return {name: self._stitch(i, 0) for i, name in enumerate(self.policies)}

    def _stitch(
        self, policy: int, place: int, allowed: np.ndarray | None = None, draws: int | None = None
    ) -> StitchedChain:
        config, drawn = self.config, self.actions.drawn[policy][:, :draws]
        rng = np.random.default_rng([self.seed, 47, policy, place])
        return stitch(
            self.candidates, drawn, self.dataset.terminal, rng, config.action_weight, config.bandwidth, allowed
        )

    @cached_property
    def replicates(self) -> dict[str, list[StitchedChain]]:
        """Chains through bootstrap samples of the episodes (those drawn at least once), the same for all policies."""
        rng = np.random.default_rng([self.seed, 37])
        count = len(self.dataset.starts)
        masks = []
        for _ in range(self.config.replicates):
            kept = np.zeros(count, bool)
            kept[rng.integers(count, size=count)] = True
            masks.append(kept[self.dataset.episode])
        return {
            name: [self._stitch(i, 1 + j, mask, 2) for j, mask in enumerate(masks)]
            for i, name in enumerate(self.policies)
        }

    @cached_property
    def networks(self) -> tuple[OccupancyTransformer, ValueHead]:
        """Occupancy network and value head of all the policies, trained on their chains."""
        codes, features = self.tokens
        # the value head answers for ``head``: it cannot be left out, and one member has no spread
        size = replace(self.config.voc.network, head_members=max(self.config.voc.network.head_members, 2))
        model, head = fresh_networks(
            self.quantizer, replace(self.config.voc, network=size), bool(self.dataset.terminal.any()),
            self.dataset.action.shape[1], len(self.policies),
        )  # fmt: skip
        chains = list(self.chains.values())
        trained, trained_head = train_policies(
            model, head, self.dataset, codes, features, StitchedTargets(self.dataset, chains, self.gamma),
            self.config.training, self.seed, chains=chains, starts=self.starts, log=self.log, progress=self.progress,
        )  # fmt: skip
        assert trained_head is not None
        return trained, trained_head

    def fit_reward(self, reward: np.ndarray) -> RewardHead:
        """A reward head for rewards float (N,) on arrival at each row, trained in seconds on the codes.

        Raises:
            VOCError: NaN, or another number of rewards than of rows.
        """
        reward = self.check_reward(reward)
        return fit_reward_head(
            self.quantizer, self.tokens[0], self.dataset, reward, self.config.voc, log=self.log, progress=self.progress
        )

    def check_reward(self, reward: np.ndarray) -> np.ndarray:
        """Rewards as float32 (N,), one per row and finite."""
        reward = np.asarray(reward, np.float32)
        if reward.shape != (len(self.dataset),):
            raise VOCError(f"Rewards have shape {reward.shape}; one per row, ({len(self.dataset)},), is needed.")
        if not np.isfinite(reward).all():
            raise VOCError("Rewards hold NaN or infinity; finite rewards are needed.")
        return reward

    @cached_property
    def reward_head(self) -> RewardHead:
        """For the rewards of the data."""
        return self.fit_reward(self.dataset.reward)

    def sample_futures(self, name: str, rows: np.ndarray, samples: int, generator: torch.Generator) -> Tensor:
        """Codes int64 (B, samples, n_tokens) at discounted future times of rows (B,), if policy ``name`` acts."""
        model, _ = self.networks
        codes, features, condition = self._contexts(name, rows)
        with autocast():  # without gradients, as all sampling
            return sample_futures(model, codes, features, samples, generator, condition=condition)

    def _contexts(self, name: str, rows: np.ndarray) -> tuple[Tensor, Tensor | None, Condition]:
        model, _ = self.networks
        at = torch.from_numpy(np.asarray(rows))
        policy = torch.full((len(at),), list(self.policies).index(name))
        features = self.tokens[1][at].float() if model.config.feature_dim else None
        return self.tokens[0][at].long(), features, Condition(policy=policy)

    def estimate(
        self,
        name: str,
        estimator: PolicyEstimator = "stitch",
        reward: np.ndarray | None = None,
        reward_head: RewardHead | None = None,
        level: float = 0.9,
    ) -> PolicyEstimate:
        """The value of policy ``name``.

        Args:
            estimator: ``stitch``, ``head`` (the data's reward only) or ``sample``.
            reward: other rewards (N,) on arrival than the data's; ``reward_head``: one fitted to them, for ``sample``.

        Raises:
            VOCError: an unknown policy or estimator, or rewards that do not fit.
        """
        check_choice(name, self.policies, "policy")
        check_choice(estimator, ESTIMATORS, "estimator")
        own = self.dataset.reward if reward is None else self.check_reward(reward)
        whole, resampled = self._stitched(name, own)
        stitched = whole[self.starts]
        # fewer episodes mean longer jumps: the shift that this brings tells the size of what is left of it
        variance = resampled.var(ddof=1) + (resampled.mean() - stitched.mean()) ** 2
        values, noise = stitched, 0.0
        if estimator == "head":
            if reward is not None:
                raise VOCError("The head knows the data's reward only; use estimator='sample' or 'stitch' for others.")
            values = self._head_values(name)
        elif estimator == "sample":
            if reward is not None and reward_head is None:
                reward_head = self.fit_reward(own)
            values, noise = self._sampled_values(name, reward_head or self.reward_head)
        # the network learned from the chain: where it says otherwise, one of them is wrong by as much
        stderr = np.sqrt(variance + noise**2 + (values.mean() - stitched.mean()) ** 2)
        mean = values.mean()
        low, high = student_interval(mean, stderr, self.config.replicates, level)
        diagnostics = self._diagnostics(name, whole)
        return PolicyEstimate(
            name, float(mean), float(stderr), float(low), float(high), level, self.gamma, estimator, COVERS, values,
            diagnostics, warning_of(name, diagnostics),
        )  # fmt: skip

    def _stitched(self, name: str, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (N,) of the policy's chain, and the mean value of the starts by each replicate; kept."""
        key = (name, hash(reward.tobytes()))
        if key not in self._known:
            resampled = [chain.values(reward, self.gamma)[self.starts].mean() for chain in self.replicates[name]]
            self._known[key] = (self.chains[name].values(reward, self.gamma), np.array(resampled))
        return self._known[key]

    def _head_values(self, name: str) -> np.ndarray:
        model, head = self.networks
        codes, features, condition = self._contexts(name, self.starts)
        with torch.no_grad(), autocast(len(codes)):
            context = model.prefix(codes, features, condition=condition).last
            members = head(context, features).float().numpy()
        return from_ensemble(members, self.gamma).mean

    def _sampled_values(self, name: str, reward_head: RewardHead) -> tuple[np.ndarray, float]:
        generator = torch.Generator().manual_seed(step_seed(self.seed, 41))
        futures = self.sample_futures(name, self.starts, self.config.samples, generator)
        end = self.networks[0].config.end_code
        rewards = rewards_of_futures(futures, self.quantizer.embed, reward_head, end)
        found = from_samples(rewards.numpy(), self.gamma)
        return found.mean, float(np.sqrt(np.square(found.stderr).mean() / len(found)))

    def _diagnostics(self, name: str, values: np.ndarray) -> dict[str, float]:
        """How far the data support a policy, along its own chain from the starts; ``values`` (N,) of that chain."""
        chain = self.chains[name]
        rng = np.random.default_rng([self.seed, 43])
        visited = chain.futures(np.repeat(self.starts, 20), self.gamma, rng)
        visited = visited[visited >= 0]
        followed = self.actions.drawn[list(self.policies).index(name)][visited]
        taken = self.candidates.taken[chain.arrival[visited] - 1]
        return {
            "match_distance": float(chain.distance[visited].mean()),
            "action_distance": float(np.sqrt(np.square(followed - taken).sum(-1)).mean()),
            "rows_used": float(len(np.unique(visited))),
            "value_at_starts": float(values[self.starts].mean()),
            "value_elsewhere": float(values.mean()),
        }


def evaluate_policy(
    dataset: Episodes,
    policy: Any,
    gamma: float = 0.95,
    estimator: PolicyEstimator = "stitch",
    *,
    starts: np.ndarray | None = None,
    reward_fn: Callable[[Episodes], np.ndarray] | None = None,
    config: EvaluationConfig | None = None,
    quantizer: Quantizer | None = None,
    tokens: tuple[Tensor, Tensor] | None = None,
    level: float = 0.9,
    progress: bool = False,
) -> Any:
    """What a policy is worth on logged episodes: a PolicyEstimate; for a dict of policies a list, best first.

    Args:
        dataset: logged episodes, by any policies. policy: one (``voc_rl.policy.Policy``), or several by name.
        gamma: the discount per agent step. estimator: ``stitch`` (no network), ``head`` or ``sample``.
        starts: rows to average over; None: the first rows of the episodes.
        reward_fn: takes the dataset and returns rewards (N,) on arrival; None: the data's own.
        config, quantizer, tokens: see ``PolicyEvaluator``. level: confidence of the intervals.

    Raises:
        VOCError: a policy, rewards or starts that do not fit the data.
    """
    several = isinstance(policy, Mapping)
    policies = policy if several else {getattr(policy, "name", "") or "policy": policy}
    evaluator = PolicyEvaluator(
        dataset, policies, gamma, starts, config, quantizer=quantizer, tokens=tokens, progress=progress
    )
    reward = None if reward_fn is None else evaluator.check_reward(reward_fn(dataset))
    head = evaluator.fit_reward(reward) if reward is not None and estimator == "sample" else None
    estimates = [evaluator.estimate(name, estimator, reward, head, level) for name in policies]
    for estimate in estimates:
        if estimate.warning:
            warnings.warn(estimate.warning, stacklevel=2)
    return sorted(estimates, key=lambda e: -e.value) if several else estimates[0]

"""What is shared by the estimates of several policies on one dataset, made when first needed: ``PolicyEvaluator``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, arrived_rows
from voc_rl.errors import VOCError, check_choice, check_gamma, check_level, known_gamma
from voc_rl.model_files import weights_mark
from voc_rl.occupancy import OccupancyTransformer, ValueHead, train_policies
from voc_rl.occupancy.stitching import check_row_features, principal_components
from voc_rl.ope.chains import PolicyChains, checked_starts
from voc_rl.ope.config import EvaluationConfig
from voc_rl.ope.error import ErrorParts
from voc_rl.ope.estimate import PolicyEstimate, covers, warning_of
from voc_rl.ope.estimators import ESTIMATORS, WITH_CRITIC, WITHOUT_NETWORK, PolicyEstimator, check_answers
from voc_rl.ope.kept import KeptTrainings
from voc_rl.ope.model import PolicyModel, StartValues
from voc_rl.precision import as_device, device_of
from voc_rl.quantizers import Quantizer, check_features, tokenize
from voc_rl.training import fresh_networks, fresh_quantizer, ready_quantizer
from voc_rl.training_inputs import QuantizerSource, Tokens, check_dataset, quantizer_of, tensor_of, tokens_of
from voc_rl.values import FittedQ, RewardHead, check_rewards, fit_reward_head, fitted_q, members_of
from voc_rl.values.fitted_q import COMPONENTS


class PolicyEvaluator:
    """Everything that is shared by the estimates of several policies on one dataset; parts are made when first needed.

    Args:
        dataset: logged episodes. policies: by name, taken as text (20000 is "20000"); see ``voc_rl.policy.Policy``.
            gamma: the network's discount.
        starts: rows of ``dataset`` that values are averaged over; None: the first row of every episode.
        quantizer: a trained one, a VOC, or the folder of either; None trains one on ``dataset``.
        tokens: its codes and features of every row.
        device: where networks are trained (as in ``voc_rl.train``); None: where ``quantizer`` is, or on the CPU. A
            quantizer elsewhere stays there: a copy of it moves.
        features: float (N, F), in which rows are compared in place of those of a quantizer: none is needed or trained
            then, nor are frames (``voc_rl.ope.state_features``); for ``stitch`` and ``corrected`` alone.
        behaviour: a network of the data's own futures on the codes of ``quantizer`` (``occupancy`` of a VOC trained
            with it), from which the policies' network starts; None: from fresh weights.
        checkpoints: a folder, where the states of its trainings (of quantizer, critics and networks) are kept; one that
            is asked the same goes on from there, to the same bits, and what other questions share is not trained again.

    Raises:
        VOCError: a dataset that is none, no policies, two of one name, policies, starts, tokens or features that do not
            fit the data, tokens or behaviour without their quantizer, a quantizer without continuous features, tokens
            without finite ones, a behaviour of other sizes, or a folder of checkpoints that cannot be written.
    """

    def __init__(
        self,
        dataset: Episodes,
        policies: Mapping[str, Any],
        gamma: float = 0.95,
        starts: np.ndarray | None = None,
        config: EvaluationConfig | None = None,
        *,
        quantizer: QuantizerSource | None = None,
        tokens: Tokens | None = None,
        device: torch.device | str | None = None,
        behaviour: OccupancyTransformer | None = None,
        features: Tensor | np.ndarray | None = None,
        checkpoints: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        check_dataset(dataset)
        quantizer = quantizer_of(quantizer, dataset)
        if not policies:
            raise VOCError("No policy was given; at least one is needed.")
        named = {str(name): policy for name, policy in policies.items()}
        if len(named) < len(policies):
            raise VOCError(f"Policies {list(policies)} have the same names as text; give each its own.")
        check_rewards(dataset.reward, len(dataset))
        self.dataset, self.policies, self.gamma = dataset, named, check_gamma(gamma)
        self.starts = checked_starts(dataset, starts)
        config = config or EvaluationConfig()
        occupancy = replace(config.training.occupancy, gamma=self.gamma)
        size = config.voc.network
        if occupancy.gammas is not None:  # a head of policies knows one discount
            size = replace(size, head_members=0)
        voc = replace(config.voc, network=size, occupancy=occupancy)
        self.config = replace(config, training=replace(config.training, occupancy=occupancy), voc=voc)
        self.seed, self.progress, self._behaviour = config.voc.seed, progress, behaviour
        there = torch.device("cpu") if quantizer is None else device_of(quantizer)
        self.device, self._quantizer = as_device(device) or there, quantizer
        self._tokens = None if tokens is None else tokens_of(tokens, quantizer, dataset)
        if behaviour is not None and quantizer is None:
            raise VOCError("A behaviour was given without the quantizer whose codes it reads; give both.")
        self._features = None if features is None else tensor_of(features, "Features")
        self._kept = None if checkpoints is None else KeptTrainings(checkpoints, dataset)
        # before anything is trained, so that a quantizer, network or policy that does not fit is refused at once
        if self._features is None:
            check_features(fresh_quantizer(dataset, voc) if quantizer is None else quantizer, self._tokens)
        else:
            check_row_features(self._features, len(dataset))
        if behaviour is not None:
            self._networks()
        self._mark = uuid4().hex  # what it says of policies can be compared, with nothing that another one says
        self._fitted: dict[tuple[int, float], FittedQ] = {}  # shared with evaluators of policies alone
        self.chains = PolicyChains(
            dataset, self.policies, self.starts, config.stitching, self.seed, lambda: self.features.to(self.device)
        )

    @cached_property
    def quantizer(self) -> Quantizer:
        """The one that was given, or a trained one."""
        kept = None if self._kept is None else self._kept.quantizer(self.config.voc)
        return ready_quantizer(
            self._quantizer, self.dataset, self.config.voc, self.device, checkpoints=kept, progress=self.progress
        )

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Codes and features of every row."""
        if self._tokens is None:
            return tokenize(self.quantizer, self.dataset)
        return cast(tuple[Tensor, Tensor], self._tokens)  # without features only where others stand for them

    @property
    def features(self) -> Tensor:
        """Features (N, F) in which rows are compared, and on which the critic is fitted."""
        return self.tokens[1] if self._features is None else self._features

    @property
    def critic(self) -> FittedQ:
        """Of the data's reward, at the evaluator's gamma."""
        return self.critic_of(self.dataset.reward, self.gamma)

    def critic_of(self, reward: np.ndarray, gamma: float) -> FittedQ:
        """Q of all the policies for rewards (N,) on arrival, on the frames' features.

        Of the data's reward at the evaluator's gamma it is kept; one for anything else until another is asked for.
        """
        reward, logged = self._used(reward), self._used(self.dataset.reward)
        own, asked = (hash(logged.tobytes()), self.gamma), (hash(reward.tobytes()), gamma)
        if asked not in self._fitted:
            for key in self._fitted.keys() - {own}:
                self.chains.forget(self._fitted.pop(key))
            self._fitted[asked] = self._fit_critic(reward, gamma)
        return self._fitted[asked]

    def _used(self, reward: np.ndarray) -> np.ndarray:
        """Checked rewards float32 (N,), 0 in first rows, which no step arrives at."""
        return check_rewards(reward, len(self.dataset), arrived_rows(self.dataset))

    def _fit_critic(self, reward: np.ndarray, gamma: float) -> FittedQ:
        features, config = principal_components(self.features, COMPONENTS).cpu().numpy(), self.config.critic
        actions, (goals, weights) = self.chains.actions, members_of(self.dataset, self.seed, reward)
        kept = None
        if self._kept is not None:
            learned = {"features": features, "actions": actions, "goals": goals, "weights": weights}
            kept = self._kept.of("critic", config.loop, learned, asdict(config), gamma, self.seed)
        return fitted_q(
            self.dataset, features, actions, gamma, config, self.seed, goals, weights,
            device=self.device, checkpoints=kept, progress=self.progress,
        )  # fmt: skip

    @cached_property
    def model(self) -> PolicyModel:
        """Occupancy network of all the policies, trained on their chains, and its head, on their corrected values.

        Without a head no critic is fitted: sampled futures need neither.
        """
        codes, features = self.tokens
        network, head = self._networks()
        chains = [self.chains.whole(name) for name in self.policies]
        values = None
        if head is not None:
            own = self.dataset.reward
            values = np.stack([self.chains.values(name, own, self.gamma, self.critic) for name in self.policies])
        training, kept = self.config.training, None
        if self._kept is not None:
            learned: dict[str, Any] = {"codes": codes, "features": features, "starts": self.starts}
            learned |= {f"chain {i}": chain.arrival for i, chain in enumerate(chains)}
            learned |= {} if values is None else {"values": values}
            fresh = weights_mark(network, head)
            size = asdict(network.config)  # some of it, as dropout, changes no fresh weight
            kept = self._kept.of("policies", training.occupancy.loop, learned, asdict(training), self.seed, fresh, size)
        trained, trained_head = train_policies(
            network, head, self.dataset, codes, features, chains, training, self.seed,
            values=values, starts=self.starts, checkpoints=kept, progress=self.progress,
        )  # fmt: skip
        return PolicyModel(
            trained, trained_head, self.quantizer, self.dataset, self.tokens, list(self.policies), self.starts,
            self.gamma, self.seed,
        )  # fmt: skip

    def _networks(self) -> tuple[OccupancyTransformer, ValueHead | None]:
        """Network and head before their training."""
        ends, actions = bool(self.dataset.terminal.any()), self.dataset.action.shape[1]
        return fresh_networks(self.quantizer, self.config.voc, ends, actions, len(self.policies), self._behaviour)

    def alone(self, name: str) -> PolicyEvaluator:
        """An evaluator of one of the policies, whose network is trained for it alone; all else is shared."""
        policies = {(name := check_choice(str(name), self.policies, "policy")): self.policies[name]}
        self.features  # noqa: B018 - made by being asked for, once for all policies, as the critic is
        if self.config.voc.network.head_members:
            self.critic  # noqa: B018
        only = copy.copy(self)
        only.policies = policies
        only.__dict__.pop("model", None)
        return only

    def check_answers(self, estimator: PolicyEstimator, gamma: float, other: bool) -> None:
        """Refuse an estimator or a discount that ``estimate`` would, for ``other`` rewards than the data's or not.

        Raises:
            VOCError: an unknown estimator, or rewards or a discount that it does not know.
        """
        check_choice(estimator, ESTIMATORS, "estimator")
        check_answers(
            estimator, self.config.voc.network, gamma=gamma, own=self.gamma,
            gammas=self.config.training.occupancy.gammas, other=other, frames=self._features is None,
        )  # fmt: skip

    def fit_reward(self, reward: np.ndarray) -> RewardHead:
        """A reward head for rewards float (N,) on arrival at each row, trained in seconds on the codes.

        Raises:
            VOCError: NaN, or another number of rewards than of rows.
        """
        voc, codes = self.config.voc, self.tokens[0]
        return fit_reward_head(
            self.quantizer, codes, self.dataset, reward, voc.reward, voc.seed, progress=self.progress
        )

    @cached_property
    def reward_head(self) -> RewardHead:
        """For the rewards of the data."""
        return self.fit_reward(self.dataset.reward)

    def estimate(
        self,
        name: str,
        estimator: PolicyEstimator = "stitch",
        reward: np.ndarray | None = None,
        reward_head: RewardHead | None = None,
        level: float = 0.9,
        gamma: float | None = None,
    ) -> PolicyEstimate:
        """The value of policy ``name``.

        Args:
            estimator: ``stitch``; ``corrected`` (fits a critic of all the policies for each reward and gamma, so ask
                about all policies before the next of these); ``head`` (the data's reward, at the evaluator's gamma
                only); ``sample``, ``mve``, or ``density`` (real rewards of logged rows; needs a network with
                ``null_context``; NaN, with ``warning`` set, where the effective sample size is below 50).
            reward: other rewards (N,) on arrival than the data's. reward_head: one fitted to them, for ``sample`` and
                ``mve``, where several policies are asked.
            gamma: None is the evaluator's; ``sample``, ``mve`` and ``density`` answer for those that the network was
                trained for (one, or a range), ``sample`` and ``mve`` for larger ones too, ``stitch`` and
                ``corrected`` for any.

        Raises:
            VOCError: an unknown policy or estimator, rewards that do not fit, a level outside (0, 1), rewards or a
                discount that the estimator does not know, no value head (``head``), or no null context (``density``).
        """
        name = check_choice(str(name), self.policies, "policy")
        check_level(level)
        known = (self.gamma, *(self.config.training.occupancy.gammas or ()))
        gamma = self.gamma if gamma is None else known_gamma(gamma, *known)
        own = self.dataset.reward if reward is None else self._used(reward)
        self.check_answers(estimator, gamma, other=reward is not None)
        critic = self.critic_of(own, gamma) if estimator in WITH_CRITIC else None
        error = self.chains.error(name, own, gamma, critic)
        found = StartValues(error.chained, 0.0, self.chains.values(name, own, gamma, critic)[self.starts])
        if network := estimator not in WITHOUT_NETWORK:
            found = self._by_network(name, estimator, None if reward is None else own, reward_head, gamma)
        error = replace(error, apart=found.mean - error.chained, noise=found.noise)
        diagnostics = {**self.chains.diagnostics(name, own, gamma), **found.diagnostics}
        said = covers(critic is not None, network, network and estimator != "head")
        warning = self._warning(name, diagnostics, own, gamma, found.mean, error, level, critic)
        question = (self._mark, sha256(own[arrived_rows(self.dataset)].tobytes()).hexdigest(), gamma, estimator)
        return PolicyEstimate(
            name, found.mean, error, level, gamma, estimator, said, found.starts, diagnostics, warning, question
        )

    def _warning(
        self, name: str, diagnostics: dict[str, float], reward: np.ndarray, gamma: float, value: float,
        error: ErrorParts, level: float, critic: FittedQ | None,
    ) -> str:  # fmt: skip
        """``warning_of`` a value."""
        ends = bool(self.dataset.terminal.any())
        varied = np.ptp(reward[self.dataset.step_type > 0]) > 0 or ends
        size = float(np.abs(self.chains.values(name, reward, gamma)).mean())  # of values anywhere in the data
        low, high = error.interval(value, level)
        return warning_of(
            name, diagnostics, self.chains.episodes, sure=bool(varied and error.stderr < 1e-6 * (abs(value) + 1e-9)),
            wide=high - low > 2 * size > 0, ends=ends and critic is None,
            moved=abs(value - diagnostics["value_at_starts"]) / max(abs(value), size, 1e-9),
        )  # fmt: skip

    def _by_network(
        self, name: str, estimator: PolicyEstimator, reward: np.ndarray | None, reward_head: RewardHead | None,
        gamma: float,
    ) -> StartValues:  # fmt: skip
        """What the network says, of checked rewards (N,), or of the data's own."""
        if estimator == "head":
            return self.model.by_head(name, gamma)
        if estimator == "density":
            own = self.dataset.reward if reward is None else reward
            return self.model.by_density(name, self.config.density_rows, own, gamma)
        reward_head = reward_head or (self.reward_head if reward is None else self.fit_reward(reward))
        ask = self.model.by_mve if estimator == "mve" else self.model.by_samples
        return ask(name, self.config.samples, reward_head, gamma)

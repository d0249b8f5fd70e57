"""One occupancy network for several policies, and the estimates that come from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, arrived_rows
from voc_rl.errors import VOCError
from voc_rl.loop import step_seed
from voc_rl.occupancy import (
    Condition,
    OccupancyTransformer,
    ValueHead,
    base_gamma,
    chance_of_another,
    compose,
    discount_condition,
)
from voc_rl.precision import autocast, device_of
from voc_rl.quantizers import Quantizer
from voc_rl.values import (
    RewardHead,
    ValueEstimate,
    by_head,
    from_samples,
    from_weights,
    future_weights,
    mve,
    rewards_of_futures,
)
from voc_rl.values.density import effective_size, too_few


def base_or_refuse(gammas: tuple[float, float], gamma: float, hops: bool = True) -> float:
    """The discount at which a network of the range ``gammas`` is asked about ``gamma``: ``base_gamma``.

    Raises:
        VOCError: what that refuses, or too many hops (``chance_of_another``); it names who can answer.
    """
    try:
        base = base_gamma(gammas, gamma, hops)
        chance_of_another(base, gamma)
    except VOCError as error:
        raise VOCError(f"{str(error)[:-1]}; estimator='stitch' does for any.") from error
    return base


@dataclass(frozen=True)
class StartValues:
    """An estimate of a policy: mean over the starts, its sampling noise, and values float64 (S,) of the starts."""

    mean: float
    noise: float
    starts: np.ndarray
    diagnostics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_states(cls, found: ValueEstimate) -> StartValues:
        """From the values of the starts, whose errors are independent."""
        noise = float(np.sqrt(np.square(found.stderr).mean() / len(found)))
        return cls(float(found.mean.mean()), noise, found.mean)


class PolicyModel:
    """A trained network of several policies on the rows of one dataset.

    Args:
        network, head: trained for discount ``gamma``, or the network alone for a range of them; policies are told apart
            by their place in ``names``. Without a head, ``by_head`` cannot be asked.
        tokens: codes and features of every row of ``dataset``. starts: rows int64 (S,) that are averaged over.
        seed: of everything that is drawn. What is drawn once serves every reward.
    """

    def __init__(
        self,
        network: OccupancyTransformer,
        head: ValueHead | None,
        quantizer: Quantizer,
        dataset: Episodes,
        tokens: tuple[Tensor, Tensor],
        names: Sequence[str],
        starts: np.ndarray,
        gamma: float,
        seed: int,
    ) -> None:
        self.network, self.head, self.quantizer = network, head, quantizer
        self.dataset, self.tokens, self.names, self.starts = dataset, tokens, list(names), starts
        self.gamma, self.seed = gamma, seed
        self._futures: dict[tuple[str, int, float], Tensor] = {}
        self._weights: dict[tuple[str, int, float], tuple[np.ndarray, np.ndarray]] = {}

    def sample_futures(
        self, name: str, rows: np.ndarray, samples: int, generator: torch.Generator, gamma: float | None = None
    ) -> Tensor:
        """Codes int64 (B, samples, n_tokens) at discounted future times of rows (B,), if policy ``name`` acts.

        ``gamma``: a larger discount than the network knows is reached by feeding futures back.
        """
        gamma = self.gamma if gamma is None else gamma
        base = self._base(gamma)
        codes, features, condition = self.contexts(name, rows, base)
        with autocast(self.network):  # without gradients, as all sampling
            return compose(self.network, codes, features, samples, base, gamma, generator, condition=condition)

    def contexts(self, name: str, rows: np.ndarray, gamma: float) -> tuple[Tensor, Tensor | None, Condition]:
        """What the network reads of rows (B,) where ``name`` acts: codes, features and condition.

        ``gamma``: a discount that it knows.
        """
        at, device = torch.from_numpy(np.asarray(rows)), device_of(self.network)
        policy = torch.full((len(at),), self.names.index(name), device=device)
        features = self.tokens[1][at].to(device).float() if self.network.config.feature_dim else None
        return (
            self.tokens[0][at].to(device).long(),
            features,
            replace(discount_condition(self.network, gamma, len(at)), policy=policy),
        )

    def by_head(self, name: str, gamma: float) -> StartValues:
        """The head's values, in one pass."""
        assert self.head is not None
        codes, features, condition = self.contexts(name, self.starts, self._base(gamma, hops=False))
        values = by_head(self.network, self.head, codes, features, condition, gamma).mean
        return StartValues(float(values.mean()), 0.0, values)

    def by_samples(self, name: str, samples: int, reward: RewardHead, gamma: float) -> StartValues:
        """Mean predicted reward of sampled futures."""
        key = (name, samples, gamma)
        if key not in self._futures:
            self._futures[key] = self.sample_futures(name, self.starts, samples, self._generator(), gamma)
        return StartValues.of_states(from_samples(self._rewards(self._futures[key], reward).cpu().numpy(), gamma))

    def by_mve(self, name: str, samples: int, reward: RewardHead, gamma: float) -> StartValues:
        """Predicted rewards of every hop of every path, as many as count (``values.mve``)."""
        base = self._base(gamma)
        codes, features, condition = self.contexts(name, self.starts, base)
        with autocast(self.network):
            found = mve(
                self.network, codes, features, lambda futures, _: self._rewards(futures, reward), base, gamma,
                self._generator(), samples=samples, condition=condition,
            )  # fmt: skip
        return StartValues.of_states(found)

    def by_density(self, name: str, rows: int, reward: np.ndarray, gamma: float) -> StartValues:
        """Real rewards (N,) of logged rows, weighted by how much likelier the policy's mean future makes them.

        NaN where the effective sample size is below 50, of the mean future (then the starts have no values either) or
        of a start's own.

        Raises:
            VOCError: a network without null context.
        """
        key = (name, rows, self._base(gamma, hops=False))
        if key not in self._weights:
            self._weights[key] = self._row_weights(*key)
        some, weights = self._weights[key]
        mean = weights.mean(0, keepdims=True)
        size = float(effective_size(mean)[0])
        diagnostics = {"effective_rows": size}
        if too_few(size):
            return StartValues(np.nan, np.nan, np.full(len(weights), np.nan), diagnostics)
        both = np.concatenate([mean, weights])
        found = from_weights(both, reward[some], gamma, groups=self.dataset.episode[some])
        return StartValues(float(found.mean[0]), float(found.stderr[0]), found.mean[1:], diagnostics)

    def _row_weights(self, name: str, count: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) that a step arrived at, and their ``future_weights`` (S, n) after each start."""
        codes, features, condition = self.contexts(name, self.starts, gamma)
        arrived = arrived_rows(self.dataset)
        rng = np.random.default_rng([self.seed, 59])
        rows = rng.choice(arrived, min(count, len(arrived)), replace=False)
        with torch.no_grad():  # no autocast: ratios need their digits
            prefix = self.network.prefix(codes, features, condition=condition)
        return rows, future_weights(self.network, prefix, self.tokens[0][torch.from_numpy(rows)])

    def _base(self, gamma: float, hops: bool = True) -> float:
        return base_or_refuse(self.network.config.gammas or (self.gamma, self.gamma), gamma, hops)

    def _rewards(self, futures: Tensor, reward: RewardHead) -> Tensor:
        return rewards_of_futures(futures, self.quantizer.embed, reward, self.network.config.end_code)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(step_seed(self.seed, 41))

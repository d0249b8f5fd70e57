"""VOC: quantizer, occupancy network, reward head and value head as one model that is saved, loaded and asked.

frames -> Quantizer -> codes -> OccupancyTransformer -> codes of discounted futures -> RewardHead -> values
                                      \\-> ValueHead -> values, in one pass

The quantizer's continuous features of now go beside the codes into all three networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.data.rows import chosen
from voc_rl.errors import (
    VOCError,
    check_choice,
    check_count,
    check_level,
    check_observations,
    check_reward_fn,
    check_samples,
)
from voc_rl.model_files import Parts, load_parts, save_parts
from voc_rl.occupancy import Condition, base_gamma, compose, discount_condition
from voc_rl.precision import as_tensor, autocast, generator_on
from voc_rl.quantizers import seen_as_stored, tokenize
from voc_rl.quantizers.base import check_codes
from voc_rl.values import (
    RewardConfig,
    ValueEstimate,
    by_head,
    fit_reward_head,
    from_samples,
    from_weights,
    future_weights,
    joined,
    mve,
    rewards_of_futures,
    successor_features,
    tail_by_head,
)

Estimator = Literal["head", "sample", "mve"]
ROWS_AT_ONCE = 1024  # of a dataset, whose values are asked for together


class VOC(Parts):
    """A trained video occupancy model. Values are of the policy that made the data (the behaviour).

    It computes where its networks are (``device``, ``to``) and takes inputs on any device.
    """

    def condition(self, count: int, gamma: float | None = None) -> Condition:
        """The condition that tells the occupancy network a discount (None: the VOC's own) of ``count`` contexts."""
        return discount_condition(self.occupancy, self.gamma if gamma is None else gamma, count)

    def value(
        self,
        obs: np.ndarray | Tensor,
        gamma: float | None = None,
        estimator: Estimator = "head",
        samples: int = 100,
        level: float = 0.9,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> ValueEstimate:
        """Values of a batch of observations.

        Args:
            obs: uint8 (B, 3K, H, W).
            gamma: the discount, in the range ``gammas``; None: the model's own. ``sample`` and ``mve`` also answer for
                larger ones, by feeding futures back as contexts. At the model's own ``sample`` predicts rewards from
                the futures' codes and the state's features, at others from codes alone.
            estimator: ``head`` (one pass), ``sample`` (mean reward of sampled futures), or ``mve`` (for a larger
                discount: rewards of every hop of each sampled path, as many as count; see ``values.mve``).
                ``density`` needs rows of the data: ``density_value``.
            samples: futures per state, for ``sample`` and ``mve``.
            level: confidence of the interval.
            generator: randomness of ``sample`` and ``mve``; None is a fresh one with seed 0.
            common: use the same random numbers for every state: a state has the same value in every batch (but for
                rounding). Errors of states are then dependent: their mean may be no more certain than one value.

        Raises:
            VOCError: observations of another shape or dtype, an estimator or discount that this model does not have, a
                discount too many hops away, a level outside (0, 1), or fewer than 2 samples.
        """
        codes, features = self.context(obs)
        return self.value_of_codes(codes, features, gamma, estimator, samples, level, generator, common)

    @torch.no_grad()
    def value_of_codes(
        self,
        codes: Tensor,
        features: Tensor | None,
        gamma: float | None = None,
        estimator: Estimator = "head",
        samples: int = 100,
        level: float = 0.9,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> ValueEstimate:
        """``value`` of states that are already codes int (B, n_tokens) and features (B, feature_dim).

        A network that reads features can sample without them (None), as it does from its own samples; its head needs
        them.
        """
        check_codes(codes, self.quantizer)
        codes, features = self._here(codes, features)
        gamma = self.resolve_gamma(gamma)
        if estimator == "density":
            raise VOCError("A density estimate weighs rows of the data; call density_value(obs, codes, rewards).")
        check_choice(estimator, ("head", "sample", "mve"), "estimator")
        check_level(level)
        if estimator == "head":
            return self._by_head(codes, features, gamma, level)
        check_samples(samples)
        if estimator == "mve":
            base = base_gamma(self.gammas, gamma)
            with autocast(self.occupancy):
                return mve(
                    self.occupancy, codes, features, self.rewards, base, gamma,
                    generator or generator_on(self.device, 0),
                    samples=samples, level=level, condition=self.condition(len(codes), base),
                    tail_value=tail_by_head(self.occupancy, self.value_head, gamma), common=common,
                )  # fmt: skip
        futures = self.futures_of_codes(codes, features, samples, gamma, generator, common)
        known = features if gamma == self.gamma else None  # of later hops, or other discounts: by the codes alone
        return from_samples(self.rewards(futures, known).cpu().numpy(), gamma, level)

    def value_of_rows(
        self,
        dataset: Episodes,
        rows: Sequence[int] | np.ndarray | None = None,
        gamma: float | None = None,
        estimator: Estimator = "head",
        samples: int = 100,
        level: float = 0.9,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> ValueEstimate:
        """``value`` of rows of a dataset, numbers (B,) or a mask bool (N,); None: of all. Frames of only some of them
        are in memory at a time.

        Raises:
            VOCError: rows that are not there, frames of another shape, or as ``value`` does.
        """
        self.check_spec(dataset.spec)
        rows = chosen(np.arange(len(dataset)) if rows is None else rows, len(dataset))
        generator = generator or generator_on(self.device, 0)
        start, parts = generator.get_state(), []
        for first in range(0, max(len(rows), 1), ROWS_AT_ONCE):
            if common:
                generator.set_state(start)
            tokens = tokenize(self.quantizer, dataset, rows[first : first + ROWS_AT_ONCE])
            parts.append(self.value_of_codes(*tokens, gamma, estimator, samples, level, generator, common))
        return joined(parts)

    def _here(self, codes: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Codes int64 and features, where the networks are."""
        return codes.to(self.device).long(), None if features is None else features.to(self.device)

    @torch.no_grad()
    def density_value(
        self,
        obs: np.ndarray | Tensor,
        codes: Tensor,
        rewards: np.ndarray,
        level: float = 0.9,
        groups: np.ndarray | None = None,
        gamma: float | None = None,
    ) -> ValueEstimate:
        """Values of observations from real rewards of data, weighted by density ratios (``values.density``).

        Args:
            obs: uint8 (B, 3K, H, W).
            codes: int (N, n_tokens) of a few thousand rows of the training data, drawn uniformly from those that a step
                arrived at. rewards: (N,), theirs. groups: int (N,), their episodes.
            gamma: in the range ``gammas``; None: the model's own.

        Raises:
            VOCError: a model trained without ``null_context``, codes of another quantizer, a discount that it does not
                know, or an effective sample size below 50 at every state (if only at some, those are NaN).
        """
        check_level(level)
        check_codes(codes, self.quantizer)
        gamma = base_gamma(self.gammas, self.resolve_gamma(gamma), hops=False)
        context, features = self.context(obs)
        # no autocast: ratios need their digits
        prefix = self.occupancy.prefix(context, features, condition=self.condition(len(context), gamma))
        weights = future_weights(self.occupancy, prefix, codes)
        return from_weights(weights, rewards, gamma, level, groups)

    def _by_head(self, codes: Tensor, features: Tensor | None, gamma: float, level: float) -> ValueEstimate:
        occupancy, head = self.occupancy, self.value_head
        if head is None:
            raise VOCError("This VOC has no value head; use estimator='sample'.")
        low, high = self.gammas
        if not low <= gamma <= high:
            known = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            other = "use estimator='sample'" if gamma > high else "train with a smaller gamma, or a range of gammas"
            raise VOCError(f"The value head knows gamma {known} only, not {gamma}; {other}.")
        return by_head(occupancy, head, codes, features, self.condition(len(codes), gamma), gamma, level)

    def sample_futures(
        self,
        obs: np.ndarray | Tensor,
        n: int,
        gamma: float | None = None,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> Tensor:
        """Codes int64 (B, n, n_tokens) of n observations at discounted future times of each of ``obs``, on ``device``.

        ``voc.quantizer.decode`` makes pictures of codes (n, n_tokens). ``voc.occupancy.config.end_code``, which has no
        picture, fills a future after a termination. ``common``: as in ``value``. Each is a draw of the model; together
        they are spread more evenly than independent draws (``occupancy.sampling.uniforms``).
        """
        return self.futures_of_codes(*self.context(obs), n, gamma, generator, common)

    @torch.no_grad()
    def futures_of_codes(
        self,
        codes: Tensor,
        features: Tensor | None,
        n: int,
        gamma: float | None = None,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> Tensor:
        """``sample_futures`` of states that are already codes."""
        check_count(n, "n")
        generator = generator or generator_on(self.device, 0)
        codes, features = self._here(codes, features)
        gamma = self.resolve_gamma(gamma)
        base = base_gamma(self.gammas, gamma)
        condition = self.condition(len(codes), base)
        with autocast(self.occupancy):
            return compose(self.occupancy, codes, features, n, base, gamma, generator, common, condition)

    def rewards(self, futures: Tensor, features: Tensor | None = None) -> Tensor:
        """Rewards float32 (B, n) of futures int64 (B, n, n_tokens); 0 for END.

        features: float (B, feature_dim), from ``context``, of the states whose futures these are, at the VOC's own
        discount: codes alone tell less. None: futures at other discounts, or of sampled states. A reward head that
        reads no features ignores them.

        Raises:
            VOCError: features of another number of states, or of another quantizer.
        """
        futures, features = self._here(futures, features)
        needed = (len(futures), self.quantizer.feature_dim)
        if features is not None and features.shape != needed:
            raise VOCError(f"Features have shape {tuple(features.shape)}; {needed} are needed.")
        return rewards_of_futures(
            futures, self.quantizer.embed, self.reward_head, self.occupancy.config.end_code, features
        )

    def fit_reward(
        self,
        dataset: Episodes,
        reward_fn: Callable[[Episodes], np.ndarray],
        *,
        tokens: tuple[Tensor, Tensor] | None = None,
        config: RewardConfig | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> VOC:
        """This model under another reward: the same quantizer and network, a reward head fitted in seconds. ``to``
        moves what is shared for both: move this model before. It has no value head, which knows one reward: ask by
        ``sample``, ``mve`` or ``density_value``.

        Args:
            dataset: episodes with frames as in training, of the policy that made the VOC's data. reward_fn: takes it
                and returns finite rewards float (N,) on arrival at each row; those of first rows are not used.
            tokens: codes and features of the rows of ``dataset``, where they are known already.

        Raises:
            VOCError: a ``reward_fn`` that is none, NaN, another shape than one reward per row, frames of another shape,
                or tokens of other rows.
        """
        check_reward_fn(reward_fn)
        self.check_spec(dataset.spec)
        codes, features = tokenize(self.quantizer, dataset) if tokens is None else tokens
        reads = self.reward_head.feature_dim > 0
        head = fit_reward_head(
            self.quantizer, codes, dataset, reward_fn(dataset), config or RewardConfig(), seed,
            features=features if reads else None, gamma=self.gamma if reads else None, progress=progress,
        )  # fmt: skip
        return VOC(self.quantizer, self.occupancy, head, None, self.gamma, self.spec)

    def successor_features(
        self,
        obs: np.ndarray | Tensor,
        samples: int = 100,
        gamma: float | None = None,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> np.ndarray:
        """Discounted sum of the future codes' vectors, float32 (B, n_tokens * code_dim); ``gamma`` as in ``value``."""
        return self.successor_features_of_codes(*self.context(obs), samples, gamma, generator, common)

    def successor_features_of_codes(
        self,
        codes: Tensor,
        features: Tensor | None,
        samples: int = 100,
        gamma: float | None = None,
        generator: torch.Generator | None = None,
        common: bool = False,
    ) -> np.ndarray:
        """``successor_features`` of states that are already codes."""
        gamma = self.resolve_gamma(gamma)
        futures = self.futures_of_codes(codes, features, samples, gamma, generator, common)
        psi = successor_features(futures, self.quantizer.embed, self.occupancy.config.end_code, gamma)
        return psi.cpu().numpy()

    def tokens(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Codes int64 (B, n_tokens) of observations uint8 (B, 3K, H, W)."""
        return self.context(obs)[0].cpu().numpy()

    @torch.no_grad()
    def context(self, obs: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """What the occupancy network reads of observations: codes int64 (B, n_tokens) and features float16 (or None).

        Both on ``device``.
        """
        check_observations(obs, self.observation_shape)
        obs = as_tensor(obs).to(self.device)
        if self.occupancy.config.feature_dim:
            return seen_as_stored(self.quantizer, obs)
        with autocast(self.quantizer):
            return self.quantizer.encode(obs), None

    def save(self, folder: str | Path) -> None:
        """Write the model into ``folder``: two descriptions (JSON) and two weight files (safetensors)."""
        save_parts(folder, self)

    @classmethod
    def load(cls, folder: str | Path) -> VOC:
        """Read a model that ``save`` wrote, onto the CPU; loading never executes code from the files.

        Raises:
            VOCError: missing or damaged files, another format version, or weights of another quantizer.
        """
        return load_parts(folder, cls)

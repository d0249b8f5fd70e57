"""What the occupancy network is told and what it remembers: its sizes, conditions, contexts read, codes written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_at_least, check_decay, check_gammas, check_positive


def check_layers(n_layer: int, n_head: int, width: int, dropout: float, attention_dropout: float) -> None:
    """Sizes that make a transformer.

    Raises:
        VOCError: sizes that are not above zero, heads that do not share the width, or dropout that leaves nothing.
    """
    for name, size in (("n_layer", n_layer), ("n_head", n_head), ("width", width)):
        check_positive(size, name)
    if width % n_head:
        raise VOCError(f"width {width} is not a multiple of n_head {n_head}.")
    check_decay(dropout, "dropout")
    check_decay(attention_dropout, "attention_dropout")


@dataclass(frozen=True)
class OccupancyConfig:
    """Sizes of the network.

    codebook_size: codes of the quantizer; the vocabulary is one larger (END). n_tokens: codes per observation, so that
    sequences have 2 n_tokens. feature_dim: width of the continuous context features, 0 for none. action_dim: width
    of the action taken at the context, 0 for none; it is read at the context's last place. policies: number of
    policies whose futures are told apart by their place in a list, 0 for the one that made the data. gammas:
    smallest and largest discount of a network that is told which one is meant, and knows them all; None for one
    that knows a single discount. null_context: whether it also knows the law of all rows, without any context, for
    density ratios. dropout: of embeddings and residual branches; attention_dropout: of attention weights. ends:
    whether episodes can terminate; where they cannot, END is never sampled. top_k: sample only the likeliest codes
    at each place (None: all); biased, and there for the recipe ``paper``.
    """

    codebook_size: int
    n_tokens: int
    feature_dim: int = 0
    action_dim: int = 0
    policies: int = 0
    gammas: tuple[float, float] | None = None
    null_context: bool = False
    n_layer: int = 3
    n_head: int = 4
    width: int = 128
    dropout: float = 0.0
    attention_dropout: float = 0.0
    ends: bool = True
    top_k: int | None = None

    def __post_init__(self) -> None:
        for name in ("codebook_size", "n_tokens"):
            check_positive(getattr(self, name), name)
        for name in ("feature_dim", "action_dim", "policies"):
            check_at_least(getattr(self, name), 0, name)
        check_layers(self.n_layer, self.n_head, self.width, self.dropout, self.attention_dropout)
        if self.gammas is not None:
            check_gammas(self.gammas)
        if self.top_k is not None:
            check_positive(self.top_k, "top_k")

    @property
    def end_code(self) -> int:
        """The code of the absorbing END sequence."""
        return self.codebook_size


@dataclass(frozen=True)
class Condition:
    """Whose future is asked for, beyond the context.

    action: float (B, action_dim), the action taken at the context; None: one that the policy draws. shown: bool (B,),
    where the action is known; None: everywhere. policy: int64 (B,), who acts from then on; None: the first policy.
    gamma: float (B,), the discounts, for a network that reads one; None for one that does not.
    """

    action: Tensor | None = None
    shown: Tensor | None = None
    policy: Tensor | None = None
    gamma: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self.each(lambda part: part[rows])

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        return self.each(lambda part: part.to(device))

    def later(self, samples: int) -> Condition:
        """The condition (B * samples) of the next hop from each of ``samples`` futures per context: same policy and
        discount, no given action."""
        return replace(self, action=None, shown=None).each(lambda part: part.repeat_interleave(samples, 0))

    def check(self, config: OccupancyConfig, entries: bool = True) -> None:
        """Refuse what a network of this ``config`` does not read.

        ``entries``: also look at the policies and discounts themselves, for which a GPU is waited for.

        Raises:
            VOCError: an action, policy or discount for a network without that input, no discount for one that reads it,
                or one outside its range.
        """
        found = 0 if self.action is None else self.action.shape[-1]
        if found and found != config.action_dim:
            raise VOCError(f"The action has size {found}, but this occupancy network reads {config.action_dim}.")
        gamma, known = self.gamma, config.gammas
        if (gamma is None) != (known is None):
            raise VOCError(
                "A discount was given to an occupancy network that knows one alone; leave it out." if known is None else
                f"This occupancy network reads a discount, {known[0]:g} to {known[1]:g}; give Condition(gamma=...)."
            )  # fmt: skip
        if not entries:
            return
        if self.policy is not None and not bool((self.policy < config.policies).all()):
            raise VOCError(f"Policy {int(self.policy.max())} was asked for, but this network knows {config.policies}.")
        if gamma is not None and known is not None and len(gamma):
            low, high = float(gamma.min()), float(gamma.max())
            if not known[0] - 1e-6 <= low <= high <= known[1] + 1e-6:
                raise VOCError(
                    f"Discounts {low:g} to {high:g} were asked for; this network knows {known[0]:g} to {known[1]:g}."
                )

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every part changed."""
        return Condition(**{name: None if part is None else change(part) for name, part in vars(self).items()})


class Prefix:
    """Keys and values of a context, per layer (B, heads, P, head width), and its last output (B, width)."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], last: Tensor) -> None:
        self.keys, self.values, self.last = keys, values, last

    def __len__(self) -> int:
        return len(self.last)


class Cache:
    """Preallocated keys and values of futures being written: per layer (B, M, heads, T, head width)."""

    def __init__(self, config: OccupancyConfig, prefix: Prefix, futures: int) -> None:
        """Room for ``futures`` of each context of ``prefix``, in its precision and on its device."""
        shape = (len(prefix), futures, config.n_head, config.n_tokens, config.width // config.n_head)
        self.keys = [key.new_empty(shape) for key in prefix.keys]
        self.values = [value.new_empty(shape) for value in prefix.values]
        self.length = 0

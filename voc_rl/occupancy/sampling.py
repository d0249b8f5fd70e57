"""Sampling futures: the context is read once, all its futures are written together, code by code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_gamma
from voc_rl.occupancy.contexts import Cache, Condition, Prefix
from voc_rl.occupancy.decoding import decoder
from voc_rl.occupancy.decoding_memory import bytes_of_state, default_memory, fitting
from voc_rl.occupancy.kernels import sample_codes
from voc_rl.occupancy.transformer import OccupancyTransformer
from voc_rl.precision import device_of

LOGITS_AT_ONCE = 1 << 26  # numbers, for the probabilities of given futures
MOST_HOPS = 1000  # of one future
CUT = 1e-3  # share of the futures that may want more
REPLICATES = 10  # parts of a state's futures that are independent of each other
BELOW_ONE = 1.0 - 2.0**-24


@torch.no_grad()
def sample_futures(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    samples: int,
    generator: torch.Generator,
    noise: Tensor | None = None,
    condition: Condition | None = None,
) -> Tensor:
    """Codes int64 (B, samples, n_tokens) of futures of contexts int64 (B, n_tokens); END fills a whole future.

    ``condition``: actions and policies of the B contexts. ``noise`` (n_tokens, B or 1, samples) is what the futures are
    drawn with, instead of fresh numbers (``uniforms``). As many states are decoded at once as ``model.memory`` allows,
    which changes nothing about their futures.

    Raises:
        VOCError: a budget of memory that is too small for one state.
    """
    parts = []
    states = states_at_once(model, len(context), samples)
    if noise is None:
        noise = uniforms(model, len(context), samples, generator)
    for first in range(0, len(context), states):
        some = slice(first, first + states)
        prefix = model.prefix(
            context[some], None if features is None else features[some], condition=condition and condition[some]
        )
        own = (noise if noise.shape[1] == 1 else noise[:, some]).expand(-1, len(prefix), -1)
        parts.append(sample_from_prefix(model, prefix, own))
    return torch.cat(parts) if parts else context.new_empty((0, samples, model.config.n_tokens))


def uniforms(model: OccupancyTransformer, states: int, samples: int, generator: torch.Generator) -> Tensor:
    """What futures are drawn with: float32 (n_tokens, states, samples) in [0, 1), where the generator is.

    Each future's numbers are uniform and independent of each other. The futures of a state come in ``replicates``,
    which are independent; within one of n futures every code's numbers are spread evenly, one in each nth of [0, 1)
    (Latin hypercube sampling, McKay, Beckman and Conover 1979). So means over futures vary less; how the means of
    replicates differ says how much they still do.

    Those of one state serve for all of a batch: common random numbers. Future i is then a function of the context
    alone, the same in every batch; the futures of two contexts are dependent.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "generator": generator, "device": generator.device}
    numbers = torch.rand((model.config.n_tokens, states, samples), **options)
    for part in numbers.split(replicates(samples), -1):
        if (n := part.shape[-1]) > 1:
            place = torch.rand(part.shape, **options).argsort(-1)
            part.add_(place).div_(n).clamp_(max=BELOW_ONE)
    return numbers


def replicates(samples: int) -> list[int]:
    """How many of a state's ``samples`` futures are in each of its replicates, in order.

    One, and of the others .6 to 1.4 of an equal share. Were all alike, each would hold the same number of futures of
    a first code with probability 1 / n, such as END, and how they differ would not tell that the number is off.
    """
    count = min(samples, REPLICATES)
    shares = np.linspace(0.6, 1.4, count).cumsum() / count
    ends = np.floor(shares * (samples - count) + 1e-9).astype(int)
    return (1 + np.diff(ends, prepend=0)).tolist()


@torch.no_grad()
def sample_from_prefix(model: OccupancyTransformer, prefix: Prefix, noise: Tensor) -> Tensor:
    """Codes int64 (B, samples, n_tokens) that follow contexts already read; ``noise`` is what ``uniforms`` returns."""
    if not model.drops:
        return decoder(model, len(prefix), noise.shape[2], prefix.keys[0].dtype)(prefix, noise)
    return sample_plainly(model, prefix, noise)


def states_at_once(model: OccupancyTransformer, states: int, samples: int) -> int:
    """How many of ``states`` are decoded at once: as many as fit into ``model.memory``, in parts of equal size.

    Raises:
        VOCError: a budget that is too small for one state.
    """
    device = device_of(model)
    low = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if low else model.codes.weight.dtype
    one = bytes_of_state(model.config, samples, dtype)
    memory = model.memory or default_memory(device)
    if memory < one:
        raise VOCError(
            f"The budget of {memory:,} bytes for sampling is too small for one state with {samples} samples, which "
            f"takes {one:,} bytes; raise it, or draw fewer samples."
        )
    most = memory // one
    parts = -(-states // (fitting(most, samples) if device.type == "cuda" else most))
    return -(-states // max(parts, 1)) or 1


@torch.no_grad()
def sample_plainly(model: OccupancyTransformer, prefix: Prefix, noise: Tensor) -> Tensor:
    """``sample_from_prefix`` by the network's own modules: the slow path, with dropout where it is on."""
    end, top_k, (n_tokens, _, samples) = model.config.end_code, model.config.top_k, noise.shape
    noise = noise.to(prefix.last.device)
    logits = model.logits(prefix.last)[:, None].float()
    if not model.config.ends:
        logits[..., end] = -torch.inf
    first = sample_codes(logits, noise[0, :, None], top_k)[:, 0]
    codes = [first]
    ended = first == end
    cache = Cache(model.config, prefix, samples)
    for place in range(1, n_tokens):
        logits = model.logits(model.next_hidden(prefix, codes[-1], cache)).float()
        logits[..., end] = -torch.inf  # END is a whole sequence: decided by its first code
        code = sample_codes(logits, noise[place, ..., None], top_k)[..., 0]
        codes.append(torch.where(ended, end, code))
    return torch.stack(codes, -1)


@torch.no_grad()
def compose(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    samples: int,
    gamma: float,
    new_gamma: float,
    generator: torch.Generator,
    common: bool = False,
    condition: Condition | None = None,
) -> Tensor:
    """Futures int64 (B, samples, n_tokens) at the model's discount or a larger one: hops, fed back as contexts.

    A first action in ``condition`` holds for the first hop; later ones are the policy's own. A network that reads a
    discount is told ``gamma`` in ``condition``.

    One more hop follows with probability (g' - g) / (1 - g); n hops thus have probability
    (1-g') (g'-g)^(n-1) / (1-g)^n (gamma-models, Janner et al. 2020). END stays END.
    ``common``: one state's random numbers for all (``uniforms``).

    Raises:
        VOCError: a discount below the model's, or one that is too many hops away (``chance_of_another``).
    """
    another = chance_of_another(gamma, new_gamma)
    noise = uniforms(model, 1, samples, generator) if common else None
    futures = sample_futures(model, context, features, samples, generator, noise, condition)
    flat, later = futures.flatten(0, 1), condition and condition.later(samples)
    going = torch.arange(len(flat), device=flat.device)
    for _ in range(MOST_HOPS - 1 if another > 0 else 0):
        count = samples if common else len(going)
        hop = torch.rand(count, dtype=torch.float32, generator=generator, device=generator.device).to(flat.device)
        keep = (hop[going % samples] if common else hop) < another
        going = going[keep & (flat[going, 0] != model.config.end_code)]
        if len(going) == 0:
            break
        _hop(model, flat, going, samples, later, generator, common)
    return flat.view_as(futures)


def chance_of_another(gamma: float, new_gamma: float) -> float:
    """Chance (g' - g) / (1 - g) that another hop follows, on the way from one discount to a larger one.

    Raises:
        VOCError: no discount, one below the model's, or one for which of a thousand futures more than one would take
            over ``MOST_HOPS`` hops.
    """
    check_gamma(new_gamma, "new_gamma")
    if new_gamma < gamma:
        raise VOCError(f"This model was trained for gamma {gamma}; it can answer for larger ones, not for {new_gamma}.")
    another = (new_gamma - gamma) / (1.0 - gamma)
    if another > CUT ** (1.0 / MOST_HOPS):
        raise VOCError(
            f"Futures at gamma {new_gamma:g} by hops of a network at gamma {gamma:g} would take "
            f"{1 / (1 - another):.0f} hops on average, and some over {MOST_HOPS}; train for a larger gamma, or ask for "
            "a smaller one."
        )
    return another


@torch.no_grad()
def hops(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    samples: int,
    count: int,
    generator: torch.Generator,
    common: bool = False,
    condition: Condition | None = None,
) -> Iterator[Tensor]:
    """Futures int64 (B, samples, n_tokens) after one, two, ... ``count`` hops of the same paths; END stays END.

    ``condition`` and ``common`` as in ``compose``.
    """
    noise = uniforms(model, 1, samples, generator) if common else None
    futures = sample_futures(model, context, features, samples, generator, noise, condition)
    yield futures
    later = condition and condition.later(samples)
    for _ in range(count - 1):
        flat = futures.flatten(0, 1).clone()
        going = (flat[:, 0] != model.config.end_code).nonzero()[:, 0]
        if len(going):
            _hop(model, flat, going, samples, later, generator, common)
        futures = flat.view_as(futures)
        yield futures


def _hop(
    model: OccupancyTransformer, flat: Tensor, going: Tensor, samples: int, later: Condition | None,
    generator: torch.Generator, common: bool,
) -> None:  # fmt: skip
    """One more hop of the places ``going`` of futures int64 (B * samples, n_tokens), in place; the policy acts."""
    noise = None
    if common:
        same = uniforms(model, 1, samples, generator)
        noise = same[:, 0, (going % samples).to(same.device), None]
    flat[going] = sample_futures(model, flat[going], None, 1, generator, noise, later and later[going])[:, 0]


@torch.no_grad()
def log_probabilities(model: OccupancyTransformer, prefix: Prefix, futures: Tensor) -> Tensor:
    """Log-probability float32 (B, M) of futures int64 (1 or B, M, n_tokens) that do not end, given B contexts.

    Their exponentials over all futures sum to 1 minus the probability of END (``end_probability``), which the first
    code decides.
    """
    B, (_, M, n_tokens), end = len(prefix), futures.shape, model.config.end_code
    impossible = torch.arange(end + 1, device=futures.device) == end
    at_once = max(LOGITS_AT_ONCE // max(B * n_tokens * (end + 1), 1), 1)
    parts = []
    for first in range(0, M, at_once):
        some = futures[:, first : first + at_once].expand(B, -1, -1)
        opening, later = model.future_logits(prefix, some)
        if not model.config.ends:
            opening = opening.masked_fill(impossible, -torch.inf)
        later = later.float().masked_fill(impossible, -torch.inf).log_softmax(-1)
        own = opening.float().log_softmax(-1).gather(1, some[..., 0])
        parts.append(own + later.gather(-1, some[..., 1:, None])[..., 0].sum(-1))
    return torch.cat(parts, 1)


@torch.no_grad()
def end_probability(model: OccupancyTransformer, prefix: Prefix) -> Tensor:
    """Probability float32 (B,) that the future is END."""
    if not model.config.ends:
        return torch.zeros(len(prefix), device=prefix.last.device)
    return model.logits(prefix.last).float().softmax(-1)[:, model.config.end_code]

"""Sampling futures: the context is read once, all its futures are written together, code by code."""

from __future__ import annotations

import torch
from torch import Tensor

from voc_rl.occupancy.transformer import Cache, Condition, OccupancyTransformer, Prefix

# states x samples that are decoded at once; bounds memory, and is large enough to keep the matrices busy
SEQUENCES_AT_ONCE = 16384


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
    drawn with, instead of fresh numbers (``uniforms``).
    """
    states = max(SEQUENCES_AT_ONCE // samples, 1)
    parts = []
    for first in range(0, len(context), states):
        some = slice(first, first + states)
        prefix = model.prefix(
            context[some], None if features is None else features[some], condition=condition and condition[some]
        )
        if noise is None:
            own = uniforms(model, len(prefix), samples, generator)
        else:
            own = (noise if noise.shape[1] == 1 else noise[:, some]).expand(-1, len(prefix), -1)
        parts.append(sample_from_prefix(model, prefix, own))
    return torch.cat(parts)


def uniforms(model: OccupancyTransformer, states: int, samples: int, generator: torch.Generator) -> Tensor:
    """What futures are drawn with: float32 (n_tokens, states, samples) in [0, 1).

    Those of one state serve for all of a batch: common random numbers. Future i is then a function of the context
    alone, the same in every batch; the futures of two contexts are dependent.
    """
    return torch.rand((model.config.n_tokens, states, samples), generator=generator)


@torch.no_grad()
def sample_from_prefix(model: OccupancyTransformer, prefix: Prefix, noise: Tensor) -> Tensor:
    """Codes int64 (B, samples, n_tokens) that follow contexts already read; ``noise`` is what ``uniforms`` returns."""
    end, top_k, (n_tokens, _, samples) = model.config.end_code, model.config.top_k, noise.shape
    logits = model.logits(prefix.last)[:, None].float()
    if not model.config.ends:
        logits[..., end] = -torch.inf
    first = sample_codes(logits, noise[0, :, None], top_k)[:, 0]
    codes = [first]
    ended = first == end
    cache = Cache(model.config, len(prefix), samples, prefix.keys[0].dtype)
    for place in range(1, n_tokens):
        logits = model.logits(model.next_hidden(prefix, codes[-1], cache)).float()
        logits[..., end] = -torch.inf  # END is a whole sequence: decided by its first code
        code = sample_codes(logits, noise[place, ..., None], top_k)[..., 0]
        codes.append(torch.where(ended, end, code))
    return torch.stack(codes, -1)


def sample_codes(logits: Tensor, noise: Tensor, top_k: int | None = None) -> Tensor:
    """Logits (..., V) and uniform noise (..., samples) -> int64 (..., samples), by inverting the distribution."""
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]  # not exactly 1 in float32
    # side "right": a code of probability zero is never taken, not even at uniform 0
    return torch.searchsorted(cumulative, noise * total, right=True).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def compose(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    samples: int,
    gamma: float,
    new_gamma: float,
    generator: torch.Generator,
    max_hops: int = 50,
    common: bool = False,
    condition: Condition | None = None,
) -> Tensor:
    """Futures int64 (B, samples, n_tokens) at a larger discount: hops of the model, fed back as contexts.

    A first action in ``condition`` holds for the first hop; later ones are the policy's own.

    One more hop follows with probability (g' - g) / (1 - g); n hops thus have probability
    (1-g') (g'-g)^(n-1) / (1-g)^n (gamma-models, Janner et al. 2020). END stays END. At most ``max_hops``.
    ``common``: one state's random numbers for all (``uniforms``).
    """
    noise = uniforms(model, 1, samples, generator) if common else None
    futures = sample_futures(model, context, features, samples, generator, noise, condition)
    flat = futures.flatten(0, 1)
    policy = None if condition is None or condition.policy is None else condition.policy.repeat_interleave(samples)
    another = (new_gamma - gamma) / (1.0 - gamma)
    going = torch.arange(len(flat))
    for _ in range(max_hops - 1):
        hop = torch.rand(samples if common else len(going), generator=generator)
        keep = (hop[going % samples] if common else hop) < another
        going = going[keep & (flat[going, 0] != model.config.end_code)]
        if len(going) == 0:
            break
        if common:
            noise = uniforms(model, 1, samples, generator)[:, 0, going % samples, None]
        later = None if policy is None else Condition(policy=policy[going])
        flat[going] = sample_futures(model, flat[going], None, 1, generator, noise, later)[:, 0]
    return flat.view_as(futures)

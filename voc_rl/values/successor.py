"""Successor features of sampled futures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from voc_rl.values.estimators import states_at_once


@torch.no_grad()
def successor_features(futures: Tensor, embed: Callable[[Tensor], Tensor], end_code: int, gamma: float) -> Tensor:
    """psi = E[phi(z)] / (1 - gamma), float32 (B, n_tokens * code_dim), of codes int64 (B, S, n_tokens).

    phi is the flat vector of an observation's codes, and zero after an END. A reward that is linear in phi has the
    value psi @ weights (Barreto et al. 2017).
    """
    means = []
    for part in futures.split(states_at_once(futures)):
        ended = (part[..., 0] == end_code)[..., None]
        phi = embed(torch.where(ended, 0, part)).flatten(-2).float()
        means.append(torch.where(ended, 0.0, phi).mean(1))
    return torch.cat(means) / (1.0 - gamma)

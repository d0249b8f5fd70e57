"""A dataset as an agent sees it: inputs of rows, where the agent's networks are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.agents.networks import ConvEncoder, FrozenEncoder
from voc_rl.data import Episodes, going_rows, taken_actions
from voc_rl.precision import device_of
from voc_rl.quantizers import check_features, tokenize
from voc_rl.quantizers.shift import random_shift
from voc_rl.training_inputs import Tokens, known_tokens


@dataclass(frozen=True)
class View:
    """dataset: the episodes. going int64 (G,): rows with a step left. taken float32 (N, A): the actions there.

    encoded: rows int64 (B,) and a generator -> inputs (B, F) of them, with the noise or shift of training.
    """

    dataset: Episodes
    going: np.ndarray
    taken: Tensor
    encoded: Callable[[np.ndarray, torch.Generator], Tensor]


def view_of(agent: Any, dataset: Episodes, tokens: Tokens | None = None, seen: Tensor | None = None) -> View:
    """The view of an agent (``OfflineAgent``); ``tokens`` and ``seen`` as in its ``learn``."""
    device = device_of(agent.actor)
    going = going_rows(dataset)
    taken = torch.from_numpy(taken_actions(dataset)).to(device)
    if isinstance(agent.encoder, FrozenEncoder):
        return View(dataset, going, taken, _frozen(agent, dataset, tokens, device))
    return View(dataset, going, taken, _frames(agent, dataset, seen, device))


@torch.no_grad()
def seen_rows(encoder: ConvEncoder, dataset: Episodes, rows_at_once: int = 512) -> Tensor:
    """What convolutions see of every row, float32 (N, 50), on the CPU."""
    device = device_of(encoder)
    parts = np.array_split(np.arange(len(dataset)), -(-len(dataset) // rows_at_once))
    return torch.cat([encoder(torch.from_numpy(dataset.observations(rows)).to(device)).cpu() for rows in parts])


def _frozen(
    agent: Any, dataset: Episodes, tokens: Tokens | None, device: torch.device
) -> Callable[[np.ndarray, torch.Generator], Tensor]:
    quantizer, known = agent.encoder.quantizer, None
    if tokens is not None:
        known = known_tokens(tokens, quantizer, dataset, needs_features=False)
        if not agent.encoder.of_tokens:
            check_features(quantizer, known)
    codes, features = known or tokenize(quantizer, dataset)
    codes, features = codes.to(device), None if features is None else features.to(device)
    if not agent.encoder.mean.any():  # an agent that learned already goes on with what its actor knows
        agent.encoder.fit(codes, features)
    return _noisy(agent.encoder.inputs(codes, features), agent.config.noise)


def _noisy(inputs: Tensor, noise: float | Tensor) -> Callable[[np.ndarray, torch.Generator], Tensor]:
    """Known inputs (N, F) with Gaussian noise of a standard deviation, of all or of each (F,)."""

    def encoded(rows: np.ndarray, generator: torch.Generator) -> Tensor:
        found = inputs[torch.from_numpy(rows).to(inputs.device)]
        return found + noise * torch.randn(found.shape, generator=generator, device=generator.device).to(found.device)

    return encoded


def _frames(
    agent: Any, dataset: Episodes, seen: Tensor | None, device: torch.device
) -> Callable[[np.ndarray, torch.Generator], Tensor]:
    if not agent.encoder.learns:
        known = (seen_rows(agent.encoder, dataset) if seen is None else seen).to(device)
        return _noisy(known, agent.config.noise * known.std(0))
    frames = torch.from_numpy(dataset.frames(np.arange(len(dataset)))).to(device)

    def encoded(rows: np.ndarray, generator: torch.Generator) -> Tensor:
        obs = frames[torch.from_numpy(dataset.stacked_rows(rows)).to(device)].flatten(1, 2)
        return agent.encoder(random_shift(obs, agent.config.shift, generator))

    return encoded

"""Codes of what actions change: multi-step inverse kinematics (MUSIK; Lamb et al. 2022, Tomar et al. 2024).

Which action was taken at t, given the codes of t and of t + k? To tell, codes must hold whatever the agent controls,
and need not hold what moves by itself (weather, a crowd, a film in the background).

Network. The encoder, codebook and picture decoder of the small VQ-VAE; only what the encoder learns from differs.

Loss. Contrastive (InfoNCE): a network gives each candidate action an energy, and the logged action has to be told
from uniform ones, over the range that each dimension has in the data. So it works for any number of action dimensions
and for several right answers. It sees the quantised vectors, with straight-through gradients. The decoder learns to
paint from vectors that are cut off from the encoder: pictures show what codes hold, and never decide it.

Limits. Where the data's policy acts on it, something that no action moves still helps to guess the action and may be
kept; where actions do nothing, codes hold nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.data.hdf5 import FIRST
from voc_rl.errors import VOCError, check_at_least, check_count
from voc_rl.precision import device_of
from voc_rl.quantizers.base import Quantizer, whole_batch
from voc_rl.quantizers.shift import random_moves, shifted
from voc_rl.quantizers.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class MUSIKConfig:
    """Sizes of the network, and how it is trained.

    n_tokens: codes per observation. levels: steps of each scalar of a code; their product is the codebook size.
    components: principal components per frame. hidden: width of the layers around the bottleneck.
    conv_width: channels of the convolutional branch of the encoder; 0 leaves it out.
    decoder_width, patch: channels of the decoder, and the pixels that one of its cells paints.
    horizon: k is uniform in 1..horizon steps. condition_on_k: tell the classifier k.
    negatives: uniform actions against each logged one. energy_hidden: width of the classifier.
    max_action_size: action dimensions that the classifier has room for; those that never change need none.
    shift: random shift of training pictures, in pixels, the same for both ends of a pair; 0 for none.
    """

    n_tokens: int = 8
    levels: tuple[int, ...] = (8, 6, 5)
    components: int = 64
    hidden: int = 512
    conv_width: int = 0
    decoder_width: int = 64
    patch: int = 6
    horizon: int = 14
    condition_on_k: bool = False
    negatives: int = 256
    energy_hidden: int = 256
    max_action_size: int = 64
    shift: int = 0

    def __post_init__(self) -> None:
        for name in ("horizon", "negatives", "energy_hidden", "max_action_size"):
            check_count(getattr(self, name), name)
        check_at_least(self.shift, 0, "shift")
        self.network()  # which checks its own sizes

    def network(self) -> VQVAEConfig:
        """The part that sizes the encoder, the codebook and the decoder."""
        names = ("n_tokens", "levels", "components", "hidden", "conv_width", "decoder_width", "patch")
        return VQVAEConfig(**{name: getattr(self, name) for name in names})


class MUSIKBatch(NamedTuple):
    """Pairs of observations of one episode, and the action that was taken at the earlier one.

    obs, later: uint8 (B, 3K, H, W), at t and t + ``steps``. steps: int64 (B,).
    action: float32 (B, A), of the dimensions that change in the data, whose ranges are -1..1 here.
    """

    obs: Tensor
    later: Tensor
    action: Tensor
    steps: Tensor


class ActionEnergy(nn.Module):
    """Energy of candidate actions given a pair of code vectors, low for actions that explain the pair."""

    def __init__(self, bottleneck: int, config: MUSIKConfig) -> None:
        super().__init__()
        width = config.energy_hidden
        self.pair = nn.Sequential(nn.Linear(2 * bottleneck, width), nn.GELU(), nn.Linear(width, width))
        self.steps = nn.Embedding(config.horizon + 1, width) if config.condition_on_k else None
        self.action = nn.Linear(config.max_action_size, width, bias=False)
        # layer norm, not the published batch norm: the 257 rows of one pair are anything but independent
        self.energy = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, now: Tensor, later: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """Vectors (B, n), (B, n), actions (B, M, A), steps int64 (B,) -> energies (B, M).

        Raises:
            VOCError: actions of more than ``max_action_size`` dimensions.
        """
        size, room = actions.shape[-1], self.action.in_features
        if size > room:
            raise VOCError(f"Actions have {size} dimensions; max_action_size of the musik config is {room}.")
        pair = self.pair(torch.cat([now, later], 1))
        if self.steps is not None:
            pair = pair + self.steps(steps)
        # as if actions were filled up with zeros, without the zeros
        return self.energy(pair[:, None] + F.linear(actions, self.action.weight[:, :size])).squeeze(-1)


class MUSIK(VQVAE):
    """The quantizer ``musik``."""

    name = "musik"

    def __init__(self, observation_shape: tuple[int, int, int], config: MUSIKConfig) -> None:
        super().__init__(observation_shape, config.network())
        self.config: Any = config
        del self.to_features  # only pictures are decoded
        self.energies = ActionEnergy(self.n_tokens * self.code_dim, config)
        self._actions: np.ndarray | None = None  # of the last dataset, whose ranges these are
        self._range: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def from_published(path: str | Path, stack: int = 1) -> Quantizer:
        """Refused: nobody has published a file of it.

        Raises:
            VOCError: always.
        """
        raise VOCError(
            f"{path} is no musik, of which nothing is published; train one, or read the file as VQVAE.from_published."
        )

    def batch(self, dataset: Episodes, rows: np.ndarray, rng: np.random.Generator) -> MUSIKBatch:
        """Pairs that start at ``rows``, or at other rows where an episode has no step left, k steps apart.

        k is uniform in 1..horizon, cut at the end of the episode. Of actions, the dimensions that change are kept, and
        the range of each in the dataset is brought to -1..1, which is where negatives are drawn from.

        Raises:
            VOCError: a dataset without steps, or whose actions never change.
        """
        if self._actions is not dataset.action:  # once for a dataset: it takes a while where actions are many
            self._range, self._actions = _action_range(dataset), dataset.action
        centre, reach = self._range
        changes = reach > 0
        count, own = whole_batch(len(rows))
        rows = np.where(dataset.steps_left[rows] > 0, rows, dataset.sample_rows(count, rng)[own])
        steps = np.minimum(rng.integers(1, self.config.horizon + 1, count)[own], dataset.steps_left[rows])
        obs, later = np.split(dataset.observations(np.concatenate([rows, rows + steps])), 2)
        action = dataset.action[rows + 1][:, changes]  # a row holds the action that led to it
        action = (action - centre[changes]) / reach[changes]
        device = device_of(self)
        return MUSIKBatch(*(torch.from_numpy(array).to(device) for array in (obs, later, action, steps)))

    def loss(self, batch: MUSIKBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        pictures = torch.cat([batch.obs, batch.later], 1)
        if self.config.shift:  # both ends by the same shift: what moved between them stays
            count, own = whole_batch(len(pictures))
            pictures = shifted(pictures, random_moves(count, self.config.shift, generator)[:, own])
        obs, later = pictures.chunk(2, 1)
        vectors, _ = self.codebook(self.latents(torch.cat([obs, later])))
        now, then = vectors.flatten(1).chunk(2)
        candidates = candidate_actions(batch.action, self.config.negatives, generator)
        infonce, accuracy = info_nce(self.energies(now, then, candidates, batch.steps))
        trunk = self.trunk(now.detach())
        pixels = self._painting_loss(obs, trunk, generator)
        numbers = {"infonce": infonce.detach(), "accuracy": accuracy, "pixels": pixels.detach()}
        return infonce + pixels, numbers


def candidate_actions(action: Tensor, negatives: int, generator: torch.Generator) -> Tensor:
    """(B, A) -> (B, 1 + negatives, A): the logged action first, then actions uniform in -1..1."""
    count, own = whole_batch(len(action))
    shape = (count, negatives, action.shape[1])
    uniform = torch.rand(shape, generator=generator, device=generator.device)[own].to(action.device)
    return torch.cat([action[:, None], 2 * uniform - 1], 1)


def info_nce(energies: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B, M), those of the logged actions first -> (loss, accuracy), both scalars.

    loss: cross-entropy of the logged action under softmax(-energy) (van den Oord et al. 2018); log M by guessing.
    accuracy: share of rows in which the logged action has the lowest energy; a tie does not count.
    """
    logits = -energies.float()
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    return loss, (logits[:, :1] > logits[:, 1:]).all(1).float().mean()


def _action_range(dataset: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """The middle of what was taken in each dimension, and how far it reaches to both sides; float32 (A,) each."""
    taken = dataset.action[dataset.step_type != FIRST]
    if not len(taken):
        raise VOCError("musik learns from steps; no episode of this dataset has two rows.")
    low, high = taken.min(0), taken.max(0)
    if not (low < high).any():
        raise VOCError("musik learns from actions; this dataset has none (they are of size 0, or never change).")
    return (low + high) / 2, (high - low) / 2

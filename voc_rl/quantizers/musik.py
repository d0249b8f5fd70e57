"""Codes of what actions change: multi-step inverse kinematics (MUSIK; Lamb et al. 2022, Tomar et al. 2024).

Which action was taken at t, given the codes of t and of t + k? To tell, codes must hold whatever the agent controls,
and need not hold what moves by itself (weather, a crowd, a film in the background).

Network. The encoder, codebook and picture decoder of the small VQ-VAE; only what the encoder learns from differs.

Loss. Contrastive (InfoNCE): a network gives each candidate action an energy, and the logged action has to be told
from others: uniform ones, over the range that each dimension has in the data, but where a dimension has few values
there (one-hot choices, full thrust or none) with those of logged actions, which uniform numbers would never hit. So it
works for any number of action dimensions and for several right answers. It sees the quantised vectors, with
straight-through gradients. The decoder learns to paint from vectors that are cut off from the encoder: pictures show
what codes hold, and never decide it.

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

MOST_LISTED = 32  # values of a dimension; beside more, a network hardly tells uniform numbers from logged ones


@dataclass(frozen=True)
class MUSIKConfig:
    """Sizes of the network, and how it is trained.

    n_tokens: codes per observation. levels: steps of each scalar of a code; their product is the codebook size.
    components: principal components per frame. hidden: width of the layers around the bottleneck.
    conv_width: channels of the convolutional branch of the encoder; 0 leaves it out.
    decoder_width, patch: channels of the decoder, and the pixels that one of its cells paints.
    horizon: k is uniform in 1..horizon steps. condition_on_k: tell the classifier k.
    negatives: actions against each logged one, where there are as many. energy_hidden: width of the classifier.
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
    listed: int64 (L,), those of them that have few values in the data. choices: float32 (V, L), what was taken there.
    """

    obs: Tensor
    later: Tensor
    action: Tensor
    steps: Tensor
    listed: Tensor
    choices: Tensor


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
        self._actions: np.ndarray | None = None  # of the last dataset, of which this was taken
        self._taken: TakenActions

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

        k is uniform in 1..horizon, cut at the end of the episode.

        Raises:
            VOCError: a dataset without steps, or whose actions never change.
        """
        if self._actions is not dataset.action:  # once for a dataset: it takes a while where actions are many
            self._taken, self._actions = TakenActions(dataset), dataset.action
        taken = self._taken
        count, own = whole_batch(len(rows))
        rows = np.where(dataset.steps_left[rows] > 0, rows, dataset.sample_rows(count, rng)[own])
        steps = np.minimum(rng.integers(1, self.config.horizon + 1, count)[own], dataset.steps_left[rows])
        obs, later = np.split(dataset.observations(np.concatenate([rows, rows + steps])), 2)
        action = taken.scaled(dataset.action[rows + 1])  # a row holds the action that led to it
        device = device_of(self)
        arrays = (obs, later, action, steps, taken.listed, taken.choices)
        return MUSIKBatch(*(torch.from_numpy(array).to(device) for array in arrays))

    def loss(self, batch: MUSIKBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        pictures = torch.cat([batch.obs, batch.later], 1)
        if self.config.shift:  # both ends by the same shift: what moved between them stays
            count, own = whole_batch(len(pictures))
            pictures = shifted(pictures, random_moves(count, self.config.shift, generator)[:, own])
        obs, later = pictures.chunk(2, 1)
        vectors, _ = self.codebook(self.latents(torch.cat([obs, later])))
        now, then = vectors.flatten(1).chunk(2)
        candidates = candidate_actions(batch.action, batch.listed, batch.choices, self.config.negatives, generator)
        infonce, accuracy = info_nce(self.energies(now, then, candidates, batch.steps))
        trunk = self.trunk(now.detach())
        pixels = self._painting_loss(obs, trunk, generator)
        numbers = {"infonce": infonce.detach(), "accuracy": accuracy, "pixels": pixels.detach()}
        return infonce + pixels, numbers


def candidate_actions(
    action: Tensor, listed: Tensor, choices: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    """(B, A) -> (B, 1 + M, A): the logged action first, then M others; ``listed``, ``choices`` as in ``MUSIKBatch``.

    Every other choice once, where all dimensions are listed and these are at most ``negatives``. Else M is
    ``negatives``: in listed dimensions choices, all alike, in others uniform in -1..1.
    """
    count, own = whole_batch(len(action))
    (kinds, few), size = choices.shape, action.shape[1]
    if few == size and kinds <= negatives + 1:
        logged = (choices == action[:, None]).all(-1).long().argmax(1)
        others = logged[:, None] + torch.arange(1, kinds, device=action.device)
        return torch.cat([action[:, None], choices[others % kinds]], 1)
    uniform = torch.rand((count, negatives, size), generator=generator, device=generator.device)[own].to(action.device)
    drawn = 2 * uniform - 1
    if few:
        which = torch.randint(kinds, (count, negatives), generator=generator, device=generator.device)[own]
        drawn[..., listed] = choices[which.to(action.device)]
    return torch.cat([action[:, None], drawn], 1)


def info_nce(energies: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B, M), those of the logged actions first -> (loss, accuracy), both scalars.

    loss: cross-entropy of the logged action under softmax(-energy) (van den Oord et al. 2018); log M by guessing.
    accuracy: share of rows in which the logged action has the lowest energy; a tie does not count.
    """
    logits = -energies.float()
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    return loss, (logits[:, :1] > logits[:, 1:]).all(1).float().mean()


class TakenActions:
    """What was taken in a dataset, by the dimensions that change, the range of each brought to -1..1.

    Attributes:
        listed: int64 (L,), the dimensions of few values, each taken ten times on average.
        choices: float32 (V, L), all that was taken there, every combination once.

    Raises:
        VOCError: a dataset without steps, or whose actions never change.
    """

    def __init__(self, dataset: Episodes) -> None:
        taken = dataset.action[dataset.step_type != FIRST]
        if not len(taken):
            raise VOCError("musik learns from steps; no episode of this dataset has two rows.")
        low, high = taken.min(0), taken.max(0)
        if not (low < high).any():
            raise VOCError("musik learns from actions; this dataset has none (they are of size 0, or never change).")
        self._centre, self._reach = (low + high) / 2, (high - low) / 2
        taken, most = self.scaled(taken), min(MOST_LISTED, len(taken) // 10)
        self.listed = np.flatnonzero([len(np.unique(column)) <= most for column in taken.T])
        self.choices = np.unique(taken[:, self.listed], axis=0)

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """Actions float32 (N, A) of the dataset, those of their dimensions that change, in -1..1."""
        changes = self._reach > 0
        return (action[:, changes] - self._centre[changes]) / self._reach[changes]

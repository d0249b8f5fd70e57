"""Rewards of codes: the reward that arrives with an observation, read off its codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_at_least, check_positive
from voc_rl.loop import LoopConfig, StepLog, optimise
from voc_rl.occupancy import arrived_rows
from voc_rl.precision import autocast, device_of, seeded
from voc_rl.quantizers import Quantizer


@dataclass(frozen=True)
class RewardConfig:
    """hidden: width of the layers. bins: of the two-hot target. loop: how it is trained."""

    hidden: int = 256
    bins: int = 51
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=800, batch_size=512, learning_rate=2e-3))

    def __post_init__(self) -> None:
        check_positive(self.hidden, "hidden")
        check_at_least(self.bins, 2, "bins")


class RewardHead(nn.Module):
    """Codes' vectors float (..., n_tokens, code_dim) -> reward (...), the mean of a distribution over bins."""

    def __init__(self, n_tokens: int, code_dim: int, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Sequential(
            nn.Linear(n_tokens * code_dim, config.hidden), nn.GELU(),
            nn.Linear(config.hidden, config.hidden), nn.GELU(),
            nn.Linear(config.hidden, config.bins),
        )  # fmt: skip
        self.register_buffer("centres", torch.linspace(0.0, 1.0, config.bins))
        self.centres: Tensor

    def forward(self, vectors: Tensor) -> Tensor:
        return self.body(vectors.flatten(-2)).float().softmax(-1) @ self.centres

    def two_hot(self, reward: Tensor) -> Tensor:
        """(B,) -> (B, bins): the two neighbouring bins, weighted so that their mean is the reward."""
        step = self.centres[1] - self.centres[0]
        place = ((reward - self.centres[0]) / step).clamp(0, len(self.centres) - 1)
        low = place.floor().long().clamp(max=len(self.centres) - 2)
        share = (place - low)[:, None]
        return F.one_hot(low, len(self.centres)) * (1 - share) + F.one_hot(low + 1, len(self.centres)) * share


class _RewardTrainee:
    """``vectors``: rows int64 (B,) -> the vectors of their codes, float (B, n_tokens, code_dim)."""

    def __init__(self, head: RewardHead, vectors: Callable[[Tensor], Tensor], rewards: Tensor, batch_size: int) -> None:
        self.head, self.vectors, self.rewards, self.batch_size = head, vectors, rewards, batch_size

    def parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(self.rewards), (self.batch_size,), generator=generator, device=generator.device)
        with torch.no_grad():
            vectors = self.vectors(rows).flatten(1)
        with autocast(vectors.device):
            logits = self.head.body(vectors).float()
        return F.cross_entropy(logits, self.head.two_hot(self.rewards[rows])), {}

    def after_step(self, step: int) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return dict(self.head.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.head.load_state_dict(state)


def check_rewards(rewards: np.ndarray, rows: int) -> np.ndarray:
    """Rewards as float32 (rows,), one per row and finite.

    Raises:
        VOCError: they are not.
    """
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape != (rows,):
        raise VOCError(f"Rewards have shape {rewards.shape}; one per row, ({rows},), is needed.")
    if not np.isfinite(rewards).all():
        raise VOCError("Rewards hold NaN or infinity; finite rewards are needed.")
    return rewards


def train_reward_head(
    vectors: Tensor,
    rewards: np.ndarray,
    config: RewardConfig,
    seed: int = 0,
    *,
    log: StepLog | None = None,
    progress: bool = False,
) -> RewardHead:
    """Fit rewards (N,) to the vectors (N, n_tokens, code_dim) of the observations they arrived with, where these are.

    Raises:
        VOCError: NaN rewards, none, or another number of rewards than of vectors.
    """
    rewards = check_rewards(rewards, len(vectors))
    goals = torch.from_numpy(rewards).to(vectors.device)
    return _fitted(vectors.__getitem__, (vectors.shape[1], vectors.shape[2]), goals, config, seed, log, progress)


def _fitted(
    vectors: Callable[[Tensor], Tensor], size: tuple[int, int], goals: Tensor, config: RewardConfig, seed: int,
    log: StepLog | None, progress: bool,
) -> RewardHead:  # fmt: skip
    """A head for rewards float32 (N,), where they are; ``vectors``: of a batch of rows, of ``size`` each."""
    if len(goals) == 0:
        raise VOCError("There are no rewards to fit; at least one row that a step arrived at is needed.")
    with seeded(torch.device("cpu"), seed):
        head = RewardHead(*size, config)
    low, high = float(goals.min()), float(goals.max())
    head.centres.copy_(torch.linspace(low, max(high, low + 1e-3 * max(1.0, abs(low))), config.bins))
    trainee = _RewardTrainee(head.to(goals.device), vectors, goals, config.loop.batch_size)
    optimise(trainee, config.loop, seed, "reward", log=log, progress=progress)
    return head.eval()


def fit_reward_head(
    quantizer: Quantizer,
    codes: Tensor,
    dataset: Episodes,
    reward: np.ndarray,
    config: RewardConfig,
    seed: int = 0,
    *,
    log: StepLog | None = None,
    progress: bool = False,
) -> RewardHead:
    """Fit rewards float (N,) on arrival at the rows of ``dataset``, logged or others, to their codes (N, n_tokens).

    Where the quantizer is. The codes' vectors, a hundred times as large, are made batch by batch.

    Raises:
        VOCError: NaN rewards, another shape than one per row, codes of other rows, or episodes of one row alone.
    """
    reward = check_rewards(reward, len(dataset))
    if len(codes) != len(dataset):
        raise VOCError(f"There are codes of {len(codes)} rows, but {len(dataset)} rows; give those of this dataset.")
    arrived = arrived_rows(dataset)  # row 0 of an episode has no reward
    own = codes[arrived.to(codes.device)].to(device_of(quantizer))

    def vectors(rows: Tensor) -> Tensor:
        return quantizer.embed(own[rows].long())

    goals = torch.from_numpy(reward[arrived.numpy()]).to(own.device)
    return _fitted(vectors, (quantizer.n_tokens, quantizer.code_dim), goals, config, seed, log, progress)

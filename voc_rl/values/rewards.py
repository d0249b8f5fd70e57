"""Rewards of observations, read off their codes alone, or off codes and features of the state they are futures of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes, arrived_rows, going_rows
from voc_rl.data.checks import check_reward_sizes
from voc_rl.errors import VOCError, check_at_least, check_positive, check_token_rows
from voc_rl.loop import LoopConfig, StepLog, Trainee, optimise
from voc_rl.occupancy.features import SeesFeatures
from voc_rl.precision import autocast, device_of, seeded, single_precision
from voc_rl.quantizers import Quantizer

PAIRS = 97  # the stream of random numbers that draws states and their futures


@dataclass(frozen=True)
class RewardConfig:
    """hidden: width of the layers. bins: of the two-hot target. loop: how each of a head's networks is trained.
    feature_noise: on features that are read beside codes, in units of their spread, as in ``OccupancyTraining``."""

    hidden: int = 256
    bins: int = 51
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=800, batch_size=512, learning_rate=2e-3))
    feature_noise: float = 0.3

    def __post_init__(self) -> None:
        check_positive(self.hidden, "hidden")
        check_at_least(self.bins, 2, "bins")
        check_at_least(self.feature_noise, 0, "feature_noise")


class RewardHead(SeesFeatures):
    """Codes' vectors float (..., n_tokens, code_dim) -> reward (...), the mean of a distribution over bins.

    Codes lose part of what a reward depends on; the state that they are a future of still tells some of it: who runs
    fast now is fast soon. So a head with ``feature_dim`` has a second network, of E[r | z, s], that reads the
    features of that state too. It knows futures at one discount, of the policy that made the data.
    """

    def __init__(self, n_tokens: int, code_dim: int, config: RewardConfig, feature_dim: int = 0) -> None:
        super().__init__()
        self.config = config
        self.body = _layers(n_tokens * code_dim, config)
        self.seen_from = _layers(n_tokens * code_dim + feature_dim, config) if feature_dim else None
        self.register_buffer("centres", torch.linspace(0.0, 1.0, config.bins))
        self.centres: Tensor
        self.hold_features(feature_dim)

    @property
    def feature_dim(self) -> int:
        """Size of the features that it can read beside the codes; 0: none."""
        return len(self.feature_mean)

    def forward(self, vectors: Tensor, features: Tensor | None = None) -> Tensor:
        """``features`` float (..., feature_dim) of the states that the codes are futures of; None, or a head that reads
        none: by the codes alone."""
        if features is None or self.seen_from is None:
            logits = self.body(vectors.flatten(-2))
        else:
            logits = self.seen_from(torch.cat([vectors.flatten(-2), self.standard(features)], -1))
        return logits.float().softmax(-1) @ self.centres

    def two_hot(self, reward: Tensor) -> Tensor:
        """(B,) -> (B, bins): the two neighbouring bins, weighted so that their mean is the reward."""
        step = self.centres[1] - self.centres[0]
        place = ((reward - self.centres[0]) / step).clamp(0, len(self.centres) - 1)
        low = place.floor().long().clamp(max=len(self.centres) - 2)
        share = (place - low)[:, None]
        return F.one_hot(low, len(self.centres)) * (1 - share) + F.one_hot(low + 1, len(self.centres)) * share


def _layers(inputs: int, config: RewardConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, config.hidden), nn.GELU(),
        nn.Linear(config.hidden, config.hidden), nn.GELU(),
        nn.Linear(config.hidden, config.bins),
    )  # fmt: skip


# step and generator -> what a network of the head reads (B, inputs), and the rewards (B,)
_Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


class _RewardTrainee(Trainee):
    """One network of a head, on the batches of ``draw``."""

    def __init__(self, head: RewardHead, network: nn.Module, draw: _Draw) -> None:
        self.head, self.network, self.draw = head, network, draw

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            inputs, rewards = self.draw(step, generator)
        with autocast(self.network):
            logits = self.network(inputs).float()
        return F.cross_entropy(logits, self.head.two_hot(rewards)), {}


def check_rewards(rewards: np.ndarray, rows: int, used: np.ndarray | None = None) -> np.ndarray:
    """Rewards as float32 (rows,), one per row and finite; 0 in rows that are not among those int64 (M,) that are
    ``used`` (None: all are).

    Raises:
        VOCError: they are not, or are too large to train on.
    """
    try:
        rewards = np.asarray(rewards, np.float64)
    except (TypeError, ValueError) as error:
        raise VOCError(f"Rewards are not numbers; one number per row, ({rows},), is needed.") from error
    if rewards.shape != (rows,):
        raise VOCError(f"Rewards have shape {rewards.shape}; one per row, ({rows},), is needed.")
    if used is not None:
        kept = np.zeros_like(rewards)
        kept[used] = rewards[used]
        rewards = kept
    if not np.isfinite(rewards).all():
        raise VOCError("Rewards hold NaN or infinity; finite rewards are needed.")
    check_reward_sizes(rewards)
    return rewards.astype(np.float32)


@single_precision()
def fit_reward_head(
    quantizer: Quantizer,
    codes: Tensor,
    dataset: Episodes,
    reward: np.ndarray,
    config: RewardConfig,
    seed: int = 0,
    *,
    features: Tensor | None = None,
    gamma: float | None = None,
    log: StepLog | None = None,
    progress: bool = False,
) -> RewardHead:
    """Fit rewards float (N,) on arrival at the rows of ``dataset``, logged or others, to their codes (N, n_tokens).

    Where the quantizer is. The codes' vectors, a hundred times as large, are made batch by batch.

    Args:
        features: float (N, F) of the rows, for a head that also reads those of the state it is asked from; it learns
            from logged pairs of a state and one of its futures. gamma: their discount.

    Raises:
        VOCError: NaN rewards, another shape than one per row, codes or features of other rows, NaN features, features
            without a discount, or episodes of one row alone.
    """
    check_token_rows(codes, features, len(dataset))
    arrived = arrived_rows(dataset)  # row 0 of an episode has no reward
    reward = check_rewards(reward, len(dataset), arrived)
    if (features is None) != (gamma is None):
        raise VOCError("Features and the discount of futures belong together; give both, or neither.")
    if features is not None and (features.ndim != 2 or not features.isfinite().all()):
        raise VOCError(
            f"Features have shape {tuple(features.shape)}; finite ones of each of the {len(dataset)} rows are needed."
        )
    if len(arrived) == 0:
        raise VOCError("There are no rewards to fit; at least one row that a step arrived at is needed.")
    device, feature_dim = device_of(quantizer), 0 if features is None else features.shape[1]
    own = codes[torch.from_numpy(arrived).to(codes.device)].to(device)
    goals = torch.from_numpy(reward[arrived]).to(device)
    with seeded(torch.device("cpu"), seed):
        head = RewardHead(quantizer.n_tokens, quantizer.code_dim, config, feature_dim)
    head.centres.copy_(_bins(goals, config.bins))

    def draw_arrived(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(goals), (config.loop.batch_size,), generator=generator, device=generator.device)
        return quantizer.embed(own[rows].long()).flatten(1), goals[rows]

    trainee = _RewardTrainee(head.to(device), head.body, draw_arrived)
    optimise(trainee, config.loop, seed, "reward", log=log, progress=progress)
    if head.seen_from is not None and features is not None and gamma is not None:  # a quantizer may have 0 features
        head.fit_features(features)
        draw_futures = _futures_seen(quantizer, codes, features, dataset, reward, head, gamma, seed)
        trainee = _RewardTrainee(head, head.seen_from, draw_futures)
        optimise(trainee, config.loop, seed, "reward_in_context", log=log, progress=progress)
    return head.eval()


def _bins(rewards: Tensor, count: int) -> Tensor:
    """Centres float32 (count,) from the smallest to the largest of the rewards (N,); around it where all are one."""
    low, high = float(rewards.min()), float(rewards.max())
    if high <= low + 1e-6 * abs(low):
        high = low + 1e-3 * max(1.0, abs(low))
    return torch.linspace(low, high, count)


def _futures_seen(
    quantizer: Quantizer, codes: Tensor, features: Tensor, dataset: Episodes, reward: np.ndarray, head: RewardHead,
    gamma: float, seed: int,
) -> _Draw:  # fmt: skip
    """Draws batches of logged futures, by their codes' vectors and the features of the state they are futures of, and
    their rewards.

    A pair (row t, row t + k) is as likely as k is at the discount, as long as t + k is in the episode. So terminations
    leave out what is END, but time limits leave out far futures: of 250 rows, at gamma .99, the mean k is 55, not 100.
    """
    device, config = device_of(quantizer), head.config
    going, goals = going_rows(dataset), torch.from_numpy(reward)
    left = dataset.steps_left[going]
    inside = np.cumsum(-np.expm1(left * _log(gamma)))  # P(k <= left), summed over the rows

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, step, PAIRS])
        place = np.searchsorted(inside, inside[-1] * rng.random(config.loop.batch_size), side="right")
        place = place.clip(max=len(going) - 1)
        seen = torch.from_numpy(going[place])
        later = seen + torch.from_numpy(times_inside(gamma, left[place], rng))
        vectors = quantizer.embed(codes[later].to(device).long()).flatten(1)
        shown = head.standard(features[seen].to(device))
        noise = torch.randn(shown.shape, generator=generator, device=generator.device).to(device)
        return torch.cat([vectors, shown + config.feature_noise * noise], 1), goals[later].to(device)

    return draw


def times_inside(gamma: float, left: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Times int64 (B,) with P(k) in proportion to gamma^(k-1), k from 1 to ``left`` (B,)."""
    times = np.ceil(np.log1p(rng.random(len(left)) * np.expm1(left * _log(gamma))) / _log(gamma))
    return np.clip(times, 1, left).astype(np.int64)


def _log(gamma: float) -> float:
    return math.log(max(gamma, 1e-300))  # discount 0: all at the first step

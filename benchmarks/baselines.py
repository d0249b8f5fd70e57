"""What a value model has to beat: critics from the same pixels, in the same CPU seconds.

``mc`` regresses on the logged returns, ``td`` on n-step returns that bootstrap from its own slow copy where that weighs
more than .1, else from the mean of the data. Both are convolutional networks with random shifts (Yarats et al.
2021), start at that mean, and stop early: the slow copy that is best on episodes held out of the training data is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig, StepLog, make_optimizer, schedule, step_seed
from voc_rl.occupancy.targets import n_step_returns
from voc_rl.precision import autocast, device_of, on_device
from voc_rl.progress import progress_bar
from voc_rl.runs import cpu_seconds
from voc_rl.values import discounted_returns

Kind = Literal["mc", "td"]
BATCH = 64
LEARNING_RATE = 1e-3
PERIODS = 10  # how often the critic is validated, and how often td looks again where its returns continue
SHIFT = 4  # pixels


@dataclass(frozen=True)
class Budget:
    """How long a critic may train: as many steps as fit into CPU seconds, or an exact number (repeatable)."""

    cpu_seconds: float
    steps: int | None = None


@dataclass(frozen=True)
class Critic:
    """A trained baseline, and what it took. ``values(dataset, rows)`` gives V, float64 (B,)."""

    values: Callable[[Episodes, np.ndarray], np.ndarray]
    steps: int
    cpu_seconds: float


class ConvolutionalCritic(nn.Module):
    """uint8 (B, 3K, 84, 84) -> (1 - gamma) V, (B,), in units of ``spread`` around ``bias``."""

    def __init__(self, channels: int, bias: float, spread: float) -> None:
        super().__init__()
        self.bias, self.spread = bias, spread
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(256), nn.LayerNorm(256), nn.GELU(),
            nn.Linear(256, 1),
        )  # fmt: skip
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.body[-1].bias)  # type: ignore[arg-type]

    def forward(self, obs: Tensor) -> Tensor:
        with autocast(self):
            out = self.body(obs.float().mul_(1 / 255).sub_(0.4))[:, 0]
        return out.float() * self.spread + self.bias


def train_critic(
    kind: Kind,
    dataset: Episodes,
    gamma: float,
    n: int,
    budget: Budget,
    seed: int = 0,
    *,
    device: torch.device | None = None,
    log: StepLog | None = None,
    progress: bool = False,
) -> Critic:
    """Train the baseline ``mc`` or ``td`` (with ``n`` real steps per target) on the episodes of ``dataset``.

    ``device``: where; None is the CPU.

    Raises:
        VOCError: no training or validation state has a known return.
    """
    started = cpu_seconds()
    training, validation = dataset.split(0.15, np.random.default_rng([seed, 11]))
    goals = _Goals(kind, training, gamma, n)
    truth, known = discounted_returns(validation, gamma)
    checked = np.flatnonzero(known)[::4]
    if not len(checked) or not len(goals.rows):
        raise VOCError(f"No state has a known return at gamma {gamma}; longer or more episodes are needed for {kind}.")
    network = _fresh(dataset, goals, seed).to(device or torch.device("cpu"))
    slow = copy.deepcopy(network).requires_grad_(False)
    best, best_error = slow, np.inf
    for step in _steps(kind, budget, network, slow, training, goals, seed, log, progress):
        if kind == "td":
            goals.look_ahead(slow, training)
        error = float(np.mean((_predict(slow, validation, checked) / (1 - gamma) - truth[checked]) ** 2))
        if log is not None:
            log(kind, step, {"val_error": error / max(float(truth[checked].var()), 1e-12)})
        if error < best_error:
            best, best_error = copy.deepcopy(slow), error
    return Critic(lambda data, rows: _predict(best, data, rows) / (1 - gamma), step, cpu_seconds() - started)


class _Goals:
    """Regression targets (1 - gamma) V of the rows that have one."""

    def __init__(self, kind: Kind, dataset: Episodes, gamma: float, n: int) -> None:
        returns, known = discounted_returns(dataset, gamma)
        # a truncated return is no target for mc: it would learn a truncated geometric
        self.rows = np.flatnonzero(known) if kind == "mc" else np.flatnonzero(dataset.steps_left >= 1)
        self.ahead = n_step_returns(dataset, gamma, n)
        self.kind, self.gamma = kind, gamma
        self.mean = float(dataset.reward[dataset.step_type > 0].mean())
        self.spread = float((returns[known] if known.any() else returns).std()) * (1 - gamma) + 1e-6
        self.returns = returns * (1 - gamma)
        self.later = np.full(len(dataset), self.mean, np.float32)

    def __call__(self, rows: np.ndarray) -> Tensor:
        if self.kind == "mc":
            return torch.from_numpy(self.returns[rows]).float()
        later = self.ahead.weight[rows] * self.later[self.ahead.bootstrap[rows]]
        return torch.from_numpy(self.ahead.partial[rows] * (1 - self.gamma) + later).float()

    def look_ahead(self, slow: ConvolutionalCritic, dataset: Episodes) -> None:
        """Value under the slow copy wherever an n-step return continues with a weight above .1; it stays the mean of
        the data elsewhere."""
        needed = np.unique(self.ahead.bootstrap[self.ahead.weight > 0.1])
        if len(needed):
            self.later[needed] = _predict(slow, dataset, needed)


def _steps(
    kind: Kind,
    budget: Budget,
    network: ConvolutionalCritic,
    slow: ConvolutionalCritic,
    dataset: Episodes,
    goals: _Goals,
    seed: int,
    log: StepLog | None,
    progress: bool,
) -> Iterator[int]:
    """Optimise; yields the step at the end of every period."""
    config = LoopConfig(steps=1000, batch_size=BATCH, learning_rate=LEARNING_RATE)
    optimizer, device = make_optimizer(list(network.parameters()), config), device_of(network)
    started, step, share, reported = cpu_seconds(), 0, 0.0, 0
    with progress_bar(desc=kind, unit="%", total=100, show=progress) as bar:
        while share < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule(int(share * config.steps), config)
            rng = np.random.default_rng([seed, step, 13])
            rows = goals.rows[rng.integers(len(goals.rows), size=BATCH)]
            obs = _shifted(on_device(dataset.observations(rows), device), rng)
            loss = F.mse_loss(network(obs), goals(rows).to(device)) / goals.spread**2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(slow.parameters()), list(network.parameters()), 0.05)
            step += 1
            if log is not None and step % 50 == 0:
                log(kind, step, {"loss": float(loss.detach())})
            spent = (cpu_seconds() - started) / budget.cpu_seconds
            share = step / budget.steps if budget.steps else spent
            bar.update(min(int(share * 100), 100) - bar.n)
            if share >= 1.0 or int(share * PERIODS) > reported:
                reported = int(share * PERIODS)
                yield step


def _fresh(dataset: Episodes, goals: _Goals, seed: int) -> ConvolutionalCritic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 1 << 45))
        network = ConvolutionalCritic(dataset.observation_shape[0], goals.mean, goals.spread)
        network(torch.zeros(1, *dataset.observation_shape, dtype=torch.uint8))  # sizes the lazy layer
    return network


def _shifted(obs: Tensor, rng: np.random.Generator) -> Tensor:
    """The same random shift of up to SHIFT pixels for the batch, the border repeated."""
    height, width = obs.shape[-2:]
    top, left = rng.integers(2 * SHIFT + 1, size=2)
    padded = F.pad(obs.float(), (SHIFT,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]


@torch.no_grad()
def _predict(network: ConvolutionalCritic, dataset: Episodes, rows: np.ndarray) -> np.ndarray:
    device, parts = device_of(network), [rows[i : i + 128] for i in range(0, len(rows), 128)]
    values = [network(on_device(dataset.observations(part), device)) for part in parts]
    return torch.cat(values).cpu().double().numpy()

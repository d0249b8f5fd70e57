"""Fitted Q evaluation of many policies at once: one network with outputs for each policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig, optimise, step_seed
from voc_rl.occupancy import PolicyActions, taken_actions

MEMBERS = 5  # outputs per policy, each with its own weights of the episodes


@dataclass(frozen=True)
class FQEConfig:
    """loop: of the network. width: of its two hidden layers. noise: on the inputs, in their own spread. ema: decay of
    the target network."""

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=10_000, batch_size=1024, learning_rate=1e-3, weight_decay=0.01)
    )
    width: int = 256
    noise: float = 0.1
    ema: float = 0.99


class QNetwork(nn.Module):
    """State (B, F) and action (B, A) -> (1 - gamma) Q (B, P, members)."""

    def __init__(self, inputs: int, policies: int, width: int) -> None:
        super().__init__()
        self.policies = policies
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width),
            nn.GELU(), nn.Linear(width, policies * MEMBERS),
        )  # fmt: skip

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([state, action], 1)).view(len(state), self.policies, MEMBERS)


class _Trainee:
    def __init__(
        self, network: QNetwork, state: Tensor, dataset: Episodes, actions: PolicyActions, gamma: float,
        config: FQEConfig, seed: int,
    ) -> None:  # fmt: skip
        self.network, self.target = network, copy.deepcopy(network).requires_grad_(False)
        self.inputs, self.gamma, self.config, self.seed = state, gamma, config, seed
        self.rows = np.flatnonzero(dataset.steps_left > 0)
        self.taken, self.drawn = torch.from_numpy(taken_actions(dataset)), torch.from_numpy(actions.drawn)
        self.mean = float(dataset.reward[dataset.step_type > 0].mean())
        self.reward = torch.from_numpy(dataset.reward) - self.mean  # outputs are differences from the mean reward
        self.going = torch.from_numpy(~dataset.terminal)
        rng = np.random.default_rng([seed, 61])
        weights = rng.exponential(size=(len(dataset.starts), MEMBERS)).astype(np.float32)
        self.weights = torch.from_numpy(weights[dataset.episode])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, step, 67])
        rows = torch.from_numpy(self.rows[rng.integers(len(self.rows), size=self.config.loop.batch_size)])
        policy = torch.from_numpy(rng.integers(self.network.policies, size=len(rows)))
        draw = torch.from_numpy(rng.integers(self.drawn.shape[2], size=len(rows)))
        later, at = rows + 1, torch.arange(len(rows))
        with torch.no_grad():
            q = self.target(self.inputs[later], self.drawn[policy, later, draw])[at, policy]
            # after an end nothing follows: its (1 - gamma) Q is zero, which is minus the mean in these units
            q = torch.where(self.going[later, None], q, -self.mean)
            goal = (1 - self.gamma) * self.reward[later, None] + self.gamma * q
        noise = self.config.noise * torch.randn(len(rows), self.inputs.shape[1], generator=generator)
        found = self.network(self.inputs[rows] + noise, self.taken[rows])[at, policy]
        return ((found - goal).square() * self.weights[rows]).mean(), {}

    def after_step(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.target.parameters()), list(self.network.parameters()), 1.0 - decay)

    def state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state)


@dataclass(frozen=True)
class FittedQ:
    """value float64 (P, N, members): V of every row; taken (P, N, members): Q of the action that was taken there."""

    value: np.ndarray
    taken: np.ndarray


def fitted_q(
    dataset: Episodes, state: np.ndarray, actions: PolicyActions, gamma: float, config: FQEConfig, seed: int
) -> FittedQ:
    """Fit Q of every policy on states float (N, F) of the dataset's rows (features of frames, or true states)."""
    inputs = torch.from_numpy((state - state.mean(0)) / (state.std(0) + 1e-4)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 71))
        network = QNetwork(inputs.shape[1] + dataset.action.shape[1], len(actions), config.width)
    trainee = _Trainee(network, inputs, dataset, actions, gamma, config, seed)
    optimise(trainee, config.loop, seed, "fqe", progress=True)
    with torch.no_grad():
        taken = torch.stack([_q(trainee, trainee.taken, p) for p in range(len(actions))])
        value = torch.stack([
            torch.stack([_q(trainee, drawn, p) for drawn in trainee.drawn[p].unbind(1)]).mean(0)
            for p in range(len(actions))
        ])  # fmt: skip
    return FittedQ(*((x + trainee.mean).double().numpy() / (1.0 - gamma) for x in (value, taken)))


def _q(trainee: _Trainee, action: Tensor, policy: int) -> Tensor:
    parts = [
        trainee.target(s, a)[:, policy] for s, a in zip(trainee.inputs.split(8192), action.split(8192), strict=True)
    ]
    return torch.cat(parts)

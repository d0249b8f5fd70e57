"""Fitted Q evaluation of many policies at once: one network with outputs for each policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes, going_rows, taken_actions
from voc_rl.errors import check_at_least, check_count, check_decay
from voc_rl.loop import Checkpoints, LoopConfig, Trainee, optimise, step_seed
from voc_rl.occupancy.reward_units import reward_units
from voc_rl.precision import seeded, single_precision

COMPONENTS = 96  # of the frames' features: what is left is mostly noise once every input has the same spread
FLAT = 1e-4  # of the largest spread of an input: a smaller one is hardly any
MEMBERS = 5  # outputs per policy of one reward, each with its own weights of the episodes


@dataclass(frozen=True)
class FQEConfig:
    """loop: of the network; every row of a batch is a target for every policy. width: of its two hidden layers. noise:
    on the inputs, in their own spread. ema: decay of the target network."""

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=10_000, batch_size=256, learning_rate=2e-3, weight_decay=0.01)
    )
    width: int = 256
    noise: float = 0.1
    ema: float = 0.95

    def __post_init__(self) -> None:
        check_count(self.width, "width")
        check_at_least(self.noise, 0, "noise")
        check_decay(self.ema, "ema")


class QNetwork(nn.Module):
    """State (B, F) and action (B, A) -> (1 - gamma) Q (B, P, K) of P policies and K outputs."""

    def __init__(self, state: int, action: int, policies: int, outputs: int, width: int) -> None:
        super().__init__()
        self.policies, self.outputs, self.split = policies, outputs, (state, action)
        self.first, self.second = nn.Linear(state + action, width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.last = nn.Linear(width, policies * outputs)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        hidden = self._hidden(self.first(torch.cat([state, action], 1)))
        return self.last(hidden).view(len(state), self.policies, self.outputs)

    def of_policies(self, state: Tensor, actions: Tensor) -> Tensor:
        """(1 - gamma) Q (B, P, K), each policy's of its own action (P, B, A); the state is looked at once."""
        of_state, of_action = self.first.weight.split(self.split, 1)
        seen = F.linear(state, of_state, self.first.bias)
        weight = self.last.weight.view(self.policies, self.outputs, -1)
        bias = self.last.bias.view(self.policies, self.outputs)
        hidden = [self._hidden(seen + F.linear(action, of_action)) for action in actions]
        return torch.stack([F.linear(h, weight[p], bias[p]) for p, h in enumerate(hidden)], 1)

    def _hidden(self, first: Tensor) -> Tensor:
        return F.relu(self.norms[1](self.second(F.relu(self.norms[0](first)))))


class _Trainee(Trainee):
    def __init__(
        self, network: QNetwork, state: Tensor, dataset: Episodes, actions: np.ndarray, reward: np.ndarray,
        weights: np.ndarray, gamma: float, config: FQEConfig, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.network, self.target = network, copy.deepcopy(network).requires_grad_(False)
        self.inputs, self.gamma, self.config, self.seed = state, gamma, config, seed
        self.rows = going_rows(dataset)

        def there(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.taken, self.drawn = there(taken_actions(dataset)), there(actions)
        # outputs are differences from the mean reward, in units of their size: no reward is easier to learn
        mean, spread = reward_units(dataset, reward, gamma)
        self.mean, self.spread = there(mean), there(spread)
        self.reward = (there(reward) - self.mean) / self.spread
        self.going, self.weights = there(~dataset.terminal), there(weights)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, step, 67])
        rows = torch.from_numpy(self.rows[rng.integers(len(self.rows), size=self.config.loop.batch_size)])
        rows = rows.to(self.inputs.device)
        draw = int(rng.integers(self.drawn.shape[2]))
        later = rows + 1
        with torch.no_grad():
            q = self.target.of_policies(self.inputs[later], self.drawn[:, later, draw])
            # after an end nothing follows: its (1 - gamma) Q is zero, which is minus the mean here
            q = torch.where(self.going[later, None, None], q, -self.mean / self.spread)
            goal = (1 - self.gamma) * self.reward[later, None] + self.gamma * q
        noise = self.config.noise * torch.randn(
            len(rows), self.inputs.shape[1], generator=generator, device=generator.device
        )
        found = self.network(self.inputs[rows] + noise, self.taken[rows])
        return ((found - goal).square() * self.weights[rows, None]).mean(), {}

    def after_step(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.target.parameters()), list(self.network.parameters()), 1.0 - decay)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "target": self.target.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])


@dataclass(frozen=True, eq=False)
class FittedQ:
    """value float64 (P, N, K): V of every row, policy and output, 0 at terminations; taken (P, N, K): Q of the action
    taken there."""

    value: np.ndarray
    taken: np.ndarray


def members_of(dataset: Episodes, seed: int, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A reward float32 (N,) for each of several outputs, and weights that differ by episode, float32 (N, MEMBERS) both.

    The spread of these outputs tells what the choice of episodes does (Bayesian bootstrap).
    """
    weights = np.random.default_rng([seed, 61]).exponential(size=(len(dataset.starts), MEMBERS)).astype(np.float32)
    return np.repeat(reward[:, None], MEMBERS, 1), weights[dataset.episode]


@single_precision()
def fitted_q(
    dataset: Episodes, state: np.ndarray, actions: np.ndarray, gamma: float, config: FQEConfig, seed: int,
    reward: np.ndarray, weights: np.ndarray | None = None, *, device: torch.device | None = None,
    checkpoints: Checkpoints | None = None, progress: bool = False,
) -> FittedQ:  # fmt: skip
    """Fit Q of every policy on states float (N, F) of the dataset's rows (features of frames, or true states).

    ``actions`` float32 (P, N, M, A): M draws of each policy at every row (``policy_actions``).
    ``reward`` float32 (N, K): on arrival at the rows, one for each output; ``weights`` (N, K): of the rows in their
    losses, None: alike. ``device``: where the network is trained; None: the CPU.
    ``checkpoints``: where the state of its training is kept; the same call goes on from there.
    """
    device = device or torch.device("cpu")
    spread = state.std(0)
    least = FLAT * spread.max() or 1.0  # what hardly varies stays small, whatever the unit
    inputs = torch.from_numpy((state - state.mean(0)) / (spread + least)).float().to(device)
    weights = np.ones_like(reward) if weights is None else weights
    with seeded(torch.device("cpu"), step_seed(seed, 71)):
        network = QNetwork(inputs.shape[1], dataset.action.shape[1], len(actions), reward.shape[1], config.width)
    network = network.to(device)
    trainee = _Trainee(network, inputs, dataset, actions, reward, weights, gamma, config, seed, device)
    optimise(trainee, config.loop, seed, "fqe", checkpoints=checkpoints, progress=progress)
    with torch.no_grad():
        network = trainee.target
        taken = torch.cat([
            network(s, a).transpose(0, 1) for s, a in zip(inputs.split(8192), trainee.taken.split(8192), strict=True)
        ], 1)  # fmt: skip
        drawn = [
            torch.cat([network.of_policies(s, a) for s, a in zip(inputs.split(8192), one.split(8192, 1), strict=True)])
            for one in trainee.drawn.unbind(2)
        ]
        value = torch.stack(drawn).mean(0).transpose(0, 1)
    found = (x * trainee.spread + trainee.mean for x in (value, taken))
    fitted = FittedQ(*(x.double().cpu().numpy() / (1.0 - gamma) for x in found))
    fitted.value[:, dataset.terminal] = 0.0
    return fitted

"""What offline agents minimise: cloning (all, the best, or weighted rows) and TD3+BC.

Each is a trainee of ``voc_rl.loop.optimise``; a partial of its class is what ``OfflineAgent.learn`` takes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.agents.networks import Critic
from voc_rl.agents.views import View
from voc_rl.data import Episodes, going_rows
from voc_rl.errors import VOCError, check_at_least, check_gamma, check_positive, check_share
from voc_rl.loop import Trainee, step_seed
from voc_rl.occupancy import n_step_returns
from voc_rl.precision import device_of, seeded

LARGEST_WEIGHT = 20.0
RIDGE = 1e-4  # on the weights of standardised features, per row


def top_episodes(dataset: Episodes, share: float = 0.1) -> np.ndarray:
    """Weights float32 (N,): 1 for rows of the ``share`` of episodes with the largest returns, at least one; else 0."""
    returns = dataset.returns
    best = np.argsort(-returns, kind="stable")[: max(round(share * len(returns)), 1)]
    return np.isin(dataset.episode, best).astype(np.float32)


def advantage_weights(advantages: np.ndarray, rows: np.ndarray, temperature: float) -> np.ndarray:
    """Weights float32 (N,) of advantage-weighted regression (Peng et al. 2019): exp(A / temperature), at most 20.

    Advantages (N,) are first put into standard deviations of ``rows``, and their mean there taken off.
    """
    standard = (advantages - advantages[rows].mean()) / max(float(advantages[rows].std()), 1e-6)
    return np.minimum(np.exp(np.clip(standard / temperature, -50, 50)), LARGEST_WEIGHT).astype(np.float32)


def trace_advantages(dataset: Episodes, values: np.ndarray, gamma: float, trace: float) -> np.ndarray:
    """Generalised advantages (Schulman et al. 2016, eq. 16) of the logged actions, float64 (N,); 0 at last rows.

    TD errors r + gamma V' - V of a row and of those after it in its episode, the later ones by (gamma trace)^k less.
    So ``trace`` 1 is the logged return less V, going on with V where a time limit cuts the episode; 0 is one TD error.

    Args:
        values: V float (N,) of the rows, in reward units. trace: lambda, in [0, 1].

    Raises:
        VOCError: values of another shape, gamma outside [0, 1), or trace outside [0, 1].
    """
    check_gamma(gamma)
    check_share(trace, "trace")
    if values.shape != (len(dataset),):
        raise VOCError(f"Values of shape {values.shape} have to be one for each of the {len(dataset)} rows.")
    going, value = dataset.steps_left > 0, values.astype(np.float64)
    later = np.where(dataset.terminal, 0.0, value)
    found = np.zeros(len(dataset))
    rows = np.flatnonzero(going)
    found[rows] = dataset.reward[rows + 1] + gamma * later[rows + 1] - value[rows]
    for left in range(2, int(dataset.steps_left.max(initial=0)) + 1):  # from the ends of all episodes backwards
        rows = np.flatnonzero(dataset.steps_left == left)
        found[rows] += gamma * trace * found[rows + 1]
    return found


def return_advantages(dataset: Episodes, features: Tensor, gamma: float) -> np.ndarray:
    """Discounted returns to go less a linear value of the features (N, F), float64 (N,): advantages without a model.

    Where a time limit cut an episode, its returns go on with the linear value of its last row. So the value is fitted
    to returns that contain it: one linear system (LSTD(1), Bradtke and Barto 1996), and no row is left out.

    Raises:
        VOCError: no row has a step left, or gamma outside [0, 1).
    """
    check_gamma(gamma)
    rows = going_rows(dataset)
    returns = n_step_returns(dataset, gamma, int(dataset.steps_left.max()))
    seen = _standardised(features)
    later = returns.weight[:, None] * seen[returns.bootstrap]
    own = seen[rows]
    weights = np.linalg.solve(
        own.T @ (own - later[rows]) / len(rows) + _penalty(seen), own.T @ returns.partial[rows] / len(rows)
    )
    return returns.partial + (later - seen) @ weights


def linear_residual(returns: np.ndarray, features: Tensor, rows: np.ndarray) -> np.ndarray:
    """Returns (N,) less their least-squares fit on standardised features (N, F) at ``rows``, float64 (N,)."""
    seen = _standardised(features)
    own = seen[rows]
    weights = np.linalg.solve(own.T @ own / len(rows) + _penalty(seen), own.T @ returns[rows] / len(rows))
    return returns - seen @ weights


def _standardised(features: Tensor) -> np.ndarray:
    """Features (N, F) in standard deviations and a column of ones, float64 (N, F + 1)."""
    found = features.double().cpu()
    standard = (found - found.mean(0)) / found.std(0).clamp(min=1e-6)
    return np.column_stack([standard.numpy(), np.ones(len(standard))])


def _penalty(seen: np.ndarray) -> np.ndarray:
    return np.diag(np.append(np.full(seen.shape[1] - 1, RIDGE), 0.0))


class _Trainee(Trainee):
    def __init__(self, agent: Any, view: View) -> None:
        self.agent, self.view, self.seed = agent, view, agent.seed

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.agent.networks.parameters() if p.requires_grad]

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, step, 79])


class Cloning(_Trainee):
    """Maximum likelihood of the logged actions, of rows drawn in proportion to ``weights`` (N,); None: all alike.

    Raises:
        VOCError: weights that do not fit the rows, are below zero, or are all zero.
    """

    def __init__(self, agent: Any, view: View, weights: np.ndarray | None = None) -> None:
        super().__init__(agent, view)
        weights = np.ones(len(view.dataset)) if weights is None else np.asarray(weights, float)
        fit = weights.shape == (len(view.dataset),) and np.isfinite(weights).all() and (weights >= 0).all()
        if not fit or weights[view.going].sum() <= 0:
            raise VOCError(
                f"Weights of shape {weights.shape} have to be {len(view.dataset)} finite ones from 0 on, not all zero."
            )
        self.cumulative = np.cumsum(weights[view.going] / weights[view.going].sum())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        uniform = self._rng(step).random(self.agent.config.loop.batch_size)
        place = np.searchsorted(self.cumulative, uniform, side="right").clip(max=len(self.cumulative) - 1)
        rows = self.view.going[place]
        inputs = self.view.encoded(rows, generator)
        actions = self.view.taken[torch.from_numpy(rows).to(inputs.device)]
        return -self.agent.actor.log_prob(inputs, actions).mean(), {}


class TD3BC(_Trainee):
    """TD3+BC (Fujimoto and Gu 2021), from frames DrQ-v2+BC (Lu et al. 2023): n-step twin critics; the actor follows
    their smaller Q, in units of its mean size, and stays near the logged actions. Only the actor's mean learns: its
    spread, from which ``predict`` draws unless ``deterministic``, is made the least there is.

    alpha: weight of Q. n: steps of the returns. tau: of the slow critic. policy_noise, noise_clip: of target actions.

    Raises:
        VOCError: n below 1, or a negative weight.
    """

    def __init__(
        self, agent: Any, view: View, alpha: float = 2.5, n: int = 3, tau: float = 0.01,
        policy_noise: float = 0.2, noise_clip: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__(agent, view)
        check_positive(n, "n")
        check_at_least(alpha, 0, "alpha")
        agent.actor.least_spread()
        self.alpha, self.n, self.tau, self.noise = alpha, n, tau, (policy_noise, noise_clip)
        device = device_of(agent.actor)
        with seeded(torch.device("cpu"), step_seed(self.seed, 83)):
            self.critic = Critic(agent.encoder.width, agent.action_size, agent.config.width).to(device)
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        returns = n_step_returns(view.dataset, agent.config.gamma, n)
        self.later = returns.bootstrap
        self.reward = torch.from_numpy(returns.partial).to(device)
        self.discount = torch.from_numpy(returns.weight).to(device)

    def parameters(self) -> list[nn.Parameter]:
        return [*super().parameters(), *self.critic.parameters()]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        view, actor = self.view, self.agent.actor
        rows = view.going[self._rng(step).integers(len(view.going), size=self.agent.config.loop.batch_size)]
        inputs = view.encoded(rows, generator)
        at = torch.from_numpy(rows).to(inputs.device)
        taken = view.taken[at]
        with torch.no_grad():
            later = view.encoded(self.later[rows], generator)
            noise = torch.randn(taken.shape, generator=generator, device=generator.device).to(inputs.device)
            action = actor(later)[0] + (self.noise[0] * noise).clamp(-self.noise[1], self.noise[1])
            goal = self.reward[at] + self.discount[at] * self.slow(later, action.clamp(-1, 1)).amin(1)
        q = self.critic(inputs, taken)
        critic_loss = F.mse_loss(q, goal[:, None].expand_as(q))
        seen = inputs.detach()  # convolutions learn from the critic alone
        mean = actor(seen)[0]
        self.critic.requires_grad_(False)
        own = self.critic(seen, mean).amin(1)
        self.critic.requires_grad_(True)
        actor_loss = -self.alpha * (own / own.detach().abs().mean().clamp(min=1e-6)).mean() + F.mse_loss(mean, taken)
        return critic_loss + actor_loss, {"critic": critic_loss.detach(), "q": own.detach().mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        torch._foreach_lerp_(list(self.slow.parameters()), list(self.critic.parameters()), self.tau)

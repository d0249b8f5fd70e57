"""Policies for collecting data, which say how likely each of their actions was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from voc_rl.agents.stochastic import StochasticPolicy
from voc_rl.errors import VOCError, check_positive, check_share
from voc_rl.policy import BehaviourPolicy, choices_of, epsilon_greedy, memoryless, named, numbers, observation_of


class NoisyPolicy(StochasticPolicy):
    """A policy with noise: (1 - epsilon) N(a*(s), sigma^2 I) + epsilon Uniform[-1, 1]^A, before clipping.

    a*(s) is the wrapped policy's deterministic action. The choice between the two parts falls once per step,
    for all entries of the action together.

    Args:
        policy: anything with ``predict`` and ``observation``, without a recurrent state.
        sigma: standard deviation of the Gaussian part, in units of the action range [-1, 1].
        epsilon: share of uniformly random actions.
        seed: of the generator behind ``predict(..., deterministic=False)``; ``sample`` is given its own.

    Raises:
        VOCError: no policy, one of discrete actions, sigma not above zero, or epsilon outside [0, 1].
    """

    def __init__(self, policy: Any, sigma: float, epsilon: float = 0.0, seed: int = 0) -> None:
        check_positive(sigma, "sigma")
        check_share(epsilon, "epsilon")
        self.policy, self.sigma, self.epsilon = policy, float(sigma), float(epsilon)
        self.observation = observation_of(policy)
        if choices_of(getattr(policy, "action_space", None)) is not None:
            raise VOCError(f"{named(policy)} chooses between discrete actions; EpsilonGreedy is the noise for those.")
        self.observation_space = getattr(policy, "observation_space", None)
        self._rng = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"NoisyPolicy({self.policy!r}, sigma={self.sigma:g}, epsilon={self.epsilon:g})"

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The wrapped policy's deterministic actions."""
        return memoryless(self.policy, observation, deterministic=True)

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws, float32 (count, A) or (count, B, A), of one pass."""
        mean = self.mode(observation)
        return self._draw(np.broadcast_to(mean, (count, *mean.shape)), rng)

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """The unclipped action float32 (A,) at one observation, its log-density, and the policy id 0."""
        mean = self.mode(observation)
        action = self._draw(mean, rng)
        return action, float(self._log_density(action, mean)), 0

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-density, float64 () or (B,), of *unclipped* actions of shape (A,) or (B, A)."""
        mean = self.mode(observation)
        return self._log_density(np.asarray(action), mean)

    def _draw(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        uniform = rng.random((*mean.shape[:-1], 1)) < self.epsilon
        gaussian = mean + self.sigma * rng.standard_normal(mean.shape)
        return np.where(uniform, rng.uniform(-1, 1, mean.shape), gaussian).astype(np.float32)

    def _log_density(self, action: np.ndarray, mean: np.ndarray) -> np.ndarray:
        size = mean.shape[-1]
        z = (action.astype(np.float64) - mean) / self.sigma
        gaussian = -0.5 * (z**2).sum(-1) - size * np.log(self.sigma * np.sqrt(2 * np.pi))
        uniform = np.where((np.abs(action) <= 1).all(-1), -size * np.log(2), -np.inf)
        with np.errstate(divide="ignore"):  # a share of zero is a log of minus infinity
            return np.logaddexp(np.log1p(-self.epsilon) + gaussian, np.log(self.epsilon) + uniform)


class Deterministic:
    """A policy without its noise."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.observation = policy, observation_of(policy)
        self.observation_space = getattr(policy, "observation_space", None)
        self.action_space = getattr(policy, "action_space", None)

    def __repr__(self) -> str:
        return f"Deterministic({self.policy!r})"

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """The wrapped policy's deterministic actions."""
        return self.policy.predict(observation, state, episode_start, deterministic=True)

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """The same actions ``count`` times, (count, A) or (count, B, A)."""
        actions = np.asarray(memoryless(self.policy, observation, deterministic=True))
        return np.broadcast_to(actions, (count, *actions.shape))


class EpsilonGreedy(StochasticPolicy):
    """A policy of discrete actions with noise: its deterministic action, or with chance ``epsilon`` any, all alike.

    ``predict`` gives numbers, as the wrapped policy's does; ``draws`` and ``sample`` give one-hot rows, as in data.

    Args:
        policy: anything with ``predict`` and ``observation`` whose ``action_space`` is ``gymnasium.spaces.Discrete``,
            as that of Stable-Baselines3's agents, without a recurrent state.
        epsilon: chance of an action drawn from all.
        seed: of the generator behind ``predict(..., deterministic=False)``; ``sample`` is given its own.

    Raises:
        VOCError: no policy, one of other actions, or epsilon outside [0, 1].
    """

    def __init__(self, policy: Any, epsilon: float, seed: int = 0) -> None:
        check_share(epsilon, "epsilon")
        self.policy, self.epsilon, self.observation = policy, float(epsilon), observation_of(policy)
        self.observation_space = getattr(policy, "observation_space", None)
        self.action_space = getattr(policy, "action_space", None)
        choices = choices_of(self.action_space)
        if choices is None:
            raise VOCError(
                f"{named(policy)} has the actions {self.action_space}; a Discrete `action_space` is needed "
                "(NoisyPolicy is the noise for continuous ones)."
            )
        self._choices, self._rng = choices, np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"EpsilonGreedy({self.policy!r}, epsilon={self.epsilon:g})"

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Numbers of actions, int64 () or (B,), and ``state`` as it was given."""
        chosen, state = super().predict(observation, state, episode_start, deterministic)
        return numbers(chosen, self.action_space), state

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The wrapped policy's deterministic actions, one-hot float32 (n,) or (B, n)."""
        return memoryless(self.policy, observation, deterministic=True)

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws, one-hot float32 (count, n) or (count, B, n), of one pass."""
        return epsilon_greedy(self.mode(observation), self.epsilon, count, rng)

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """The one-hot action float32 (n,) at one observation, its log-probability, and the policy id 0."""
        action = self.draw(observation, rng)
        return action, float(self.log_prob(observation, action)), 0

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-probability, float64 () or (B,), of one-hot actions (n,) or (B, n)."""
        chosen = (np.asarray(action, np.float64) * self.mode(observation)).sum(-1)
        with np.errstate(divide="ignore"):  # what is never chosen has a log of minus infinity
            return np.log((1.0 - self.epsilon) * chosen + self.epsilon / self._choices)


class StepMixture(StochasticPolicy):
    """A Markov mixture: at every step one of several policies, drawn anew, acts.

    Its density is the mean of the members' densities, unlike that of ``StickyMixture``, whose member stays.

    Raises:
        VOCError: no members, or members of different observations.
    """

    def __init__(self, policies: Sequence[NoisyPolicy], seed: int = 0) -> None:
        self.observation: Literal["state", "pixels"] = _common_observation(policies)
        self.policies = list(policies)
        self._rng = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"StepMixture({self.policies!r})"

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The mean of the members' deterministic actions."""
        return np.stack([policy.mode(observation) for policy in self.policies]).mean(0).astype(np.float32)

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws, float32 (count, A) or (count, B, A), of one pass of each member."""
        actions = np.stack([policy.draws(observation, count, rng) for policy in self.policies])
        acting = rng.integers(len(self.policies), size=(1, *actions.shape[1:-1], 1))
        return np.take_along_axis(actions, acting, 0)[0]

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-density, float64 () or (B,), of *unclipped* actions of shape (A,) or (B, A)."""
        densities = [policy.log_prob(observation, action) for policy in self.policies]
        return np.asarray(np.logaddexp.reduce(densities) - np.log(len(self.policies)))


class StickyMixture:
    """One of several policies acts for a while, then another: data of mixed skill with exact densities.

    At the start of an episode a member is drawn uniformly; before each later step another member takes over
    with probability ``switch``. An action's log-probability is its log-density under the acting member, whose
    index is the policy id.

    Args:
        policies: members that look at the same observation.
        switch: probability of a switch per agent step.

    Raises:
        VOCError: no members, members without ``sample``, of different observations, or switch outside [0, 1].
    """

    def __init__(self, policies: Sequence[BehaviourPolicy], switch: float = 0.02) -> None:
        for policy in policies:
            if not isinstance(policy, BehaviourPolicy):
                raise VOCError(f"{named(policy)} cannot be a member; `sample` and `start_episode` are needed.")
        self.observation: Literal["state", "pixels"] = _common_observation(policies)
        check_share(switch, "switch")
        self.policies, self.switch = list(policies), float(switch)
        self._acting = 0
        self._first = True

    def __repr__(self) -> str:
        return f"StickyMixture({self.policies!r}, switch={self.switch:g})"

    def start_episode(self, rng: np.random.Generator) -> None:
        """Draw the first acting member."""
        for policy in self.policies:
            policy.start_episode(rng)
        self._acting, self._first = int(rng.integers(len(self.policies))), True

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """The acting member's unclipped action, its log-density under that member, and the member's index."""
        if not self._first and len(self.policies) > 1 and rng.random() < self.switch:
            self._acting = (self._acting + int(rng.integers(1, len(self.policies)))) % len(self.policies)
        self._first = False
        action, log_prob, _ = self.policies[self._acting].sample(observation, rng)
        return action, log_prob, self._acting


def _common_observation(policies: Sequence[Any]) -> Literal["state", "pixels"]:
    observations = sorted({policy.observation for policy in policies})
    if len(observations) != 1:
        raise VOCError(f"The members observe {observations or 'nothing'}; exactly one kind is needed.")
    return policies[0].observation

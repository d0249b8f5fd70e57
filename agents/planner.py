"""Planning with a VOC: actions proposed by a behaviour prior, refined as in MPPI, scored by Q(s, a).

    state -> codes, features -> prior: N actions -> scores Q - penalty -> weighted mean and spread -> N actions -> ...

A VOC's future already holds all that follows the action, so one action is planned, not a sequence: one step of policy
improvement over the policy that acts after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.agents.action_values import ActionScores
from voc_rl.agents.networks import FrozenEncoder, log_density
from voc_rl.agents.offline import OfflineAgent
from voc_rl.errors import VOCError, check_at_least, check_count, check_positive
from voc_rl.model import VOC
from voc_rl.model_files import weights_mark
from voc_rl.precision import as_tensor, device_of, generator_on
from voc_rl.quantizers import Quantizer, seen_as_stored

ROUNDING = 1e-6  # of scores in float32, relative to their size


@dataclass(frozen=True)
class PlannerConfig:
    """How actions are searched.

    candidates: actions per round. rounds: the first from the prior, later ones around the best. elites: share of the
    candidates that the next round is drawn around. temperature: of the softmax over elites, in standard deviations of
    their scores. support: weight of the penalty, per unit of log-density by which an action lies below ``floor``; in
    standard deviations of the first round's scores. floor: standard deviations of the prior, root mean square over the
    action's entries, within which actions are taken to be on the data's support.
    """

    candidates: int = 64
    rounds: int = 3
    elites: float = 0.25
    temperature: float = 0.5
    support: float = 1.0
    floor: float = 2.0

    def __post_init__(self) -> None:
        for name in ("candidates", "rounds"):
            check_count(getattr(self, name), name)
        check_at_least(self.candidates, 2, "candidates")
        check_positive(self.temperature, "temperature")
        for name in ("support", "floor"):
            check_at_least(getattr(self, name), 0, name)
        if not 0 < self.elites <= 1:
            raise VOCError(f"elites is {self.elites!r}; a share of the candidates, above 0 and at most 1, is needed.")


class VOCPlanner:
    """Plans with a score of actions; Stable-Baselines3's ``predict``.

    Args:
        prior: a clone of the behaviour (``OfflineAgent``): proposes actions and knows their density.
        score: ``ActionValues``, of the data's reward or of another (``reward=``), or any ``ActionScores``.
        quantizer: whose codes and features ``score`` reads; None: that of its VOC (``score.voc``) or of the prior.

    Attributes:
        seconds: time spent so far, by part: "see" (frames to codes and features), "propose", "score"; calls: how many
        predictions. below_floor: share of the planned actions so far that lay outside the prior's support.

    Raises:
        VOCError: another quantizer than that of the scores' VOC; or none, where scores have no VOC and the prior sees
            frames through convolutions.
    """

    observation: Literal["state", "pixels"] = "pixels"

    def __init__(
        self, prior: OfflineAgent, score: ActionScores, config: PlannerConfig | None = None, seed: int = 0,
        quantizer: Quantizer | None = None,
    ) -> None:  # fmt: skip
        own = prior.encoder.quantizer if isinstance(prior.encoder, FrozenEncoder) else None
        voc: VOC | None = getattr(score, "voc", None)
        quantizer = quantizer or (voc.quantizer if voc is not None else own)
        if quantizer is None:
            raise VOCError("This prior sees frames; give the planner the quantizer of its scores (quantizer=).")
        if voc is not None and weights_mark(quantizer) != weights_mark(voc.quantizer):
            raise VOCError("quantizer is another than that of the scores' VOC, which reads its codes; leave it out.")
        same = own is not None and weights_mark(own) == weights_mark(quantizer)
        self.quantizer = own if same and own is not None else quantizer  # the prior's copy: frames are read once
        self.prior, self.score, self.config, self.seed = prior, score, config or PlannerConfig(), seed
        self._generator = generator_on(device_of(prior.actor), seed)
        self.seconds = {"see": 0.0, "propose": 0.0, "score": 0.0}
        self.calls, self.outside, self.planned = 0, 0, 0

    def __repr__(self) -> str:
        return f"VOCPlanner({self.prior!r}, {self.config.candidates} x {self.config.rounds})"

    @property
    def below_floor(self) -> float:
        """Share of the planned actions (those ``deterministic`` takes) whose density is below the prior's floor."""
        return self.outside / max(self.planned, 1)

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions float32 (A,) or (B, A) in [-1, 1]; drawn from the last round's Gaussian unless ``deterministic``.

        Deterministic ones are functions of the frame alone (but for rounding): their search starts from ``seed`` at
        every call, with the same random numbers for all frames.
        """
        obs = np.asarray(observation)
        started = time.perf_counter()
        seen = self._see(obs[None] if obs.ndim == 3 else obs)
        self.seconds["see"] += time.perf_counter() - started
        self.calls += 1
        mean, std = self.plan(*seen, deterministic)
        if not deterministic:
            mean = (mean + std * _normal(std.shape, self._generator)).clamp(-1, 1)
        actions = mean.float().cpu().numpy()
        return (actions[0] if obs.ndim == 3 else actions), state

    @torch.no_grad()
    def _see(self, obs: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and features, and what the prior reads."""
        frames, encoder, here = as_tensor(obs), self.prior.encoder, device_of(self.prior.actor)
        seen = seen_as_stored(self.quantizer, frames.to(device_of(self.quantizer)))  # a VOC may be elsewhere
        codes, features = (part.to(here) for part in seen)
        if isinstance(encoder, FrozenEncoder) and encoder.quantizer is self.quantizer:
            return codes, features, encoder.inputs(codes, features)
        return codes, features, encoder(frames.to(here))

    @torch.no_grad()
    def plan(
        self, codes: Tensor, features: Tensor, inputs: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and spread (B, A) of the last round, at codes (B, n_tokens) and features (B, feature_dim).

        ``inputs`` (B, F): of the prior's actor, what its encoder makes of the same observations. ``deterministic``:
        random numbers of the seed, the same for every row, in place of the planner's next ones.
        """
        config, generator = self.config, self._generator
        if deterministic:
            generator = generator_on(generator.device, self.seed)
        prior_mean, prior_std = self.prior.actor(inputs)
        mean, std = prior_mean, prior_std
        unit = torch.ones(len(codes), 1, device=mean.device)
        for place in range(config.rounds):
            started = time.perf_counter()
            noise = _normal((1 if deterministic else len(mean), config.candidates, mean.shape[1]), generator)
            actions = (mean[:, None] + std[:, None] * noise).clamp(-1, 1)
            actions[:, 0] = mean  # the middle itself is a candidate
            self.seconds["propose"] += time.perf_counter() - started
            started = time.perf_counter()
            scores = self.score(codes, features, actions).float().to(mean.device)
            self.seconds["score"] += time.perf_counter() - started
            if place == 0:
                # what scores differ by through rounding is no unit: divided by it they would swallow the penalty
                least = (ROUNDING * scores.abs().amax(1, keepdim=True)).clamp(min=1e-8)
                unit = scores.std(1, keepdim=True).maximum(least)
            scores = scores / unit - config.support * self._below(actions, prior_mean[:, None], prior_std[:, None])
            best = scores.topk(max(int(config.elites * config.candidates), 2), 1)
            spread = best.values.std(1, keepdim=True).clamp(min=1e-8)
            weights = ((best.values - best.values[:, :1]) / (config.temperature * spread)).softmax(1)[..., None]
            elites = actions.gather(1, best.indices[..., None].expand(-1, -1, actions.shape[2]))
            mean = (weights * elites).sum(1)
            std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt().clamp(min=0.02)
        self.outside += int((self._below(mean, prior_mean, prior_std) > 0).sum())
        self.planned += len(mean)
        return mean, std

    def _below(self, actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """By how much actions lie below the floor of the prior's log-density, at least 0."""
        ratio = log_density(actions, mean, std) - log_density(mean, mean, std)  # -1/2 |z|^2
        return (-0.5 * self.config.floor**2 * actions.shape[-1] - ratio).clamp(min=0)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)

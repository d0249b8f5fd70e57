"""Data, codes and truth of the policy-evaluation benchmark, made once per task and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from voc_rl.benchmarks.kept import kept_arrays
from voc_rl.benchmarks.ope_protocol import EIGHT, Protocol, Target
from voc_rl.checkpoints import load_tensors, save_tensors
from voc_rl.data import Episodes, going_rows
from voc_rl.envs import collect
from voc_rl.envs.roll_outs import roll_outs
from voc_rl.quantizers import Quantizer, load_quantizer, save_quantizer, tokenize, train_quantizer
from voc_rl.sizes import sized
from voc_rl.training import fresh_quantizer
from voc_rl.values import FQEConfig, horizon

R_MAX = 2.0  # rewards of at most 1 per control step, two of them summed


@dataclass(frozen=True)
class Scale:
    """How much is collected and how exactly the truth is known.

    episodes, steps: of the data. resets, anywhere: starts that are first rows, and rows from all over the episodes.
    roll_outs: per start and policy. gammas: discounts; the truth reaches to the horizon of the largest. size: of the
    quantizer and of networks on its codes. quantizer, network, critic: optimiser steps of the quantizer, of the
    policies' network, of fitted Q evaluation (the VOC's own critic too). protocol: who acts.
    """

    episodes: int
    steps: int
    resets: int
    anywhere: int
    roll_outs: int
    gammas: tuple[float, ...]
    quantizer: int
    network: int
    critic: int
    size: str = "tiny"
    protocol: Protocol = EIGHT

    @property
    def fitted_q(self) -> FQEConfig:
        """How fitted Q evaluation is trained."""
        usual = FQEConfig()
        return replace(usual, loop=replace(usual.loop, steps=self.critic))


@dataclass
class TaskData:
    """One task of the benchmark in a folder; each part is made when first asked for, or read."""

    task: str
    folder: Path
    scale: Scale
    seed: int = 0

    def prepare(self) -> None:
        """Make what all cells share, so that several processes can read it."""
        self.tokens, self._truth  # noqa: B018 - made by being asked for

    @cached_property
    def episodes(self) -> Episodes:
        path = self.folder / "data"
        collect(
            path, self.task, self.scale.protocol.behaviour(self.task), self.scale.episodes, self.seed,
            max_episode_steps=self.scale.steps, processes=os.cpu_count() or 1,
        )  # fmt: skip
        return Episodes.open(path)

    @cached_property
    def starts(self) -> np.ndarray:
        """Rows that values are averaged over: some first rows, and rows from all over the episodes."""
        dataset, scale = self.episodes, self.scale
        rng = np.random.default_rng([self.seed, 23])
        rows = rng.choice(going_rows(dataset), scale.anywhere, replace=False)
        return np.concatenate([dataset.starts[:: max(scale.episodes // scale.resets, 1)], np.sort(rows)])

    @cached_property
    def policies(self) -> dict[str, Target]:
        """All policies, the development ones first."""
        return {**self.targets(True), **self.targets(False)}

    def targets(self, development: bool) -> dict[str, Target]:
        """The policies of one part of the protocol."""
        protocol = self.scale.protocol
        return protocol.development_policies(self.task) if development else protocol.targets(self.task)

    @cached_property
    def quantizer(self) -> Quantizer:
        """The vqvae of the scale's size, trained on all rows; every method sees frames through it."""
        path = self.folder / "quantizer"
        if not (path / "quantizer.json").exists():
            config = sized(self.scale.size)
            fresh = fresh_quantizer(self.episodes.load_frames(), config)
            loop = replace(config.quantizer_training, steps=self.scale.quantizer)
            save_quantizer(train_quantizer(fresh, self.episodes, loop, self.seed), path)
        return load_quantizer(path)

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Codes and features of every row."""
        path = self.folder / "tokens.safetensors"
        if not path.exists():
            codes, features = tokenize(self.quantizer, self.episodes)
            save_tensors(path, {"codes": codes, "features": features})
        tensors = load_tensors(path)
        return tensors["codes"], tensors["features"]

    @cached_property
    def _truth(self) -> dict[str, np.ndarray]:
        words = {"policies": list(self.policies), "starts": self.starts.tolist(), "roll_outs": self.scale.roll_outs}
        return kept_arrays(self.truth_path, words, self._roll_outs)

    @property
    def truth_path(self) -> Path:
        """Where true roll-outs are kept."""
        return self.folder / "truth.safetensors"

    def _roll_outs(self) -> dict[str, np.ndarray]:
        assert self.episodes.physics is not None
        found = roll_outs(
            self.task, self.episodes.physics[self.starts], list(self.policies.values()),
            horizon(max(self.scale.gammas)), self.scale.roll_outs, self.seed, processes=os.cpu_count() or 1,
        )  # fmt: skip
        return {part: np.stack([getattr(f, part) for f in found]) for part in ("reward", "state")}

    def true_j(self, gamma: float) -> dict[str, float]:
        """J of every policy, (1 - gamma) V / r_max, averaged over starts and roll-outs."""
        values = discounted_mean(self._truth["reward"].astype(float), gamma).mean((1, 2)) / R_MAX
        return {name: float(v) for name, v in zip(self.policies, values, strict=True)}

    def arrived_states(self, name: str) -> np.ndarray:
        """Flat states (starts, roll-outs, H, S) that a policy's true roll-outs arrived at."""
        return self._truth["state"][list(self.policies).index(name)]


@lru_cache(maxsize=4)
def task_data(task: str, out: Path, scale: Scale) -> TaskData:
    """One task of a benchmark's folder; a process reads it once."""
    return TaskData(task, out / task, scale)


def discounted_mean(reward: np.ndarray, gamma: float) -> np.ndarray:
    """(1 - gamma) V (...) of rewards (..., H) on arrival; what lies beyond H is taken to be like what lies before."""
    weights = gamma ** np.arange(reward.shape[-1])
    return reward @ (weights / weights.sum())

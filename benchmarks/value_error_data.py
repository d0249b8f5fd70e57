"""Data, codes and truth of the value-error benchmark, made once per task and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voc_rl.agents import load_policy
from voc_rl.benchmarks.demo import POLICIES
from voc_rl.benchmarks.kept import kept_arrays
from voc_rl.benchmarks.ope_data import discounted_mean
from voc_rl.benchmarks.quantizers import spread_rows
from voc_rl.data import Episodes
from voc_rl.envs import collect
from voc_rl.envs.roll_outs import roll_outs
from voc_rl.quantizers import Quantizer, load_quantizer, save_quantizer, tokenize
from voc_rl.values import horizon

HELD_OUT = 0.2  # share of the episodes that are scored; the same ones for every seed, never trained on
LEFT_OUT = 0.125  # share of the other episodes that each seed draws and leaves out of its training
DATA_SEED = 1  # not the demo's (0), on whose held-out episodes settings of the VOC were chosen


@dataclass(frozen=True)
class Scale:
    """How much is collected, trained and scored, per task.

    episodes, episode_steps: of the data (agent steps). states: held-out states. roll_outs: true ones of each. gammas:
    discounts; the truth reaches to the horizon of the largest. compared_at: the discount at which other quantizers
    are trained. samples: futures per state. share: of the size's steps that occupancy networks take. steps: of every
    network's training; None: the size's own. baseline_steps: of the critics; None: as many as fit into the VOC's CPU
    seconds. size: of quantizers and networks.
    """

    episodes: int
    episode_steps: int
    states: int
    roll_outs: int
    gammas: tuple[float, ...]
    compared_at: float
    samples: int
    share: float = 1.0
    steps: int | None = None
    baseline_steps: int | None = None
    size: str = "tiny"


@dataclass(frozen=True)
class Truth:
    """True values of B states by M roll-outs: mean float64 (B,), the squared standard error of it (B,), s^2 / M, and
    the episode (B,) that each state is from."""

    mean: np.ndarray
    noise: np.ndarray
    episode: np.ndarray


@dataclass
class TaskData:
    """One task of the benchmark in a folder; each part is made when first asked for, or read.

    ``device``: where networks are.
    """

    task: str
    folder: Path
    scale: Scale
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def episodes(self) -> Episodes:
        """All episodes, of the behaviour policy."""
        path = self.folder / "data"
        collect(
            path, self.task, load_policy(POLICIES[self.task]), self.scale.episodes, DATA_SEED,
            max_episode_steps=self.scale.episode_steps, processes=os.cpu_count() or 1, progress=False,
        )  # fmt: skip
        return Episodes.open(path).load_frames()

    @cached_property
    def _parts(self) -> tuple[Episodes, Episodes]:
        return self.episodes.split(HELD_OUT, np.random.default_rng([DATA_SEED, 7]))

    @property
    def held_out(self) -> Episodes:
        """The episodes that the scored states are from."""
        return self._parts[1]

    def training(self, seed: int) -> Episodes:
        """The episodes that a seed trains on: most of those that are not held out."""
        return self._parts[0].split(LEFT_OUT, np.random.default_rng([seed, 7]))[0]

    @cached_property
    def rows(self) -> np.ndarray:
        """The scored rows of ``held_out``, evenly spread; int64 (B,)."""
        return spread_rows(self.held_out, self.scale.states)

    def keep_quantizer(self, quantizer: Quantizer, name: str) -> Tensor:
        """Keep a trained quantizer, and the codes and features of every row under it; returns the codes."""
        self._tokens(name).unlink(missing_ok=True)  # of one that was kept by a run that was cut
        save_quantizer(quantizer, self._vision(name))
        return self.vision(name)[1]

    def vision(self, name: str) -> tuple[Quantizer, Tensor, Tensor]:
        """A kept quantizer, and the codes (N, n_tokens) and features (N, feature_dim) of every row of ``episodes``."""
        quantizer = load_quantizer(self._vision(name)).to(self.device)

        def make() -> dict[str, np.ndarray]:
            codes, features = tokenize(quantizer, self.episodes)
            return {"codes": codes.numpy(), "features": features.numpy()}

        tokens = kept_arrays(self._tokens(name), {"quantizer": name}, make)
        return quantizer, torch.from_numpy(tokens["codes"]), torch.from_numpy(tokens["features"])

    def _vision(self, name: str) -> Path:
        return self.folder / "quantizers" / name

    def _tokens(self, name: str) -> Path:
        return self._vision(name) / "tokens.safetensors"

    @cached_property
    def _rewards(self) -> np.ndarray:
        """Rewards (B, M, H) along the true roll-outs."""
        dataset, steps = self.held_out, horizon(max(self.scale.gammas))
        words = {
            "policy": POLICIES[self.task], "rows": dataset.source_rows[self.rows].tolist(),
            "horizon": steps, "roll_outs": self.scale.roll_outs,
        }  # fmt: skip

        def make() -> dict[str, np.ndarray]:
            assert dataset.physics is not None
            policy, count = load_policy(POLICIES[self.task]), self.scale.roll_outs
            found = roll_outs(self.task, dataset.physics[self.rows], [policy], steps, count, DATA_SEED)
            return {"reward": found[0].reward}

        return kept_arrays(self.folder / "truth.safetensors", words, make)["reward"]

    def truth(self, gamma: float) -> Truth:
        """True values of the scored states at a discount; one set of roll-outs serves all discounts."""
        values = discounted_mean(self._rewards.astype(float), gamma) / (1.0 - gamma)
        noise = values.var(1, ddof=1) / values.shape[1]
        return Truth(values.mean(1), noise, self.held_out.episode[self.rows])

"""Offline agents with Stable-Baselines3's manners: ``learn``, ``predict``, ``save``, ``load``.

An agent is an encoder of frames (frozen features, code vectors, or convolutions, its own or another agent's), an actor,
and an objective (``voc_rl.agents.objectives``). All are trained by the library's one loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from voc_rl.agents.networks import Actor, ConvEncoder, FrozenEncoder
from voc_rl.agents.stochastic import StochasticPolicy
from voc_rl.agents.views import view_of
from voc_rl.checkpoints import load_state_dict, load_tensors, read_json, save_tensors, write_json
from voc_rl.configs import from_dict
from voc_rl.data import Episodes
from voc_rl.errors import (
    VOCError,
    check_at_least,
    check_choice,
    check_count,
    check_gamma,
    check_observations,
    check_seed,
)
from voc_rl.loop import LoopConfig, StepLog, optimise, step_seed
from voc_rl.model_files import tensors_mark, weights_mark
from voc_rl.policy import holds_choices
from voc_rl.precision import as_tensor, device_of, seeded, single_precision
from voc_rl.quantizers import Quantizer, load_quantizer, save_quantizer
from voc_rl.training_inputs import Tokens

Inputs = Literal["features", "tokens", "frames"]
INPUTS: tuple[Inputs, ...] = ("features", "tokens", "frames")


@dataclass(frozen=True)
class AgentConfig:
    """How an agent sees and learns.

    inputs: a quantizer's continuous ``features``, the vectors of its ``tokens``, or ``frames`` through convolutions
    that learn with the agent. width: of the two hidden layers. noise: on frozen inputs in training, in their standard
    deviations. shift: pixels of the random shift of frames. gamma: of critics. loop: of the training.
    """

    inputs: Inputs = "features"
    width: int = 256
    noise: float = 0.1
    shift: int = 4
    gamma: float = 0.97
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=4000, batch_size=256, learning_rate=1e-3, weight_decay=1e-2)
    )

    def __post_init__(self) -> None:
        check_choice(self.inputs, INPUTS, "inputs")
        check_gamma(self.gamma)
        check_count(self.width, "width")
        for name in ("noise", "shift"):
            check_at_least(getattr(self, name), 0, name)


def check_continuous(dataset: Episodes) -> None:
    """Refuse actions that no continuous actor can learn: outside [-1, 1], or all one-hot, as discrete ones are stored.

    Raises:
        VOCError: there are some, or all of those that were taken are one-hot rows of two entries or more.
    """
    if (largest := float(np.abs(dataset.action).max())) > 1.0 + 1e-6:
        raise VOCError(
            f"The data's actions reach {largest:g}; continuous ones in [-1, 1] are needed, not indices of discrete "
            "ones."
        )
    if holds_choices(dataset):
        raise VOCError(
            f"The data's actions are one-hot rows of {dataset.action.shape[1]}, discrete ones, which no continuous "
            "actor gives; train Stable-Baselines3's DQN on them (voc_rl.agents.sb3.train_offline)."
        )


class OfflineAgent(StochasticPolicy):
    """An actor that sees frames: Stable-Baselines3's ``predict``, so that everything that takes policies takes it.

    Args:
        observation_shape: (3K, H, W). action_size: of actions in [-1, 1]. quantizer: whose features it sees; not
            needed for ``inputs="frames"``. device: where it is; None: where the quantizer is, or the CPU.
        encoder: for ``inputs="frames"``, the convolutions that another agent learned; they stay as they are, so that
            learning on them takes seconds.

    Raises:
        VOCError: no quantizer where one is needed, one of other frames, frames too small for convolutions, convolutions
            where none are asked, no action, or a negative seed.
    """

    observation: Literal["state", "pixels"] = "pixels"

    @single_precision()
    def __init__(
        self,
        observation_shape: tuple[int, int, int],
        action_size: int,
        config: AgentConfig | None = None,
        quantizer: Quantizer | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        name: str = "",
        encoder: ConvEncoder | None = None,
    ) -> None:
        check_count(action_size, "action_size")
        check_seed(seed)
        self.config = config or AgentConfig()
        self.observation_shape, self.action_size, self.seed, self.name = observation_shape, action_size, seed, name
        self._rng = np.random.default_rng([seed, 71])
        if self.config.inputs != "frames" and encoder is not None:
            raise VOCError(f"inputs={self.config.inputs!r} does not see through convolutions; use inputs='frames'.")
        if self.config.inputs != "frames" and quantizer is None:
            raise VOCError(f"inputs={self.config.inputs!r} needs a quantizer; give one, or use inputs='frames'.")
        with seeded(torch.device("cpu"), step_seed(seed, 73)):
            self.encoder: FrozenEncoder | ConvEncoder
            if encoder is not None:
                self.encoder = copy.deepcopy(encoder).requires_grad_(False)
            elif quantizer is None or self.config.inputs == "frames":
                self.encoder = ConvEncoder(observation_shape)
            else:
                if quantizer.observation_shape != tuple(observation_shape):
                    raise VOCError(
                        f"The quantizer reads frames {quantizer.observation_shape}, the agent is to see "
                        f"{observation_shape}; give a quantizer of these frames."
                    )
                self.encoder = FrozenEncoder(copy.deepcopy(quantizer), self.config.inputs == "tokens")
            self.actor = Actor(self.encoder.width, action_size, self.config.width)
        self.networks = nn.ModuleDict({"encoder": self.encoder, "actor": self.actor})
        if device is None:
            device = torch.device("cpu") if quantizer is None else device_of(quantizer)
        self.networks.to(device).eval()

    @property
    def _frozen(self) -> bool:
        """Whether it sees through convolutions that stay as they are."""
        return isinstance(self.encoder, ConvEncoder) and not self.encoder.learns

    def __repr__(self) -> str:
        return f"OfflineAgent({self.name or self.config.inputs})"

    @single_precision()
    def learn(
        self,
        dataset: Episodes,
        objective: Callable[..., Any],
        tokens: Tokens | None = None,
        *,
        seen: Tensor | None = None,
        log: StepLog | None = None,
        progress: bool = False,
    ) -> OfflineAgent:
        """Train on logged episodes; returns itself.

        Args:
            objective: ``voc_rl.agents.objectives``: makes the trainee of (agent, view of the data).
            tokens: codes and features of every row under the agent's quantizer, where they are known already.
            seen: what the agent's frozen convolutions see of every row (``views.seen_rows``), where that is known.

        Raises:
            VOCError: a dataset of other frames or of other than continuous actions, or without a step; tokens that are
                not those of the rows; ``seen`` where the agent has no frozen convolutions, or of another shape.
        """
        if dataset.observation_shape != self.observation_shape:
            raise VOCError(
                f"The data's frames are {dataset.observation_shape}; the agent sees {self.observation_shape}."
            )
        if dataset.action.shape[1] != self.action_size:
            raise VOCError(
                f"The data's actions have size {dataset.action.shape[1]}; the agent's have {self.action_size}."
            )
        check_continuous(dataset)
        if seen is not None and (not self._frozen or seen.shape != (len(dataset), self.encoder.width)):
            raise VOCError(
                f"`seen` of shape {tuple(seen.shape)} is for an agent of frozen convolutions, one row of "
                f"{ConvEncoder.width} numbers for each of the data's {len(dataset)}."
            )
        self.networks.train()
        trainee = objective(self, view_of(self, dataset, tokens, seen))
        optimise(trainee, self.config.loop, self.seed, self.name or "agent", log=log, progress=progress)
        self.networks.eval()
        return self

    @torch.no_grad()
    def distribution(self, obs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, A) of actions at observations uint8 (B, 3K, H, W)."""
        check_observations(obs, self.observation_shape)
        return self.actor(self.encoder(as_tensor(obs).to(device_of(self.actor))))

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The actor's mean, float32 (A,) or (B, A)."""
        return self._moments(observation)[0]

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws, float32 (count, A) or (count, B, A), of one pass."""
        mean, std = self._moments(observation)
        return (mean + std * rng.standard_normal((count, *mean.shape))).astype(np.float32)

    def _moments(self, observation: np.ndarray) -> list[np.ndarray]:
        """``distribution`` of one observation or a batch, as numpy (A,) or (B, A)."""
        obs = np.asarray(observation)
        one = obs.ndim == 3
        found = (part.float().cpu().numpy() for part in self.distribution(obs[None] if one else obs))
        return [part[0] if one else part for part in found]

    def save(self, folder: str | Path) -> None:
        """Write the agent into ``folder``: its quantizer, agent.safetensors, and last agent.json, which says of which
        weights it is."""
        folder = Path(folder)
        if isinstance(self.encoder, FrozenEncoder):
            save_quantizer(self.encoder.quantizer, folder)
        own = {k: v.contiguous() for k, v in self.networks.state_dict().items() if not k.startswith(_QUANTIZER)}
        save_tensors(folder / "agent.safetensors", own)
        description = {
            "observation_shape": list(self.observation_shape), "action_size": self.action_size, "name": self.name,
            "seed": self.seed, "frozen": self._frozen, "config": asdict(self.config),
            "quantizer": self._quantizer_mark(), "weights": tensors_mark(own),
        }  # fmt: skip
        write_json(folder / "agent.json", description)

    def _quantizer_mark(self) -> str | None:
        return weights_mark(self.encoder.quantizer) if isinstance(self.encoder, FrozenEncoder) else None

    @classmethod
    def load(cls, folder: str | Path) -> OfflineAgent:
        """Read what ``save`` wrote; no code of the files is executed.

        Raises:
            VOCError: missing or damaged files, or weights of another agent or quantizer, as they lie there while one is
                saved over another.
        """
        folder = Path(folder)
        words = read_json(folder / "agent.json", "agent")
        try:
            config = from_dict(AgentConfig, words["config"])
            shape, size, name, seed, frozen = (
                words[k] for k in ("observation_shape", "action_size", "name", "seed", "frozen")
            )
        except KeyError as error:
            raise VOCError(f"{folder / 'agent.json'} lacks the key {error}.") from error
        quantizer = load_quantizer(folder) if config.inputs != "frames" else None
        encoder = ConvEncoder(tuple(shape)) if frozen else None
        agent = cls(tuple(shape), size, config, quantizer, seed, name=name, encoder=encoder)
        kept = {k: v for k, v in agent.networks.state_dict().items() if k.startswith(_QUANTIZER)}
        own = load_tensors(path := folder / "agent.safetensors")
        for file, name, mark in (
            ("quantizer.safetensors", "quantizer", agent._quantizer_mark()),
            ("agent.safetensors", "weights", tensors_mark(own)),
        ):
            if words.get(name, mark) != mark:
                raise VOCError(
                    f"{folder}: {file} holds other weights than agent.json was written for (something is being saved "
                    "over the agent, or that was cut); load it again later, or train the agent again."
                )
        load_state_dict(agent.networks, {**kept, **own}, str(path))
        return agent


_QUANTIZER = "encoder.quantizer."

"""Data and models of the control benchmark: mixes of checkpoints as in V-D4RL, and what several methods share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.agents import NoisyPolicy, StickyMixture, load_policy
from voc_rl.agents.action_values import action_training, train_action_voc
from voc_rl.agents.networks import ConvEncoder
from voc_rl.agents.objectives import Cloning
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.agents.views import seen_rows
from voc_rl.benchmarks.one_step import ONE_STEP_DROPOUT
from voc_rl.benchmarks.ope_data import Scale, TaskData
from voc_rl.benchmarks.ope_protocol import EPSILON, LOGGED, SIGMA, SWITCH
from voc_rl.checkpoints import load_tensors, read_json, save_tensors, write_json
from voc_rl.data import Episodes
from voc_rl.envs import collect, make_env
from voc_rl.loop import LoopConfig, StepLog
from voc_rl.model import VOC
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.sizes import sized
from voc_rl.training import VOCConfig

# checkpoints that make the data: one stays for fifty steps on average, as in the policy-evaluation benchmark
MIXES: dict[str, tuple[int, ...]] = {
    "random": (0,),
    "medium": (60_000,),
    "medium-replay": (0, 20_000, 40_000, 60_000),
    "expert": (350_000,),
    "mixed": LOGGED,
}
GAMMA = 0.95
CONV, SEEN, CURVE = "conv", "seen.safetensors", "curve.json"
FILM_STEP = 4  # steps between two frames that are kept
CURVE_EPISODES = 3


@dataclass(frozen=True)
class ControlScale:
    """episodes, steps: of the data, and steps of the episodes that are played. played: episodes per seed. voc, agent,
    frames, conv: optimiser steps of the models, of agents, of DrQ-v2+BC, of the clone whose convolutions others see
    through. quantizer: of the quantizer. size: of the quantizer and of the VOCs."""

    episodes: int
    steps: int
    played: int
    voc: int
    agent: int
    frames: int
    conv: int
    quantizer: int
    size: str = "tiny"


@dataclass
class ControlData(TaskData):
    """One task and mix in a folder; see ``TaskData``."""

    mix: str = "mixed"

    @cached_property
    def episodes(self) -> Episodes:
        path = self.folder / "data"
        policy = StickyMixture([self.member(step) for step in MIXES[self.mix]], SWITCH)
        collect(
            path, self.task, policy, self.scale.episodes, self.seed, max_episode_steps=self.scale.steps,
            processes=os.cpu_count() or 1,
        )  # fmt: skip
        return Episodes.open(path)

    @property
    def states(self) -> np.ndarray:
        """Flat states (N, S) of all rows, which collected data always hold."""
        states: np.ndarray | None = self.episodes.state
        assert states is not None
        return states

    def member(self, step: int) -> NoisyPolicy:
        """A checkpoint as it acted in the data."""
        return NoisyPolicy(load_policy(f"{self.task}/step_{step}"), SIGMA, EPSILON)

    @cached_property
    def sight(self) -> tuple[ConvEncoder, Tensor]:
        """The convolutions of the model ``conv``, and what they see of every row (N, 50)."""
        encoder = OfflineAgent.load(model_path(self, CONV)).encoder
        assert isinstance(encoder, ConvEncoder)
        return encoder, load_tensors(model_path(self, CONV) / SEEN)["seen"]

    def prepare(self) -> None:
        """Make data, quantizer and tokens, so that several processes can read them."""
        self.tokens  # noqa: B018 - made by being asked for


def name_of(task: str, mix: str) -> str:
    """What a task with data of a mix is called in results and folders."""
    return task if mix == "mixed" else f"{task}_{mix}"


@lru_cache(maxsize=4)
def control_data(task: str, mix: str, out: Path, scale: ControlScale) -> ControlData:
    """One task and mix of a benchmark's folder; a process reads it once."""
    own = Scale(
        scale.episodes, scale.steps, resets=1, anywhere=1, roll_outs=1, gammas=(GAMMA,), quantizer=scale.quantizer,
        network=scale.voc, critic=1, size=scale.size,
    )  # fmt: skip
    return ControlData(task, out / name_of(task, mix), own, mix=mix)


def agent_config(steps: int, **changed: Any) -> AgentConfig:
    """The agents' common settings at a number of steps."""
    return AgentConfig(loop=LoopConfig(steps=steps, batch_size=256, learning_rate=1e-3, weight_decay=1e-2), **changed)


def voc_training(scale: ControlScale, gamma: float) -> tuple[PolicyTraining, VOCConfig]:
    """How the benchmark's VOCs are trained."""
    sizes, steps = sized(scale.size), scale.voc
    loop = replace(sizes.occupancy.loop, steps=steps)
    config = VOCConfig(network=sizes.network)
    if steps < 100:
        config = replace(config, reward=replace(config.reward, loop=LoopConfig(steps=50, batch_size=256)))
    occupancy = OccupancyTraining(gamma=gamma, loop=loop)
    if gamma == 0:
        occupancy = replace(occupancy, feature_dropout=ONE_STEP_DROPOUT)
    return action_training(occupancy), config


class Curve:
    """Returns of an agent while it learns: ``points``, (step, mean return) at ``count`` evenly spaced steps."""

    def __init__(self, data: ControlData, seed: int, count: int) -> None:
        self.data, self.seed, self.count = data, seed, count
        self.points: list[tuple[int, float]] = []

    def of(self, agent: OfflineAgent) -> StepLog:
        """A log for the training of ``agent`` that lets it play, and leaves it as it was."""
        total = agent.config.loop.steps

        def log(stage: str, step: int, numbers: Mapping[str, float]) -> None:
            if step * self.count // total > len(self.points):
                agent.networks.eval()
                returns = played(self.data.task, agent, CURVE_EPISODES, self.data.scale.steps, self.seed)[0]
                agent.networks.train()
                self.points.append((step, float(returns.mean())))

        return log


def make_model(
    data: ControlData, model: str, seed: int, scale: ControlScale, device: torch.device, curve: Curve | None = None
) -> None:
    """Train a model and keep it; one that is there already stays.

    ``conv``: the clone from frames whose convolutions others see through, one for all seeds. ``bc``: a clone of
    features, whose ``curve`` it is. ``voc``, ``one_step``.
    """
    path = model_path(data, model, seed)
    if path.exists():
        return
    if model == CONV:
        plain = agent_config(scale.conv, inputs="frames")
        slower = replace(plain, loop=replace(plain.loop, batch_size=128, learning_rate=5e-4))
        agent = new_agent(data, slower, seed, device, model)
        agent.learn(data.episodes, Cloning, progress=True)
        assert isinstance(agent.encoder, ConvEncoder)
        keep(agent, path, seen={"seen": seen_rows(agent.encoder, data.episodes)})
        return
    if model == "bc":
        keep(clone(data, agent_config(scale.agent), seed, device, name=model, curve=curve), path, curve)
        return
    training, config = voc_training(scale, 0.0 if model == "one_step" else GAMMA)
    voc = train_action_voc(
        data.episodes, training, replace(config, seed=seed), quantizer=data.quantizer, tokens=data.tokens,
        device=device, progress=True,
    )  # fmt: skip
    keep(voc, path)


def new_agent(
    data: ControlData, config: AgentConfig, seed: int, device: torch.device, name: str,
    encoder: ConvEncoder | None = None,
) -> OfflineAgent:  # fmt: skip
    """An agent for the data that has not learned yet."""
    shape, size = data.episodes.observation_shape, data.episodes.action.shape[1]
    return OfflineAgent(shape, size, config, data.quantizer, seed, device, name, encoder)


def clone(
    data: ControlData, config: AgentConfig, seed: int, device: torch.device, objective: Any = Cloning, name: str = "bc",
    curve: Curve | None = None,
) -> OfflineAgent:  # fmt: skip
    """An agent trained on the data by an objective; ``inputs="frames"``: through the model ``conv``."""
    encoder, seen = data.sight if config.inputs == "frames" else (None, None)
    agent = new_agent(data, config, seed, device, name, encoder)
    log = curve.of(agent) if curve else None
    return agent.learn(data.episodes, objective, data.tokens, seen=seen, log=log, progress=True)


def model_path(data: ControlData, model: str, seed: int = 0) -> Path:
    """Where a model is kept."""
    return data.folder / (CONV if model == CONV else f"{model}_{seed}")


def load_voc(data: ControlData, model: str, seed: int, device: torch.device) -> VOC:
    """A kept VOC."""
    return VOC.load(model_path(data, model, seed)).to(device)


def keep(
    model: VOC | OfflineAgent, path: Path, curve: Curve | None = None, seen: dict[str, Tensor] | None = None
) -> None:
    """Save a model into a folder that is there as a whole or not at all, with its curve: a kill before the model's
    record is written loses neither. ``seen``: tensors that go with it."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save(temporary)
    if seen is not None:
        save_tensors(temporary / SEEN, seen)
    if curve is not None:
        write_json(temporary / CURVE, {"points": curve.points})
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def kept_curve(path: Path) -> list[list[float]]:
    """Points (step, return) of the curve of a kept model; none where it has no curve."""
    return read_json(path / CURVE)["points"] if (path / CURVE).exists() else []


class Sampled:
    """A policy that acts with its noise, also where the deterministic action is asked for."""

    observation: Literal["state", "pixels"] = "pixels"

    def __init__(self, agent: OfflineAgent) -> None:
        self.agent = agent

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Drawn actions."""
        return self.agent.predict(observation, state, episode_start)


def played(
    task: str, policy: Any, episodes: int, steps: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Episodes played side by side: returns (E,), every ``FILM_STEP``-th frame of the first, states (steps, E, S)."""
    envs = [make_env(task, max_episode_steps=steps) for _ in range(episodes)]
    first = [env.reset(seed=1_000_000 + 1000 * seed + i) for i, env in enumerate(envs)]
    seen, infos = [o for o, _ in first], [i for _, i in first]
    returns, frames, states = np.zeros(episodes), [], []
    rng = np.random.default_rng([seed, 97])
    for step in range(steps):
        obs = np.stack([i["state"] for i in infos]) if policy.observation == "state" else np.stack(seen)
        if hasattr(policy, "draw") and policy.observation == "state":
            actions = np.clip(policy.draw(obs, rng), -1, 1)  # a logged policy acts as it was logged
        else:
            actions = policy.predict(obs, deterministic=True)[0]
        for i, env in enumerate(envs):
            seen[i], reward, _, _, infos[i] = env.step(actions[i])
            returns[i] += float(reward)
        if step % FILM_STEP == 0:
            frames.append(seen[0][-3:])
        states.append(np.stack([i["state"] for i in infos]))
    for env in envs:
        env.close()
    return returns, frames, np.stack(states)

"""Small agents and VOCs of actions, that learn nothing but run through everything."""

from __future__ import annotations

from pathlib import Path

import torch
from small import SPEC, numbered_frames, toy_episode

from voc_rl.agents.action_values import train_action_voc
from voc_rl.agents.offline import AgentConfig
from voc_rl.data import Episodes, write_episode
from voc_rl.loop import LoopConfig
from voc_rl.model import VOC
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.quantizers import Quantizer, build_quantizer
from voc_rl.training import NetworkSize, VOCConfig
from voc_rl.values import RewardConfig

FEW = AgentConfig(width=16, loop=LoopConfig(steps=3, batch_size=8, learning_rate=1e-3))


def quantizer(shape: tuple[int, int, int] = (9, 24, 24)) -> Quantizer:
    """A vqvae that knows noise."""
    found = build_quantizer("vqvae", shape, {"n_tokens": 2, "components": 4, "hidden": 16, "conv_width": 4})
    generator = torch.Generator().manual_seed(0)
    found.initialise(torch.randint(256, (16, *shape), generator=generator, dtype=torch.uint8), generator)
    return found.eval()


def framed(tmp_path: Path) -> Episodes:
    """Two episodes of actions of size 2."""
    for i, rows in enumerate((5, 6)):
        write_episode(tmp_path / f"e{i}.hdf5", toy_episode(i, rows, frames=numbered_frames(40 * i, rows, 24, 24)), SPEC)
    return Episodes.open(tmp_path)


def small_config(members: int) -> VOCConfig:
    return VOCConfig(
        network=NetworkSize(n_layer=1, n_head=2, width=16, head_hidden=8, head_members=members),
        reward=RewardConfig(hidden=8, bins=5, loop=LoopConfig(steps=3, batch_size=8)),
    )


def small_voc(dataset: Episodes, gamma: float, members: int = 2) -> VOC:
    training = PolicyTraining(
        occupancy=OccupancyTraining(gamma=gamma, loop=LoopConfig(steps=4, batch_size=8)), start_share=0.0
    )
    return train_action_voc(dataset, training, small_config(members), quantizer=quantizer(dataset.observation_shape))

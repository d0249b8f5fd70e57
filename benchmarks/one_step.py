"""The one-step token model: the same network, trained for the next observation and rolled out step by step."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.loop import StepLog
from voc_rl.model import VOC
from voc_rl.occupancy import OccupancyTransformer, hops, train_occupancy
from voc_rl.precision import autocast
from voc_rl.training import VOCConfig, fresh_networks
from voc_rl.values import ValueEstimate, completed, from_samples, horizon

ONE_STEP_DROPOUT = 0.5  # of features: from the second step of a roll-out on, the model sees its own codes alone


def train_one_step(
    voc: VOC,
    dataset: Episodes,
    tokens: tuple[Tensor, Tensor],
    config: VOCConfig,
    *,
    log: StepLog | None = None,
    progress: bool = False,
) -> OccupancyTransformer:
    """Train the occupancy network at gamma 0 (the next observation), with the VOC's size and steps."""
    training = dataclasses.replace(
        config.occupancy,
        gamma=0.0,
        gammas=None,
        n=1,
        futures=1,  # at gamma 0 all targets of a context are the same
        loop=dataclasses.replace(
            config.occupancy.loop,
            batch_size=config.occupancy.loop.batch_size * config.occupancy.futures * 2 // 3,
        ),
        feature_dropout=ONE_STEP_DROPOUT,
    )
    network, _ = fresh_networks(
        voc.quantizer, dataclasses.replace(config, occupancy=training), voc.occupancy.config.ends
    )
    model, _ = train_occupancy(
        network.to(voc.device),
        None,
        dataset,
        *tokens,
        training,
        config.seed,
        stage="one_step",
        log=log,
        progress=progress,
    )
    return model


@torch.no_grad()
def roll_out(
    model: OccupancyTransformer,
    voc: VOC,
    codes: Tensor,
    features: Tensor,
    token_budget: int,
    generator: torch.Generator,
) -> ValueEstimate:
    """Values by summing discounted rewards along roll-outs of H steps, gamma^H < 0.01.

    What lies beyond H is taken to be like what lies before it, as in the truth; nothing lies beyond an END. As many
    roll-outs per state as ``token_budget`` observations allow, at least two.
    """
    steps = horizon(voc.gamma)
    count = max(token_budget // steps, 2)
    codes, features = codes.to(voc.device), features.to(voc.device)
    with autocast(model):
        total = np.zeros((len(codes), count))
        for k, state in enumerate(hops(model, codes.long(), features, count, steps, generator)):
            total += voc.gamma**k * voc.rewards(state).cpu().numpy()
    going = (state[..., 0] != model.config.end_code).cpu().numpy()
    total = completed(total, np.where(going, steps, np.inf), voc.gamma)
    return from_samples(total * (1.0 - voc.gamma), voc.gamma)

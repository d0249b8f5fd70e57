"""Small agents on the square beside a VOC's Q."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from square import square_env

from voc_rl.agents.sb3 import VOCCritic, VOCFeaturesExtractor
from voc_rl.data import Episodes

GAMMA = 0.5
TINY: dict[str, Any] = {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "learning_rate": 3e-3}


def agent(voc: Path | None, env: Any = None, kind: Any = VOCCritic, **changed: Any) -> Any:
    """A small agent that sees through the VOC, which reads or does not read actions; without a VOC: plain TD3."""
    policy = {
        "features_extractor_class": VOCFeaturesExtractor,
        "features_extractor_kwargs": {"voc": str(changed.pop("eyes", voc)), "features": "tokens"},
        "net_arch": [32, 32],
        **changed.pop("policy", {}),
    }
    name = changed.pop("policy_class", "CnnPolicy")
    settings = {**TINY, "seed": 0, "device": "cpu", "policy_kwargs": policy, **changed}
    return kind(name, env or square_env(), **({"voc": voc} if kind is VOCCritic else {}), **settings)


def observations(dataset: Episodes) -> np.ndarray:
    return dataset.observations(np.arange(3, 35))

"""The reward that an environment paid, where value wrappers shape rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAW = "raw_reward"  # in info["voc"]


def raw_reward(info: Mapping[str, Any], reward: Any) -> float:
    """What the environment paid, also where a wrapper inside has shaped it."""
    return float(info.get("voc", {}).get(RAW, reward))

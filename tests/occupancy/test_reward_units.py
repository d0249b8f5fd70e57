"""By how much values may differ: what ends take counts, an offset of all rewards hardly, rare rewards by half."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from voc_rl.occupancy.reward_units import reward_units

ROWS = 200_000


def data(ends: bool, rows: int = ROWS) -> Any:
    """Episodes of 100 rows."""
    return SimpleNamespace(
        step_type=np.ones(rows, np.uint8), ends=np.arange(100, rows + 1, 100), episode=np.arange(rows) // 100,
        steps_left=99 - np.arange(rows) % 100, terminal=ends & (np.arange(rows) % 100 == 99),
    )  # fmt: skip


def test_the_unit_holds_what_ends_take_and_no_offset() -> None:
    rng = np.random.default_rng(0)
    for ends, offset, right in ((False, 0.0, 0.5), (False, 1000.0, 2.0), (True, 1000.0, 1000.0)):
        reward = (rng.normal(size=(ROWS, 1)) + offset).astype(np.float32)
        mean, unit = reward_units(data(ends), reward, 0.99)
        assert mean[0] == pytest.approx(offset, abs=0.01)
        assert unit[0] == pytest.approx(right, rel=0.01)
        unit = reward_units(data(ends), np.full((ROWS, 1), 0.1, np.float32), 0.9)[1]  # one reward everywhere
        # rms of .9^k over 100 steps, twice; without ends, nothing differs
        assert unit[0] == pytest.approx(2 * 0.1 * (1 / (0.19 * 100)) ** 0.5 if ends else 1e-4, rel=1e-3)


def test_rare_and_centred_rewards_are_measured_by_half_their_spread() -> None:
    for rewards, mean, unit in (
        ([3.0, -1.0] * 50, 1.0, 1.0),  # spread 2: half of it is the mean
        ([0.7, 1.2] * 50, 0.95, 0.5),  # twice the spread
        ([4.0, -4.0] * 50, 0.0, 2.0),
        ([0.0] * 99 + [10.0], 0.1, 0.99**0.5 / 2),
        ([2e-6, -2e-6] * 50, 0.0, 1e-6),
        ([0.0] * 100, 0.0, 1e-3),
    ):
        found = reward_units(data(False, 100), np.array(rewards, np.float32)[:, None], 0.9)
        assert [float(x[0]) for x in found] == pytest.approx([mean, unit])

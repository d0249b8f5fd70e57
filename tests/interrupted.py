"""Training that is interrupted between two steps, as by a kill, for tests of what a resume finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from voc_rl.loop import Checkpoints, Steps, take_steps


@dataclass
class _Until:
    work: Steps
    stop: int

    def step(self, step: int) -> dict[str, Tensor]:
        if step == self.stop:
            raise InterruptedError
        return self.work.step(step)

    def state(self) -> dict[str, Any]:
        return self.work.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.work.load_state(state)


def interrupted_at(stop: int, work: Steps, checkpoints: Checkpoints | None = None) -> None:
    """Take the first ``stop`` of many steps."""
    with pytest.raises(InterruptedError):
        take_steps(_Until(work, stop), 10**6, "interrupted", checkpoints=checkpoints)

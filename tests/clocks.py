"""Time that tests set."""

from __future__ import annotations


class Clock:
    """Stands still but for what it is told, so that measured seconds are exact on a busy machine too."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

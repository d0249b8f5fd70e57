"""Worker processes: what a machine has to give them."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from voc_rl import VOCError, workers


def test_a_machine_without_semaphores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refused)
    with pytest.raises(VOCError, match=r"Read-only file system; /dev/shm .*processes=1"):
        workers.worker_pool(2, "that works", "wait").__enter__()


def test_workers_work() -> None:
    with workers.worker_pool(2, "that works", "wait") as pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]


def test_a_process_that_ends_early_is_told_in_a_sentence() -> None:
    said = (
        "A process that works ended early (no memory left, or a script that lacks `if __name__ == '__main__':`); wait."
    )
    with pytest.raises(VOCError) as caught, workers.worker_pool(2, "that works", "wait") as pool:
        pool.submit(os._exit, 9).result()
    assert str(caught.value) == said

"""Worker processes: what a machine has to give them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from voc_rl import VOCError, workers


def test_a_machine_without_semaphores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refused)
    with pytest.raises(VOCError, match=r"Read-only file system; /dev/shm .*processes=1"):
        workers.worker_pool(2).__enter__()


def test_workers_work() -> None:
    with workers.worker_pool(2) as pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]

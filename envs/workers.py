"""Worker processes that draw frames."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from voc_rl.errors import VOCError


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that leave Ctrl-C to their parent and end when it was killed.

    They are spawned, not forked: OpenGL does not survive a fork. Where the block that uses the pool ends, by an error
    too, what has not begun is not begun.

    Raises:
        VOCError: a machine without the semaphores that processes need (in /dev/shm).
    """
    try:
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start)
    except OSError as error:
        raise VOCError(
            f"This machine lets processes share no semaphores ({error.strerror}; /dev/shm has to be writable); work in "
            "one process (processes=1)."
        ) from error
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Processes that another one starts, and that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from voc_rl.errors import VOCError


@contextmanager
def worker_pool(processes: int, doing: str, advice: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that leave Ctrl-C to their parent and end when it was killed.

    They are spawned, not forked: OpenGL does not survive a fork. Where the block that uses the pool ends, by an error
    too, what has not begun is not begun.

    ``doing``: what they do, ``advice``: what helps when one of them was killed, both for messages.

    Raises:
        VOCError: a machine without the semaphores that processes need (in /dev/shm), or a process that ended early.
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
    except BrokenProcessPool as error:
        raise VOCError(
            f"A process {doing} ended early (no memory left, or a script that lacks `if __name__ == '__main__':`); "
            f"{advice}."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Let this process, which another one started, end as soon as that one has, by a kill too."""
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _wait_for_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

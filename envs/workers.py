"""Worker processes that draw frames."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

from voc_rl.errors import VOCError


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of processes that leave Ctrl-C to their parent and end when it was killed.

    They are spawned, not forked: OpenGL does not survive a fork.

    Raises:
        VOCError: a machine without the semaphores that processes need (in /dev/shm).
    """
    try:
        return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start)
    except OSError as error:
        raise VOCError(
            f"This machine lets processes share no semaphores ({error.strerror}; /dev/shm has to be writable); work in "
            "one process (processes=1)."
        ) from error


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Which frames a command holds in memory while it trains or evaluates."""

from __future__ import annotations

from collections.abc import Callable

from voc_rl.data import Episodes
from voc_rl.data.border import machine_memory
from voc_rl.data.mark import FRAMES_IN_MEMORY, frame_bytes
from voc_rl.distributed import ranks


def hold_frames(dataset: Episodes, say: Callable[[str], None]) -> None:
    """Load frames that take at most ``FRAMES_IN_MEMORY``, or any number that reads slowly, within a quarter of memory.

    Each of several processes holds its own, so that they share the quarter. ``say`` takes a line where many are loaded,
    and one where frames that read slowly stay in their files.

    Raises:
        VOCError: a frame that cannot be read, or a file that changed.
    """
    needed, share = frame_bytes(dataset), machine_memory() // (4 * ranks().size)
    size = f"frames: {needed / 2**30:.1f} GiB lie in compressed chunks of many frames"
    if needed <= min(share, FRAMES_IN_MEMORY):
        dataset.load_frames()
    elif dataset.reads_slowly and needed <= share:
        say(f"{size}, and are loaded once")
        dataset.load_frames()
    elif dataset.reads_slowly:
        say(f"{size}, too many to load, and are read slowly; `voc-rl data convert` makes files that read fast")

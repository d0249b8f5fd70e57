"""Which data these are: a short hash of a dataset, by which what was made of others is told apart."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict

import numpy as np

from voc_rl.configs import fingerprint
from voc_rl.data.episodes import Episodes

FRAMES_IN_MEMORY = 2 * 1024**3  # bytes; more frames stay on disk, unless single ones read slowly


def frame_bytes(dataset: Episodes) -> int:
    """Bytes of all its frames in memory."""
    return len(dataset) * math.prod(dataset.frame_shape)


def data_mark(dataset: Episodes) -> str:
    """A short hash of a dataset: its small arrays, how it was made, and its frames.

    Of more than ``FRAMES_IN_MEMORY`` bytes of frames that are on disk: the first, the middle and the last of each
    episode, and the sizes of the files, which are compressed. Whether they were loaded makes no difference.
    """
    digest = hashlib.sha256()
    for array in (dataset.reward, dataset.action, dataset.discount, dataset.step_type):
        digest.update(array.tobytes())
    sizes = []
    if not dataset.on_disk or frame_bytes(dataset) <= FRAMES_IN_MEMORY:
        parts = dataset.blocks()
    else:
        parts = [np.unique([dataset.starts, (dataset.starts + dataset.ends - 1) // 2, dataset.ends - 1])]
        sizes = [path.stat().st_size for path in dataset.paths if path.is_file()]  # others are held, and have none
    for rows in parts:
        digest.update(dataset.frames(rows).tobytes())
    return fingerprint(digest.hexdigest(), sizes, dataset.frame_shape, asdict(dataset.spec))

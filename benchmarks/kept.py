"""Arrays that a benchmark makes once and keeps, with a note of what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voc_rl.checkpoints import load_tensors, read_json, save_tensors, write_json
from voc_rl.errors import VOCError


def kept_arrays(
    path: Path, words: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file, or make and write them.

    Args:
        path: the file; the note is a .json beside it.
        words: JSON-ready settings, all that the arrays depend on.

    Raises:
        VOCError: the file was made from other words.
    """
    note = path.with_suffix(".json")
    if not path.exists():
        arrays = make()
        write_json(note, dict(words))  # first: a file without its note would be of no known protocol
        save_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()})
    if read_json(note) != dict(words):
        raise VOCError(f"{path} was made by another protocol; choose another --out.")
    return {name: tensor.numpy() for name, tensor in load_tensors(path).items()}

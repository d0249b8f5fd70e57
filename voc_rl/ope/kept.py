"""Where an evaluator keeps the states of its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.checkpoints import checkpoint_folder
from voc_rl.configs import fingerprint
from voc_rl.data import Episodes
from voc_rl.data.mark import data_mark
from voc_rl.loop import Checkpoints, LoopConfig, kept_every
from voc_rl.model_files import tensors_mark
from voc_rl.precision import precision
from voc_rl.training import VOCConfig, settings_marks


class KeptTrainings:
    """A folder with a file for each training on ``dataset``, named after all that decides what it learns.

    Trainings that answer different questions so lie side by side, and what two questions share is trained once.

    Raises:
        VOCError: no path, or one that cannot be written.
    """

    def __init__(self, folder: str | Path, dataset: Episodes) -> None:
        self.folder, self.dataset = checkpoint_folder(folder), dataset

    def quantizer(self, config: VOCConfig) -> Checkpoints:
        """Of the quantizer that ``config`` trains on the dataset."""
        mark = settings_marks(data_mark(self.dataset), self.dataset.stack, config)[0]
        return self._file("quantizer", mark, config.quantizer_training)

    def of(
        self, stage: str, loop: LoopConfig, learned: Mapping[str, np.ndarray | Tensor], *settings: Any
    ) -> Checkpoints:
        """Of a training on the logged steps and on the arrays ``learned``, by ``loop`` and other ``settings``."""
        names = ("reward", "action", "step_type", "terminal")
        arrays = {**{f"logged {name}": getattr(self.dataset, name) for name in names}, **learned}
        tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        return self._file(stage, fingerprint(tensors_mark(tensors), precision(), settings), loop)

    def _file(self, stage: str, mark: str, loop: LoopConfig) -> Checkpoints:
        return Checkpoints(self.folder / f"{stage}-{mark}.pt", mark, kept_every(loop.steps))

"""Episodes that are left out of a dataset, with a count and a reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from voc_rl.data.episodes import Episodes
from voc_rl.errors import VOCError


def single_rows(dataset: Episodes) -> dict[int, str]:
    """Episodes without a step as ``without`` takes them: their rows, and what is wrong."""
    return {int(row): "a single row" for row in dataset.starts[dataset.ends - dataset.starts < 2]}


def without(dataset: Episodes, malformed: dict[int, str], name: Path | str) -> Episodes:
    """A dataset without the episodes that begin at some rows; says how many they are, and what is wrong with one.

    Raises:
        VOCError: no episode is left.
    """
    if not malformed:
        return dataset
    row, reason = min(malformed.items())
    left = np.flatnonzero(~np.isin(dataset.starts, list(malformed)))
    if len(left) == 0:
        raise VOCError(f"{name} holds no whole episode (the first has {reason}); at least one is needed.")
    warnings.warn(
        f"{name}: {len(malformed)} malformed episode(s) of {len(dataset.starts)} left out; "
        f"the first, at row {row}: {reason}.",
        stacklevel=4,
    )
    opened = dataset.subset(left)
    opened.source_rows = np.arange(len(opened))  # what is left is the dataset, of which others take subsets
    return opened


def with_steps(dataset: Episodes) -> Episodes:
    """A dataset without the episodes of a single row, which hold no step and have no place in most formats.

    Raises:
        VOCError: no episode is left.
    """
    return without(dataset, single_rows(dataset), str(dataset))

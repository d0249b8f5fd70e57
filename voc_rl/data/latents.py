"""The paper's latent files: a V-D4RL 84 px shard with one more array, the codes of every single frame.

    vae_latents   int64 (N, 25)    5 x 5 codes below 1024
    dino_latents  int64 (N, 196)   14 x 14 codes below 8192

``Episodes.open`` reads the rest of such a file; observations are stacks of frames, and their codes are the frames'
codes one after another, oldest frame first.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import ArrayLike

from voc_rl.data.border import read_numbers, reading, stored_array
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import FRAMES
from voc_rl.data.vd4rl import write_vd4rl
from voc_rl.errors import VOCError, check_choice

LATENTS = {"dino_latents": 196, "vae_latents": 25}  # codes of a frame in the paper's files


def read_latents(dataset: Episodes, key: str, codebook_size: int) -> np.ndarray:
    """Codes int64 (N, n) of the single frame of every row of a dataset, from its own files.

    A file may have got its codes since the dataset was opened, as ``write_latents`` over it does, but no other rows.

    Raises:
        VOCError: an unknown key, a file without it, another number of rows than frames, or codes that are no whole
            numbers from 0 to ``codebook_size`` - 1, data that are held in memory, or files that hold other rows
            (another number, or other actions) than those that were opened.
    """
    check_choice(key, LATENTS, "latent key")
    if dataset.in_memory and not all(h5py.is_hdf5(path) for path in dataset.paths):
        raise VOCError(f"{dataset} is held in memory and has no latent files; an HDF5 file with {key} is needed.")
    parts, actions = zip(*(_read(path, key, codebook_size) for path in dataset.paths), strict=True)
    rows, width = dataset.file_rows, dataset.action.shape[1:]
    same = [len(part) for part in parts] == rows and [part.shape for part in actions] == [(n, *width) for n in rows]
    if not same or not np.array_equal(np.concatenate(actions)[dataset.stored_rows], dataset.action):
        raise VOCError(f"The files of {dataset} hold other rows than when they were opened; open the dataset again.")
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise VOCError(
            f"{key} has {' and '.join(map(str, widths))} codes per frame in different files; keep them apart."
        )
    return np.concatenate(parts)[dataset.stored_rows]


def _read(path: Path, key: str, codebook_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes int64 (rows, n) of a file, and the actions float32 (rows, A) that tell whose they are."""
    with reading(path, "HDF5", "a file with the codes of its frames"), h5py.File(path, "r") as file:
        stored, frames, action = (stored_array(file, name, path) for name in (key, FRAMES, "action"))
        if stored is None or frames is None or action is None:
            raise VOCError(f"{path} has no {key}; a file with the codes of its frames is needed.")
        codes, rows = read_numbers(stored, f"{path}: {key}"), len(frames)
        actions = read_numbers(action, f"{path}: action").astype(np.float32)
    if codes.ndim != 2 or len(codes) != rows:
        raise VOCError(f"{path}: {key} has shape {codes.shape}; one row of codes for each of {rows} frames is needed.")
    if not np.issubdtype(codes.dtype, np.integer):
        raise VOCError(f"{path}: {key} has dtype {codes.dtype}; whole numbers are needed.")
    if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
        raise VOCError(f"{path}: {key} lies in {codes.min()}..{codes.max()}; 0..{codebook_size - 1} is the codebook.")
    return codes.astype(np.int64), actions


def stack_latents(dataset: Episodes, latents: ArrayLike) -> np.ndarray:
    """Codes of single frames (N, n) -> codes of the observations int64 (N, K n), oldest frame first.

    Raises:
        VOCError: another number of rows than the dataset's.
    """
    latents = np.asarray(latents)
    if latents.ndim != 2 or len(latents) != len(dataset):
        raise VOCError(
            f"Latents have shape {latents.shape}; one row for each of the dataset's {len(dataset)} is needed."
        )
    return latents[dataset.stacked_rows(np.arange(len(dataset)))].reshape(len(dataset), -1)


def write_latents(path: str | Path, dataset: Episodes, latents: ArrayLike, key: str) -> None:
    """Write a dataset with the codes (N, n) of its single frames, an array or a tensor, as one file with exactly the
    paper's keys.

    Raises:
        VOCError: an unknown key, codes that are not whole numbers, another number of rows than the dataset's, or of
            codes in a row than the key has.
    """
    check_choice(key, LATENTS, "latent key")
    latents = np.asarray(latents)
    if latents.ndim != 2 or len(latents) != len(dataset) or not np.issubdtype(latents.dtype, np.integer):
        raise VOCError(
            f"Latents are {latents.dtype} {latents.shape}; whole numbers, one row for each of the dataset's "
            f"{len(dataset)}, are needed."
        )
    if latents.shape[1] != LATENTS[key]:
        raise VOCError(
            f"Latents have {latents.shape[1]} codes a row; {key} has {LATENTS[key]}, those of a single frame (tokenise "
            "Episodes.open(path, stack=1) with a tokenizer of one frame)."
        )
    write_vd4rl(path, dataset, {key: latents.astype(np.int64)})

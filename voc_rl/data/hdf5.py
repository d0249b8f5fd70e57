"""One HDF5 layout: the keys of V-D4RL's 84 px shards, plus ours where we have them.

Rows are *previous-action* aligned (row t leads from t-1 to t)::

    row          0        1        2    ...   T-1
    observation  o_0      o_1      o_2        o_{T-1}
    action       0        a_0      a_1        a_{T-2}      the action that led to the row
    reward       0        r_1      r_2        r_{T-1}      on arrival
    discount     1        d_1      d_2        d_{T-1}      on arrival; 0 at a termination
    step_type    0        1        1          2            first, mid, last

One chunk holds one frame, so that a random frame costs one small read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np

from voc_rl.checkpoints import atomic_path
from voc_rl.data.border import data_files, file_stamp, read_numbers, reading, stored_array
from voc_rl.data.spec import SPEC_ATTRIBUTE, DataSpec, parse_spec
from voc_rl.errors import VOCError

FIRST, MID, LAST = 0, 1, 2
SUFFIXES = (".hdf5", ".h5")  # by which episodes in a folder are known

# name -> (key on disk, dtype in memory, axes after the rows; None: any number of axes is refused)
REQUIRED: dict[str, tuple[str, Any, int]] = {
    "action": ("action", np.float32, 1),
    "reward": ("reward", np.float32, 0),
    "discount": ("discount", np.float32, 0),
    "step_type": ("step_type", np.uint8, 0),
}
OPTIONAL: dict[str, tuple[str, Any, int]] = {
    "state": ("state", np.float32, 1),
    "physics": ("physics", np.float64, 1),
    "log_prob": ("log_prob", np.float32, 0),
    "unclipped_action": ("unclipped_action", np.float32, 1),
    "policy_id": ("policy_id", np.int16, 0),
}
COLUMNS = {**REQUIRED, **OPTIONAL}
# name -> lowest and highest value; a hundredth of a per cent is for bounds that float32 has rounded
RANGES = {"action": (-1.0001, 1.0001), "discount": (0.0, 1.0001)}
FRAMES = "observation"


@dataclass(frozen=True)
class Episode:
    """One whole episode of T rows (alignment: module docstring).

    frames (T, 3, H, W) uint8; action (T, A) float32 in [-1, 1]; reward, discount (T,) float32; step_type (T,) uint8.
    Optional: state (T, S) float32, physics (T, P) float64 (the simulator's state: MuJoCo's mjSTATE_INTEGRATION vector,
    or D4RL's qpos and then qvel), log_prob (T,) float32 of ``unclipped_action`` (T, A),
    policy_id (T,) int16, the member of a mixture that acted.
    """

    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    step_type: np.ndarray
    state: np.ndarray | None = None
    physics: np.ndarray | None = None
    log_prob: np.ndarray | None = None
    unclipped_action: np.ndarray | None = None
    policy_id: np.ndarray | None = None

    def __repr__(self) -> str:
        ends = "terminated" if self.discount[-1] == 0 else "truncated"
        return f"Episode({len(self.reward)} rows, return {self.reward.sum():.4g}, {ends})"


def whole_step_types(rows: int) -> np.ndarray:
    """Step types of one whole episode, uint8 (rows,): first, mid ..., last."""
    step_type = np.full(rows, MID, np.uint8)
    step_type[0], step_type[-1] = FIRST, LAST
    return step_type


def checked_episode(episode: Episode, where: str) -> dict[str, np.ndarray]:
    """The small arrays of one whole episode by name, in the dtypes that they have on disk; frames are looked at too.

    Raises:
        VOCError: arrays of unequal length, other dtypes, NaN, or rows that are not one whole episode.
    """
    given = {f.name: getattr(episode, f.name) for f in fields(episode)}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    frames = arrays.pop("frames")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise VOCError(
            f"{where}: frames are {frames.dtype} {frames.shape}; uint8 (T, 3, H, W) is needed (of gray ones "
            "(T, H, W): np.repeat(frames[:, None], 3, 1))."
        )
    small = checked_columns(arrays, len(frames), where)
    step_type = small["step_type"]
    if len(frames) < 2 or step_type[0] != FIRST or step_type[-1] != LAST or (step_type[1:-1] != MID).any():
        raise VOCError(f"{where}: the rows are not one whole episode (step types first, mid ..., last).")
    return small


def without_frames(physics: np.ndarray | None) -> str:
    """For messages about data without frames: what they have, and where frames could come from."""
    if physics is None:
        return (
            "states but no frames, and no simulator states to draw them from; data with pictures are needed, or for "
            "values of policies voc-rl ope --features state"
        )
    return "states but no frames; voc_rl.envs.render_states draws those of HalfCheetah and Walker2d"


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file in memory, written to ``path`` in one step when the block ends well.

    Not on disk from the start: where the disk is full libhdf5 cannot close its file and ends the interpreter.
    """
    name = uuid4().hex  # one open file in a process may have it: threads write files of the same name to other folders
    with h5py.File(name, "w", driver="core", backing_store=False, block_size=2**22) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def write_episode(path: str | Path, episode: Episode, spec: DataSpec) -> None:
    """Write one episode as one file, in one step.

    Raises:
        VOCError: a path that does not end in .hdf5 (or .h5), arrays of unequal length, other dtypes, NaN, rows that are
            not one whole episode, no frames, or no ``DataSpec``.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise VOCError(f"{path} does not end in .hdf5, by which the episodes of a folder are known; add it.")
    if not isinstance(spec, DataSpec):
        raise VOCError(f"spec is {spec!r}; a DataSpec is needed, as DataSpec(task='walker').")
    small, frames = checked_episode(episode, str(path)), np.asarray(episode.frames)
    if frames.size == 0:
        raise VOCError(f"{path}: the episode has {without_frames(episode.physics)}.")
    with new_hdf5(path) as file:
        file.attrs[SPEC_ATTRIBUTE] = json.dumps(asdict(spec))
        file.create_dataset(
            FRAMES,
            data=frames,
            chunks=(1, *frames.shape[1:]),
            compression="gzip",
            compression_opts=1,
            shuffle=False,
        )
        for name, array in small.items():
            # V-D4RL keeps step types as floats; its own loaders compare them as numbers
            data = array.astype(np.float64) if name == "step_type" else array
            file.create_dataset(COLUMNS[name][0], data=data)


def checked_columns(arrays: dict[str, np.ndarray], rows: int, where: str) -> dict[str, np.ndarray]:
    """Arrays by their names in ``COLUMNS``, in its dtypes.

    Raises:
        VOCError: another shape or dtype, NaN, or numbers outside what they stand for.
    """
    columns = {name: _checked(array, name, rows, where) for name, array in arrays.items()}
    if not np.isin(columns["step_type"], (FIRST, MID, LAST)).all():
        raise VOCError(f"{where}: step_type holds values other than 0 (first), 1 (mid), 2 (last).")
    return columns


def check_shape(array: np.ndarray, name: str, rows: int, where: str) -> None:
    """One row of numbers for every row of the file, with as many axes as the name has.

    Raises:
        VOCError: another shape or dtype.
    """
    key, _, axes = COLUMNS[name]
    if array.ndim != axes + 1 or len(array) != rows:
        hint = "; discrete actions are stored one-hot" if name == "action" else ""
        raise VOCError(f"{where}: {key} has shape {array.shape}; {rows} rows and {axes + 1} axes are needed{hint}.")
    if array.dtype.kind not in "biuf":
        raise VOCError(f"{where}: {key} has dtype {array.dtype}; numbers are needed.")


def _checked(array: np.ndarray, name: str, rows: int, where: str) -> np.ndarray:
    key, dtype, _ = COLUMNS[name]
    check_shape(array, name, rows, where)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=dtype)
    finite = np.isfinite(array) & np.isfinite(converted)
    if not finite.all():
        row = int(np.flatnonzero(~finite.reshape(rows, -1).all(1))[0])
        raise VOCError(f"{where}: {key} holds NaN or infinity (first at row {row}); finite numbers are needed.")
    if np.issubdtype(dtype, np.integer) and (converted != array).any():
        row = int(np.flatnonzero(converted != array)[0])
        raise VOCError(f"{where}: {key} holds {array[row]} (row {row}); a whole number as {dtype.__name__} is needed.")
    low, high = RANGES.get(name, (-np.inf, np.inf))
    inside = (converted >= low) & (converted <= high)
    if not inside.all():
        row = int(np.flatnonzero(~inside.reshape(rows, -1).all(1))[0])
        value = array[row][~inside[row]][0] if array.ndim > 1 else array[row]
        hint = " (divide by the bounds; discrete ones are stored one-hot)" if name == "action" else ""
        raise VOCError(f"{where}: {key} holds {value:.6g} (row {row}); {low:.0f} to {high:.0f} is needed{hint}.")
    return converted


@dataclass(frozen=True)
class Shard:
    """The small arrays of one file, in memory; its frames stay on disk."""

    path: Path
    rows: int
    frame_shape: tuple[int, int, int]
    arrays: dict[str, np.ndarray]
    spec: DataSpec
    stamp: tuple[int, int] | None = None  # of the file, as it was read; None where nothing is read from it later
    chunk: int = 1  # frames of which one chunk of the file has a part; to read one, all of them are decompressed


def hdf5_files(path: Path, untrusted: bool = False) -> list[Path]:
    """The HDF5 files that a path stands for: itself, or those of a folder.

    Raises:
        VOCError: a folder without one, or a name with a format before it.
    """
    if not path.is_dir():
        if re.match(r"\w\w+:", str(path)) and not path.exists():
            raise VOCError(f"{path} does not exist; voc_rl.data.load_dataset opens FORMAT:PLACE, Episodes.open a path.")
        return [path]
    files = data_files(path, SUFFIXES, untrusted)
    if not files:
        hint = "; voc_rl.data.load_dataset reads .npz files" if data_files(path, (".npz",)) else ""
        raise VOCError(f"{path} holds zero episodes: no .hdf5 file is in it{hint}.")
    return files


def episode_shard(episode: Episode, path: Path, spec: DataSpec) -> Shard:
    """One whole episode as a file's; ``path`` is what messages call it.

    Raises:
        VOCError: as ``checked_episode``.
    """
    arrays = checked_episode(episode, str(path))
    rows, *shape = np.shape(episode.frames)
    return Shard(path, rows, tuple(shape), arrays, spec)


def read_shard(path: Path) -> Shard:
    """Read the small arrays of one file in our layout or V-D4RL's 84 px layout.

    Raises:
        VOCError: as ``read_raw``, or wrong shapes or NaN.
    """
    shard = read_raw(path)
    return replace(shard, arrays=checked_columns(shard.arrays, shard.rows, str(path)))


def read_raw(path: Path) -> Shard:
    """As ``read_shard``, but ``arrays`` are as they are stored, any numbers of any shape.

    Raises:
        VOCError: the file is missing, truncated or not HDF5, lacks a key, or holds no frames or no numbers.
    """
    needed = f"an HDF5 file with {FRAMES}, action, reward, ..."
    with reading(path, "HDF5", needed):
        stamp = file_stamp(path)
        with h5py.File(path, "r") as file:
            return replace(_read_shard(Path(path), file), stamp=stamp)


def _read_shard(path: Path, file: h5py.File) -> Shard:
    keys = [FRAMES, *(key for key, _, _ in COLUMNS.values())]
    stored = {key: array for key in keys if (array := stored_array(file, key, path)) is not None}
    missing = [key for key in [FRAMES, *(key for key, _, _ in REQUIRED.values())] if key not in stored]
    if missing:
        hint = "; voc_rl.data.load_dataset reads D4RL's files" if "observations" in file else ""
        raise VOCError(f"{path} lacks {', '.join(missing)}; the keys of a V-D4RL 84 px file are needed{hint}.")
    frames = stored[FRAMES]
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise VOCError(f"{path}: {FRAMES} is {frames.dtype} {frames.shape}; uint8 (N, 3, H, W) is needed.")
    arrays = {
        name: read_numbers(stored[key], f"{path}: {key}") for name, (key, _, _) in COLUMNS.items() if key in stored
    }
    spec, chunk = _read_spec(path, file, frames.shape[-1]), (frames.chunks or (1,))[0]
    return Shard(path, len(frames), tuple(frames.shape[1:]), arrays, spec, chunk=chunk)


def _read_spec(path: Path, file: h5py.File, size: int) -> DataSpec:
    if SPEC_ATTRIBUTE not in file.attrs:
        return DataSpec(size=size)
    return parse_spec(file.attrs[SPEC_ATTRIBUTE], path)

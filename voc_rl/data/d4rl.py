"""D4RL's files of states: flat HDF5 arrays, N steps one after another, *next-action* aligned.

    step             0     1     ...  T-1
    observations     o_0   o_1        o_T-1
    actions          a_0   a_1        a_T-1      taken at the step
    rewards          r_1   r_2        r_T        of that action
    terminals        0     0          0 or 1     the action led to a termination
    timeouts         0     0          0 or 1     the action was the last of the time limit; some files lack it
    next_observations o_1  o_2        o_T        some files lack it
    infos/qpos, infos/qvel                       the simulator's state at the step

Our row t holds o_t, a_{t-1}, r_t (``voc_rl.data.hdf5``), so that T steps make T + 1 rows. The last row is the state
after the last action: of ``next_observations``, or else o_T-1 once more, because the file does not have it.

There are no pictures: ``voc_rl.envs.render_states`` draws them from ``physics`` (qpos, then qvel), of which the last
row always repeats the one before; the renderer steps the simulator for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voc_rl.data.border import read_numbers, reading, stored_array
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import Shard, checked_columns, whole_step_types
from voc_rl.data.spec import DataSpec
from voc_rl.errors import VOCError, check_positive

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations", "infos/qpos", "infos/qvel")
MAX_EPISODE_STEPS = 1000  # of the MuJoCo tasks; ends an episode where a file does not say when its clock ran out
# of D4RL's `infos`: returns of a random and of an expert policy
REFERENCE_RETURNS = {
    "HalfCheetah-v5": (-280.178953, 12135.0),
    "Walker2d-v5": (1.629008, 4592.3),
    "Hopper-v5": (-20.272305, 3234.3),
}


def open_d4rl(location: str | Path, stack: int = 3, max_episode_steps: int = MAX_EPISODE_STEPS) -> Episodes:
    """Open a file, or a name such as ``halfcheetah-medium-v2`` through the package d4rl where that imports, which
    downloads the file of that name once.

    The episodes have ``state``, and ``physics`` where the file has the simulator's states, but no frames.

    Raises:
        VOCError: no such file, damaged arrays, or a name and no working package.
    """
    check_positive(max_episode_steps, "max_episode_steps")
    path = Path(location)
    if not path.exists() and re.fullmatch(r"[\w-]+-v\d+", str(location)):
        return _dataset(_from_package(str(location)), path, stack, max_episode_steps)
    if path.is_dir():
        raise VOCError(f"{path} is a folder; one HDF5 file of D4RL is needed, as d4rl:FILE.hdf5.")
    with reading(path, "HDF5", "an HDF5 file of D4RL with observations, actions, rewards, terminals"):
        with h5py.File(path, "r") as file:
            stored = {key: stored_array(file, key, path) for key in (*REQUIRED, *OPTIONAL)}
            arrays = {key: read_numbers(a, f"{path}: {key}") for key, a in stored.items() if a is not None}
        return _dataset(arrays, path, stack, max_episode_steps)


def _from_package(name: str) -> Mapping[str, Any]:
    """What d4rl's ``get_dataset`` gives; the package ends the interpreter where MuJoCo 2.1 is missing."""
    route = f"download the dataset's file and open it as d4rl:FILE.hdf5 instead of d4rl:{name}"
    try:
        import_module("d4rl")  # registers its environments
        gym = import_module("gym")
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise VOCError(f"The package d4rl does not import here ({reason}); {route}.") from error
    try:
        return gym.make(name).get_dataset()
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise VOCError(f"d4rl has no dataset for {name} ({reason}); {route}.") from error


def _dataset(arrays: Mapping[str, Any], path: Path, stack: int, max_episode_steps: int) -> Episodes:
    flat = _checked(arrays, path)
    ends = _ends(flat, path, max_episode_steps)
    steps = len(flat["rewards"])
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(int)
    # the step whose state a row shows: each one, and the last of an episode once more
    shown = np.insert(np.arange(steps), ends + 1, ends)
    first, last = starts + np.arange(len(starts)), ends + 1 + np.arange(len(ends))
    led = np.delete(np.arange(len(shown)), first)  # rows that an action led to, in the order of the actions
    discount = np.ones(len(shown), np.float32)
    discount[last] = ~flat["terminals"][ends]
    state = flat["observations"].astype(np.float64)[shown]  # what comes from next_observations may be no whole number
    if "next_observations" in flat:
        state[last] = flat["next_observations"][ends]
    columns = {
        "action": _at(led, flat["actions"], len(shown)),
        "reward": _at(led, flat["rewards"], len(shown)),
        "discount": discount,
        "step_type": np.concatenate([whole_step_types(rows) for rows in last - first + 1]),
        "state": state,
    }
    if "infos/qpos" in flat and "infos/qvel" in flat:
        columns["physics"] = np.concatenate([flat["infos/qpos"], flat["infos/qvel"]], 1).astype(np.float64)[shown]
    counted = "timeouts" not in flat and "next_observations" not in flat
    limit = max_episode_steps if counted else DataSpec.max_episode_steps
    spec = DataSpec(task=_task(path.name), action_repeat=1, max_episode_steps=limit)
    shard = Shard(path, len(shown), (3, 0, 0), checked_columns(columns, len(shown), str(path)), spec)
    return Episodes([shard], stack)


def _at(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *values.shape[1:]), values.dtype)
    out[rows] = values
    return out


def _checked(arrays: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The arrays with one row for every step; flags as bool."""
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise VOCError(f"{path} lacks {', '.join(missing)}; the keys of a D4RL file are needed.")
    flat = {key: np.asarray(arrays[key]) for key in (*REQUIRED, *OPTIONAL) if key in arrays}
    for key in ("rewards", "terminals", "timeouts"):
        if key in flat and flat[key].ndim == 2 and flat[key].shape[1] == 1:  # older files
            flat[key] = flat[key][:, 0]
    steps = len(flat["rewards"]) if flat["rewards"].ndim else 0
    if steps == 0:
        raise VOCError(f"{path} holds zero episodes; at least one is needed.")
    for key, array in flat.items():
        axes = 1 if key in ("rewards", "terminals", "timeouts") else 2
        if array.ndim != axes or len(array) != steps or array.size == 0:
            raise VOCError(f"{path}: {key} has shape {array.shape}; {steps} steps and {axes} axes are needed.")
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise VOCError(f"{path}: {key} is {array.dtype} or holds NaN or infinity; finite numbers are needed.")
        if key in ("terminals", "timeouts"):
            if not np.isin(array, (0, 1)).all():
                raise VOCError(f"{path}: {key} holds numbers other than 0 and 1.")
            flat[key] = array.astype(bool)
    if "next_observations" in flat and flat["next_observations"].shape != flat["observations"].shape:
        raise VOCError(f"{path}: next_observations has shape {flat['next_observations'].shape}, unlike observations.")
    return flat


def _ends(flat: dict[str, np.ndarray], path: Path, max_episode_steps: int) -> np.ndarray:
    """The last step of every episode."""
    ends = flat["terminals"].copy()
    if "timeouts" in flat:
        ends |= flat["timeouts"]
    ends[-1] = True  # the file stops here
    if "next_observations" in flat:
        # where the next step does not go on from here, the clock ran out, whether or not that is said
        jumps = _differ(flat["next_observations"][:-1], flat["observations"][1:]) & ~ends[:-1]
        ends[:-1] |= jumps
        if 2 * jumps.sum() > len(ends):
            warnings.warn(
                f"{path}: {jumps.sum()} of {len(ends)} steps are not followed by the next one and end episodes: "
                "next_observations may be of other steps.",
                stacklevel=4,
            )
        elif jumps.any() and "timeouts" in flat:
            warnings.warn(
                f"{path}: {jumps.sum()} step(s) that the next one does not follow end episodes.", stacklevel=4
            )
    elif "timeouts" not in flat:
        for start in np.concatenate([[0], np.flatnonzero(ends[:-1]) + 1]):
            following = np.flatnonzero(ends[start:])[0] + start
            ends[start + max_episode_steps - 1 : following : max_episode_steps] = True
    return np.flatnonzero(ends)


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows that differ, bool (N,), once both are as coarse as the coarser float: each may be stored in its own."""
    floats = [array.dtype for array in (one, other) if array.dtype.kind == "f"]
    dtype = min(floats, key=lambda found: found.itemsize, default=np.result_type(one, other))
    return (one.astype(dtype) != other.astype(dtype)).any(1)


def _task(name: str) -> str:
    """Gymnasium's name of the task that a file's name begins with; empty where it is none of those known."""
    known = {task.split("-")[0].lower(): task for task in REFERENCE_RETURNS}
    return known.get(re.split(r"[-_.]", name.lower())[0], "")


def normalized_scores(dataset: Episodes, reference: tuple[float, float] | None = None) -> np.ndarray:
    """D4RL's score of every episode's return, float64 (E,): 0 is a random policy, 100 an expert.

    Args:
        dataset: episodes of rewards that were not changed since.
        reference: returns of a random and of an expert policy; None takes D4RL's own for the dataset's task.

    Raises:
        VOCError: no reference is known, or the two are equal.
    """
    if reference is None:
        if dataset.spec.task not in REFERENCE_RETURNS:
            known = ", ".join(REFERENCE_RETURNS)
            raise VOCError(f"No reference returns are known for task {dataset.spec.task!r} (known: {known}); give two.")
        reference = REFERENCE_RETURNS[dataset.spec.task]
    random, expert = reference
    if random == expert:
        raise VOCError(f"The reference returns are both {random}; two different ones are needed.")
    return 100 * (dataset.returns - random) / (expert - random)

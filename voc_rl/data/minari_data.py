"""Minari's datasets, read and written episode by episode.

An episode of T steps is *next-action* aligned there, with one observation more than actions::

    step            0     1         T-1     T
    observations    o_0   o_1  ...  o_T-1   o_T
    actions         a_0   a_1  ...  a_T-1
    rewards         r_1   r_2  ...  r_T            of the same step's action
    infos           i_0   i_1  ...  i_T-1   i_T

Our row t holds o_t, a_{t-1}, r_t (``voc_rl.data.hdf5``): T + 1 rows, nothing is lost at the ends.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voc_rl.checkpoints import hold_folder, read_json, writing
from voc_rl.data.border import TO_FILES, check_memory, check_space, check_tree, data_files, reading
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import COLUMNS, Episode, whole_step_types
from voc_rl.data.malformed import with_steps
from voc_rl.data.minari_actions import ActionReader
from voc_rl.data.minari_names import import_minari, minari_folder, named_folder
from voc_rl.data.minari_observations import read_observations, sorted_leaves
from voc_rl.data.spec import SPEC_ATTRIBUTE, DataSpec, parse_spec
from voc_rl.errors import VOCError
from voc_rl.progress import progress_bar

_SLACK = 2**23  # bytes of a disk that are left free for what libhdf5 writes when it closes a file
# what our rows hold beyond Minari's own arrays; written as infos
_OURS = ("discount", "state", "physics", "log_prob", "unclipped_action", "policy_id")


def open_minari(name: str, stack: int = 3, untrusted: bool = False) -> Episodes:
    """Read a dataset of the local Minari folder (``namespace/name-v0``) or of a folder given as a path, into memory.

    Pictures are uint8 (H, W, 3K) or (3K, H, W), of which the newest frame is kept; flat observations and single
    numbers become ``state``. Actions of other bounds than [-1, 1] are rescaled to them, with a warning; discrete ones
    become one-hot.

    Raises:
        VOCError: no such dataset, spaces that have no place here, damaged files, more than the machine's memory, or
            minari is not installed.
    """
    folder = minari_folder(name)
    data_files(folder, (".json", ".hdf5"), untrusted)  # refuses links that leave the folder
    episodes = minari_episodes(folder)
    first = list(islice(episodes, 1))
    for episode in first:  # what is stored may be compressed, and holds whole stacks
        size = sum(array.nbytes for array in vars(episode).values() if array is not None)
        check_memory(_rows(folder) * size // len(episode.reward), f"Every frame of {folder}", TO_FILES)
    return Episodes.from_episodes(chain(first, episodes), minari_spec(folder), folder, stack)


def minari_spec(folder: Path) -> DataSpec:
    """What we wrote of how the frames were made; the environment's name alone where others wrote the dataset."""
    metadata = read_json(folder / "metadata.json", "Minari's metadata")
    if SPEC_ATTRIBUTE in metadata:
        return parse_spec(metadata[SPEC_ATTRIBUTE], folder / "metadata.json")
    try:
        return DataSpec(task=str(json.loads(metadata["env_spec"])["id"]))
    except (KeyError, TypeError, ValueError):
        return DataSpec()


def minari_episodes(folder: Path) -> Iterator[Episode]:
    """Episode after episode, in the order of their numbers.

    Raises:
        VOCError: damaged files, spaces that have no place here, or minari is not installed.
    """
    import_minari()
    from minari.dataset.minari_storage import MinariStorage

    metadata, count = read_json(folder / "metadata.json", "Minari's metadata"), minari_count(folder)
    needed = "a Minari dataset in the format hdf5"
    with reading(folder, "Minari", needed):
        storage = MinariStorage.read(folder)
        actions = ActionReader.of(storage.action_space, folder)
    raw = storage.get_episodes(range(count))
    for i in range(count):
        with reading(folder, "Minari", needed):
            arrays = next(iter(raw))
            if i == 0 and (others := sorted_leaves(arrays["observations"])[2]):
                found = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in others)
                warnings.warn(f"{folder}: of the observations, {found} have no place here; left out.", stacklevel=2)
            episode = _episode(arrays, f"{folder}, episode {i}", SPEC_ATTRIBUTE in metadata, actions)
        yield episode


def minari_count(folder: Path) -> int:
    """The number of episodes, once the files are known to hold what they declare.

    Raises:
        VOCError: files that do not.
    """
    where = folder / "metadata.json"
    metadata = read_json(where, "Minari's metadata")
    missing = [key for key in ("observation_space", "action_space", "total_episodes") if key not in metadata]
    if missing:
        # Minari would make the environment that the file names, and so run code of the file's choice.
        raise VOCError(f"{where} lacks {', '.join(missing)}; a dataset that states its spaces is needed.")
    if metadata.get("data_format") != "hdf5":
        raise VOCError(f"{where}: data_format is {metadata.get('data_format')!r}; 'hdf5' is needed.")
    path = folder / "main_data.hdf5"
    with reading(path, "HDF5", "Minari's main_data.hdf5"), h5py.File(path, "r") as file:
        check_tree(file, path)
        count = len(file)
        if metadata["total_episodes"] != count or any(f"episode_{i}" not in file for i in range(count)):
            raise VOCError(
                f"{path} holds {count} groups, but metadata.json says {metadata['total_episodes']} episodes; "
                "the dataset is not whole."
            )
    return count


def _rows(folder: Path) -> int:
    """How many rows all episodes make, of files that ``minari_count`` looked at."""
    path = folder / "main_data.hdf5"
    with reading(path, "HDF5", "Minari's main_data.hdf5"), h5py.File(path, "r") as file:
        return sum(len(file[name]["rewards"]) + 1 for name in file)


def _episode(raw: dict[str, Any], where: str, ours: bool, reader: ActionReader) -> Episode:
    rewards, actions = np.asarray(raw["rewards"]), np.asarray(raw["actions"])
    terminations, truncations = np.asarray(raw["terminations"], bool), np.asarray(raw["truncations"], bool)
    steps = len(rewards)
    if steps == 0 or actions.shape != (steps, *reader.shape) or not terminations.shape == truncations.shape == (steps,):
        raise VOCError(f"{where}: {steps} rewards, actions {actions.shape}, ends {terminations.shape} do not fit.")
    if (terminations | truncations)[:-1].any():
        raise VOCError(f"{where}: a step before the last one is marked as the end; split the episode there.")
    frames, state = read_observations(raw["observations"], where)
    rows = steps + 1
    if len(frames) != rows:
        raise VOCError(f"{where}: {len(frames)} observations for {steps} steps; {rows} are needed.")
    actions = reader.read(actions, where)
    discount = np.ones(rows, np.float32)
    discount[-1] = not terminations[-1]
    infos = raw.get("infos") or {}
    columns = {name: np.asarray(infos[name]) for name in _OURS if name in infos} if ours else {}
    columns = {"discount": discount, **({} if state is None else {"state": state}), **columns}
    if columns["discount"].shape != (rows,) or (columns["discount"][-1] == 0) != terminations[-1]:
        raise VOCError(f"{where}: terminations and infos/discount disagree about the end; one of them is damaged.")
    return Episode(
        frames=frames,
        action=np.concatenate([np.zeros((1, actions.shape[1]), actions.dtype), actions]),
        reward=np.concatenate([np.zeros(1, rewards.dtype), rewards]),
        step_type=whole_step_types(rows),
        **columns,
    )


def check_new_minari(name: str) -> None:
    """Refuse a name under which no new dataset can be written.

    Raises:
        VOCError: a name that is none, one that is taken, or minari is not installed.
    """
    import_minari()
    final = named_folder(name)[1]
    if final.exists():
        raise VOCError(f"There is a Minari dataset {name} in {final} already; choose another name or version.")


def write_minari(name: str, dataset: Episodes, progress: bool = False) -> Path:
    """Write a dataset into the local Minari folder, losslessly and in one step; returns where it lies.

    Observations are frames (H, W, 3), or states where there are no frames. Everything else that our rows hold goes
    into ``infos``. Episodes without a step are left out, with a warning.

    Raises:
        VOCError: a name that is none, one that is taken or being written, a disk that is full or cannot be written, or
            minari is not installed.
    """
    import_minari()
    from minari.namespace import create_namespace, list_local_namespaces

    namespace, final = named_folder(name)
    temporary = final.parent / f".{final.name}.part"
    with hold_folder(temporary, "folder for a Minari dataset"):
        try:
            check_new_minari(name)
            with writing(final, "run again once it can"):
                if namespace is not None and namespace not in list_local_namespaces():
                    create_namespace(namespace)
                shutil.rmtree(temporary / "data", ignore_errors=True)  # of a writer that was killed
                write_minari_folder(temporary / "data", name, dataset, progress)
                (temporary / ".lock").unlink()
                os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final / "data"


def write_minari_folder(folder: Path, name: str, dataset: Episodes, progress: bool = False) -> None:
    """Write the two files of a Minari dataset into a folder, wherever that is.

    Raises:
        VOCError: neither frames nor states, or a disk with too little space.
    """
    minari, dataset = import_minari(), with_steps(dataset)
    from minari.dataset.minari_storage import MinariStorage

    check_space(len(dataset) * math.prod(dataset.frame_shape), folder.parent, f"{dataset} without compression")
    observations, actions = _spaces(dataset)
    # a picture would be kept as JPEG otherwise, which changes it
    storage = MinariStorage.new(folder, observations, actions, jpeg_encoding=False)
    described = {"dataset_id": name, "minari_version": minari.__version__, "description": repr(dataset)}
    storage.update_metadata({**described, SPEC_ATTRIBUTE: json.dumps(asdict(dataset.spec))})
    shown = progress_bar(range(len(dataset.starts)), desc=name, unit="episode", show=progress)
    storage.update_episodes(_buffer(_fitting(dataset.whole(i), folder)) for i in shown)


def _fitting(episode: Episode, folder: Path) -> Episode:
    """The same episode, once the disk can take it: where it is full libhdf5 cannot close its file and crashes."""
    arrays = [array for array in vars(episode).values() if array is not None]
    check_space(2 * sum(array.nbytes for array in arrays) + _SLACK, folder, "The next episode, with room to spare,")
    return episode


def _spaces(dataset: Episodes) -> tuple[Any, Any]:
    from gymnasium.spaces import Box

    _, height, width = dataset.frame_shape
    observations: Any
    if dataset.has_frames:
        observations = Box(0, 255, (height, width, 3), np.uint8)
    elif dataset.state is not None:
        observations = Box(-np.inf, np.inf, (dataset.state.shape[1],), np.float32)
    else:
        raise VOCError(f"{dataset} has neither frames nor states; a Minari dataset needs observations.")
    return observations, Box(-1, 1, (dataset.action.shape[1],), np.float32)


def _buffer(episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = len(episode.reward) - 1
    ended = np.zeros(steps, bool)
    ended[-1] = True
    terminated = bool(episode.discount[-1] == 0)
    pictures = np.ascontiguousarray(episode.frames.transpose(0, 2, 3, 1))
    infos = {name: getattr(episode, name) for name in _OURS if getattr(episode, name) is not None}
    return EpisodeBuffer(
        observations=pictures if pictures.size else episode.state,
        actions=episode.action[1:],
        rewards=episode.reward[1:],
        terminations=ended & terminated,
        truncations=ended & (not terminated),
        infos={name: array.astype(COLUMNS[name][1]) for name, array in infos.items()},
    )

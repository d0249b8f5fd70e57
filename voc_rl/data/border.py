"""What foreign files may do: parsers' errors as sentences, sizes before allocation, nothing outside the file.

A file may be damaged or made to do harm. Here are the few steps that every reader takes before it allocates memory.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from voc_rl.errors import VOCError

# Deflate shrinks by a factor of 1032 at most; what declares more than this was never written.
MAX_EXPANSION = 1100
# what can be done about a format whose frames are all held in memory
TO_FILES = "`voc-rl data convert --to voc` turns it into files that are read frame by frame"
_MAX_CHUNK = 2**30  # bytes that one read of a chunk may take
_GROUPS, _GROUP_MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@contextmanager
def reading(path: Path, kind: str, needed: str) -> Iterator[None]:
    """Turn what a parser raises on a damaged file into one sentence.

    Raises:
        VOCError: whatever was raised inside.
    """
    try:
        yield
    except VOCError:
        raise
    except PermissionError as error:
        raise VOCError(f"{path} cannot be read (permission denied).") from error
    except BlockingIOError as error:  # HDF5 locks what it writes
        raise VOCError(f"{path} is being written by another process; close it first.") from error
    except Exception as error:  # on damaged bytes h5py, zipfile and numpy raise nearly everything
        reason = re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or type(error).__name__
        found = f"is not a whole {kind} file ({reason})" if Path(path).exists() else "does not exist"
        raise VOCError(f"{path} {found}; {needed} is needed.") from error


def stored_array(file: h5py.Group, key: str, path: Path) -> h5py.Dataset | None:
    """The array under ``key`` of an open file, sizes checked and nothing read yet; None where there is none.

    Raises:
        VOCError: a group in its place, a link or data in another file, or more bytes than the file can hold.
    """
    group = file
    *folders, last = key.split("/")
    for part in folders:
        member = _member(group, part, path)
        if member is None:
            return None
        if not isinstance(member, h5py.Group):
            raise VOCError(f"{path}: {part} is an array; a group with {key} in it is needed.")
        group = member
    array = _member(group, last, path)
    if array is None:
        return None
    if not isinstance(array, h5py.Dataset):
        raise VOCError(f"{path}: {key} is a group; a dataset is needed.")
    _check_array(array, key, path)
    return array


def check_tree(group: h5py.Group, path: Path, seen: set[int] | None = None) -> None:
    """The checks of ``stored_array`` for everything in a group, for files that another library reads.

    Raises:
        VOCError: links, data in another file, sizes that cannot be, or a group under two names, which may hold itself.
    """
    seen = set() if seen is None else seen
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise VOCError(f"{path}: {group.name} has another name too; a file that holds each group once is needed.")
    seen.add(address)
    for name in group:
        member = _member(group, name, path)
        if isinstance(member, h5py.Group):
            check_tree(member, path, seen)
        elif isinstance(member, h5py.Dataset):
            _check_array(member, member.name, path)


def _member(group: h5py.Group, name: str, path: Path) -> h5py.Group | h5py.Dataset | None:
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):  # asked before it is followed: it may name any file
        raise VOCError(f"{path}: {name} is a link to {getattr(link, 'filename', 'elsewhere')}; an array is needed.")
    return group[name]


def _check_array(array: h5py.Dataset, key: str, path: Path) -> None:
    what, file_bytes = f"{path}: {key}", path.stat().st_size
    if array.is_virtual or array.external:
        raise VOCError(f"{what} is kept in another file; copy it into this one.")
    if array.shape is None:
        raise VOCError(f"{what} is empty; an array is needed.")
    declared, stored = math.prod(array.shape) * array.dtype.itemsize, array.id.get_storage_size()
    chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
    if stored > file_bytes or declared > MAX_EXPANSION * stored or chunk > _MAX_CHUNK:
        raise VOCError(
            f"{what} declares {declared} bytes of shape {array.shape}, but {stored} are stored; the file is damaged."
        )


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file, which tell whether it is still the one that was read."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, stamp: tuple[int, int] | None) -> None:
    """Refuse a file that is not what it was at ``stamp``: its frames would not be those of the rows in memory.

    Raises:
        VOCError: the file is gone or has changed.
    """
    if stamp is not None and (not Path(path).exists() or file_stamp(path) != stamp):
        raise VOCError(f"{path} has changed since it was opened; run again once nobody writes to it.")


def check_memory(needed: int, what: str, advice: str = "a machine with more is needed") -> None:
    """Refuse what the machine's memory cannot hold, before it is taken; ``advice`` ends the sentence.

    Raises:
        VOCError: more bytes than there are in all.
    """
    there = machine_memory()
    if needed > there:
        raise VOCError(
            f"{what} takes {needed / 2**30:.1f} GiB of memory, this machine has {there / 2**30:.1f}; {advice}."
        )


def check_space(needed: int, folder: Path, what: str) -> None:
    """Refuse what the disk cannot take, before a library writes it that crashes there.

    Raises:
        VOCError: more bytes than are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VOCError(
            f"{what} takes {needed / 2**20:.0f} MiB, the disk of {folder} has {free / 2**20:.0f} free; make room, or "
            "choose another place."
        )


@cache
def machine_memory() -> int:
    """Bytes of memory that this process may have in all: the machine's, or less where its control group has less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()])


def _group_limits() -> Iterator[int]:
    """Limits of Linux's control groups, in which containers and batch jobs run, on this process and those above it."""
    if not _GROUPS.exists():
        return
    for line in _GROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        own = Path(group.lstrip("/"))
        for folder in (own, *own.parents):
            file = _GROUP_MOUNT / mount / folder / limit
            if file.is_file() and (text := file.read_text().strip()).isdigit():  # else "max"
                yield int(text)


def read_numbers(array: h5py.Dataset, what: str) -> np.ndarray:
    """Read a whole array of real numbers into memory.

    Raises:
        VOCError: another dtype, or more bytes than the machine has memory.
    """
    if array.dtype.kind not in "biuf":
        raise VOCError(f"{what} has dtype {array.dtype}; numbers are needed.")
    check_memory(math.prod(array.shape) * array.dtype.itemsize, what)
    return array[()]


def data_files(folder: Path, suffixes: Sequence[str], untrusted: bool = False) -> list[Path]:
    """Files of a folder with one of some suffixes, in the order of the numbers in their names (2 before 10).

    Raises:
        VOCError: ``untrusted``, and a file is a link that leaves the folder.
    """
    found = [p for p in folder.iterdir() if p.suffix in suffixes and not p.name.startswith(".")]
    if untrusted:
        home = folder.resolve()
        for path in found:
            if not path.resolve().is_relative_to(home):
                raise VOCError(f"{path} is a link to {path.resolve()}, outside {folder}; copy the file there.")
    return sorted(found, key=lambda p: [(not w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in _words(p.name)])


def gaps(files: Sequence[tuple[Path, int]]) -> list[int]:
    """Places in a series of files, each with its rows, before which one is missing by the numbers in their names.

    Numbers in names count files (step 1) or rows (step = the length of one of the two files); the majority of
    neighbours decides. If no step fits either, one below both lengths is a gap in a count of files; a larger one
    (a timestamp) says nothing.
    """
    steps = [_step(before[0], file[0]) for before, file in pairwise(files)]
    found = [(place, step, (files[place - 1][1], files[place][1])) for place, step in enumerate(steps, 1) if step]
    counted, rows = sum(step == 1 for _, step, _ in found), sum(step in own for _, step, own in found)
    if rows > counted:
        return [place for place, step, own in found if step not in own]
    return [place for place, step, own in found if step != 1 and (counted or step < min(own))]


def _step(before: Path, path: Path) -> int | None:
    """By how much the one number grows in which two names differ; None where they differ in something else."""
    one, other = _words(before.stem), _words(path.stem)
    differing = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    if len(one) != len(other) or len(differing) != 1 or not all(word.isdecimal() for word in differing[0]):
        return None
    return int(differing[0][1]) - int(differing[0][0])


def _words(name: str) -> list[str]:
    return re.findall(r"\d+|\D+", name)

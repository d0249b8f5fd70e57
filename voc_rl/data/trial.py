"""Read a dataset to its end in a process of its own: libhdf5 can crash or hang on a file that is made to do so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from voc_rl.data.minari_names import minari_folder
from voc_rl.data.places import split_place
from voc_rl.errors import VOCError, check_positive

_START = "from voc_rl.data.trial_child import main; main()"
_PATIENCE = 60.0  # seconds, and one more for every megabyte


@dataclass(frozen=True)
class Trial:
    """What the process found: the dataset with its format said, what is in it, and remarks, a sentence each."""

    spec: str
    summary: dict[str, str]
    remarks: list[str]


def read_in_child(spec: str, timeout: float | None = None) -> Trial:
    """Open a dataset and read every frame of it in another process, which has no more memory than the machine.

    Args:
        spec: as in ``load_dataset``. timeout: seconds; None is a minute, and a second for every megabyte.

    Raises:
        VOCError: whatever ``load_dataset`` refuses, a crash, or no end in time.
    """
    if timeout is None:
        timeout = _PATIENCE + sum(file.stat().st_size for file in source_files(spec)) / 2**20
    check_positive(timeout, "timeout")
    # -P: no module is taken from the working directory, which may be the data's
    command = [sys.executable, "-P", "-c", _START, spec]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired as error:
        raise VOCError(f"Reading {spec} did not end in {timeout:.0f} seconds; the files are refused.") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise VOCError(f"Reading {spec} ended the process that tried it ({name}); the files are refused.")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise VOCError(f"Reading {spec} failed ({last.rstrip('.')}); the files are refused.") from error
    if "refused" in found:
        raise VOCError(found["refused"])
    return Trial(found["spec"], found["summary"], found["remarks"])


def source_files(spec: str) -> list[Path]:
    """The files that a spec means, resolved and in the order of their names; none where it means none that are here."""
    word, place = split_place(spec)
    if not place:
        return []
    path = (minari_folder(place) if word == "minari" else Path(place)).resolve()
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = (file for file in path.rglob("*") if file.is_file())
    # hidden ones are what is being written or who writes
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))

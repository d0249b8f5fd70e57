"""Committed results: NAME.json (what, scale, hardware, versions, command, numbers) and NAME.md, side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from voc_rl.checkpoints import atomic_path, write_json
from voc_rl.runs import versions

FOLDER = Path("benchmarks/results")


def results_folder(chosen: Path | None, scale: str, out: Path) -> Path:
    """Where results go: ``chosen``, else benchmarks/results of the working directory.

    Those of scale ``smoke`` go to ``out``: they only show that it runs, and would replace the committed ones.
    """
    return chosen or (out if scale == "smoke" else FOLDER)


def write_results(name: str, results: dict[str, Any], table: str, folder: Path | None = None) -> Path:
    """Write results and their table; returns the folder (default: benchmarks/results of the working directory)."""
    folder = folder or FOLDER
    write_json(folder / f"{name}.json", results)
    note = f"{results['what']}. Scale: {results['scale']}. Made by `{results['command']}` on {results['hardware']}."
    with atomic_path(folder / f"{name}.md") as temporary:
        temporary.write_text(f"{note}\n\n{table}\n")
    return folder


def options(chosen: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]) -> str:
    """The options of a command that were not left at their defaults; ``chosen``: name -> what was said, the default."""
    said = [f" --{name} {' '.join(map(str, own))}".rstrip() for name, (own, usual) in chosen.items() if own != usual]
    return "".join(said)


def hardware() -> str:
    """What the numbers were made on, in words: the machine, and its GPU where there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{gpu}"


def hardware_of(records: Sequence[Mapping[str, Any]]) -> str:
    """What the records of cells were made on, each machine once."""
    return "; ".join(dict.fromkeys(record["hardware"] for record in records))


def versions_of(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the records of cells were made with, each version once; "not noted" where a record does not say."""
    noted = [record.get("versions", {}) for record in records]
    packages = dict.fromkeys([*versions(), *(package for own in noted for package in own)])
    return {package: "; ".join(dict.fromkeys(own.get(package, "not noted") for own in noted)) for package in packages}

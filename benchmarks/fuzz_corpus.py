"""A saved corpus of sound and damaged files, so that every version of every reader meets the same bytes.

Mutations are drawn anew from samples that the installed h5py and Minari write; a corpus keeps what they once wrote:

    python -m voc_rl.benchmarks.fuzz_corpus tests/data/corpus.zip
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voc_rl.benchmarks.fuzz_mutations import Files, mutated
from voc_rl.benchmarks.fuzz_readers import SAMPLES, formats, read_mutated, write_files
from voc_rl.checkpoints import atomic_path


@dataclass(frozen=True)
class Case:
    """Files of one dataset, and what a reader has to make of them: ``loaded`` or ``refused``."""

    name: str
    format: str
    outcome: str
    files: Files


def write_corpus(path: Path, seed: int = 0, each: int = 8, tries: int = 400) -> int:
    """Save the sound sample of every format and up to ``each`` of its mutations with different reasons of refusal, out
    of ``tries``; returns how many cases there are."""
    cases = [case for name in formats() for case in _cases(name, seed, each, tries)]
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        expected = {case.name: {"format": case.format, "outcome": case.outcome} for case in cases}
        archive.writestr("cases.json", json.dumps(expected, indent=1))
        for case in cases:
            for file, data in case.files.items():
                archive.writestr(f"{case.name}/{file}", data)
    return len(cases)


def _cases(name: str, seed: int, each: int, tries: int) -> Iterator[Case]:
    sample = SAMPLES[name]()
    yield Case(f"{name}_sound", name, "loaded", sample)
    reasons: set[str] = set()
    for i in range(tries):
        files = mutated(sample, np.random.default_rng([seed, i]))
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), files)
            outcome, said = read_mutated(Path(folder), name)
            reason = re.sub(r"[\d.]+", "", said.replace(folder, ""))[:60]
        if reason not in reasons:
            reasons.add(reason)
            yield Case(f"{name}_{i}", name, outcome, files)
        if len(reasons) == each:
            return


def read_corpus(path: Path) -> Iterator[Case]:
    """The cases of a corpus."""
    with zipfile.ZipFile(path) as archive:
        expected = json.loads(archive.read("cases.json"))
        for name, case in expected.items():
            members = [member for member in archive.namelist() if member.startswith(f"{name}/")]
            files = {member.split("/")[1]: archive.read(member) for member in members}
            yield Case(name, case["format"], case["outcome"], files)


if __name__ == "__main__":
    print(write_corpus(Path(sys.argv[1])), "cases")

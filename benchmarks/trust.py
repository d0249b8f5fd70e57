"""Can files and runs be trusted? Damaged files, and runs that are killed.

python -m voc_rl.benchmarks.trust --kills 200 --mutations 10000

Mutated files of every format have to load as what they hold or be refused; commands killed at random moments have to
end, when they are run again, in what an uninterrupted run ends in. The last line is JSON. Exit code 1 where anything
went wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from voc_rl.benchmarks.fuzz_readers import fuzz_readers
from voc_rl.benchmarks.trust_kills import JOBS, kill_and_resume
from voc_rl.errors import check_choice


@dataclass(frozen=True)
class Trust:
    """Kills and mutations."""

    kills: int = 200
    mutations: int = 10_000
    seed: int = 0
    jobs: tuple[str, ...] = tuple(JOBS)
    """Commands that are killed."""

    def run(self) -> dict[str, Any]:
        """Counts of what was done and of what went wrong; each failure is printed."""
        for name in self.jobs:
            check_choice(name, JOBS, "command")
        with tempfile.TemporaryDirectory() as folder:
            killed = kill_and_resume(self.kills, Path(folder), self.seed, self.jobs)
        read = fuzz_readers(self.mutations, self.seed)
        for line in (*killed.failures, *read.failures):
            print(line)
        return {
            "kills": killed.kills, "resumes": killed.resumes, "mutations": read.mutations, "loaded": read.loaded,
            "refused": read.refused, "crashes": killed.crashes + read.crashes, "hangs": killed.hangs + read.hangs,
            "silent_misreads": read.silent_misreads, "unequal_resumes": killed.unequal_resumes,
            "partial_files": killed.partial_files,
        }  # fmt: skip


def main() -> None:
    """Entry point; prints the counts as JSON."""
    found = tyro.cli(Trust, description=__doc__).run()
    print(json.dumps(found))
    wrong = ("crashes", "hangs", "silent_misreads", "unequal_resumes", "partial_files")
    sys.exit(1 if any(found[name] for name in wrong) else 0)


if __name__ == "__main__":
    main()

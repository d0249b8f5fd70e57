"""Can files and runs be trusted? Damaged files, and runs that are killed.

    python -m voc_rl.benchmarks.trust --kills 200 --mutations 10000

Mutated files of every format have to load as what they hold or be refused; commands killed at random moments have to
end, when they are run again, in what an uninterrupted run ends in. A few kills or mutations make a cell, which is kept:
a benchmark that was itself cut goes on where it was. The last line is JSON; exit code 1 where anything went wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from voc_rl.benchmarks.cells import Cell, run_cells
from voc_rl.benchmarks.fuzz_readers import fuzz_readers
from voc_rl.benchmarks.results import hardware_of, options, versions_of, write_results
from voc_rl.benchmarks.trust_kills import JOBS, KILLS_IN_A_ROW, kill_and_resume, references
from voc_rl.configs import fingerprint
from voc_rl.errors import VOCError, check_choices

MUTATIONS_AT_ONCE = 500
WRONG = ("crashes", "hangs", "silent_misreads", "unequal_resumes", "partial_files")
COUNTS = ("kills", "resumes", "mutations", "loaded", "refused", *WRONG)


@dataclass(frozen=True)
class Trust:
    """Kills and mutations."""

    kills: int = 200
    mutations: int = 10_000
    seed: int = 0
    jobs: tuple[str, ...] = tuple(JOBS)
    """Commands that are killed, in turn."""
    out: Path = Path("runs/trust")
    """Where runs and finished cells are kept."""
    results: Path | None = None
    """Where trust.json and .md go; default: benchmarks/results of the working directory."""

    def run(self) -> dict[str, int]:
        """Counts of what was done and of what went wrong; each failure is printed."""
        check_choices(self.jobs, JOBS, "command")
        if min(self.kills, self.mutations) < 0 or self.kills + self.mutations == 0:
            raise VOCError(f"{self.kills} kills and {self.mutations} mutations: one of anything is needed.")
        seconds = references(self.out, self.jobs if self.kills else ())
        records = run_cells(self.cells(), lambda cell: self.work(cell, seconds), self.out / "cells.jsonl")
        for record in records:
            for line in record["result"]["failures"]:
                print(line)
        self._write(records)
        return counts(records)

    def cells(self) -> list[dict[str, Any]]:
        """The kills dealt to the commands, and the mutations, a few to a cell."""
        settings = fingerprint({name: asdict(job) for name, job in JOBS.items()})
        killed: list[dict[str, Any]] = [
            {"killed": self.jobs[turn % len(self.jobs)], "turn": turn, "kills": len(some), "settings": settings}
            for turn, some in enumerate(_parts(self.kills, KILLS_IN_A_ROW))
        ]
        read = [{"mutations": len(some), "from": some.start} for some in _parts(self.mutations, MUTATIONS_AT_ONCE)]
        return [{**cell, "seed": self.seed} for cell in (*killed, *read)]

    def work(self, cell: Cell, seconds: Mapping[str, float]) -> dict[str, Any]:
        """What a cell came to."""
        if "killed" not in cell:
            return asdict(fuzz_readers(cell["mutations"], cell["seed"], first=cell["from"]))
        rng, name = np.random.default_rng([cell["seed"], 101, cell["turn"]]), cell["killed"]
        return asdict(kill_and_resume(name, cell["kills"], self.out, seconds[name], rng))

    def _write(self, records: list[dict[str, Any]]) -> None:
        rows = {name: counts(r for r in records if r["cell"].get("killed") == name) for name in self.jobs}
        rows["readers of files"] = counts(r for r in records if "mutations" in r["cell"])
        lines = [f"| {name} | {' | '.join(str(row[key]) for key in COUNTS)} |" for name, row in rows.items()]
        table = "\n".join([f"| what | {' | '.join(COUNTS)} |", f"|---|{'---:|' * len(COUNTS)}", *lines])
        command = f"python -m voc_rl.benchmarks.trust --kills {self.kills} --mutations {self.mutations}"
        command += options({"seed": ((self.seed,), (Trust.seed,)), "jobs": (self.jobs, Trust.jobs)})
        results = {
            "what": "Commands killed with SIGKILL at random moments and resumed, and mutated files of every format",
            "scale": f"{self.kills} kills, {self.mutations} mutations", "hardware": hardware_of(records),
            "versions": versions_of(records), "command": command, "counts": counts(records), "rows": rows,
            "failures": [line for record in records for line in record["result"]["failures"]],
            "cpu_seconds": round(sum(record["cpu_seconds"] for record in records)),
            "seconds": round(sum(record["seconds"] for record in records)),
        }  # fmt: skip
        write_results("trust", results, table, self.results)


def counts(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The counts of some cells together."""
    results = [record["result"] for record in records]
    return {name: sum(result.get(name, 0) for result in results) for name in COUNTS}


def _parts(total: int, size: int) -> list[range]:
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def main() -> None:
    """Entry point; prints the counts as JSON."""
    found = tyro.cli(Trust, prog="python -m voc_rl.benchmarks.trust", description=__doc__).run()
    print(json.dumps(found))
    sys.exit(1 if any(found[name] for name in WRONG) else 0)


if __name__ == "__main__":
    main()

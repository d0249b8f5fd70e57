"""What the other process of ``trial.read_in_child`` does: one line of JSON is its answer."""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path

from voc_rl.data.border import machine_memory
from voc_rl.data.checks import dataset_remarks, summary
from voc_rl.data.registry import open_as, parse
from voc_rl.errors import VOCError


def main() -> None:
    """Read the dataset that the command line names, within the memory that this process may have."""
    limit, hard = machine_memory() + _mapped(), resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:  # of the shell or the batch system; it cannot be raised
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            name, location = parse(sys.argv[1])
            dataset = open_as(name, location, untrusted=True)
            remarks = dataset_remarks(dataset)
        found = {"spec": f"{name}:{location}", "summary": summary(dataset)}
        answer = {**found, "remarks": [*(str(w.message) for w in caught if w.category is UserWarning), *remarks]}
    except VOCError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer))


def _mapped() -> int:
    """Bytes of address space that this process has taken already: threads of libraries reserve much and use little."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0

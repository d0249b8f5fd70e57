"""One seed, one result: the whole flow twice, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from voc_rl.benchmarks.trust_kills import contents

# voc-rl, with coarse figures in its report
COARSE = "from voc_rl.reports import plots; plots.DPI = 60; from voc_rl.cli import main; main()"


def test_the_same_seed_gives_the_same_numbers_twice(tmp_path: Path, data: Path) -> None:
    settings = ["--gamma", "0.5", "--quantizer-steps", "8", "--steps", "8", "--threads", "1", "--samples", "10"]
    settings += ["--reward-steps", "8", "--device", "cpu"]  # a GPU promises less
    found = []
    for name, hashes in (("first", "1"), ("second", "2")):  # the order of sets must not matter
        subprocess.run(
            [sys.executable, "-c", COARSE, "evaluate", "--data", data, "--out", tmp_path / name, *settings],
            check=True, capture_output=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": hashes},
        )  # fmt: skip
        found.append(contents(tmp_path / name))
    assert found[0] == found[1]
    assert {"metrics.json", "voc.safetensors", "tokens.safetensors"} <= set(found[0])

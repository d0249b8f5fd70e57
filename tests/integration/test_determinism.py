"""One seed, one result: the whole flow twice, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from worlds import COMMAND, write_world

from voc_rl.benchmarks.trust_kills import contents


def test_the_same_seed_gives_the_same_numbers_twice(tmp_path: Path) -> None:
    write_world(tmp_path / "data", episodes=5, rows=30)
    settings = ["--gamma", "0.5", "--quantizer-steps", "8", "--steps", "8", "--threads", "1", "--samples", "10"]
    settings += ["--reward-steps", "8", "--device", "cpu"]  # a GPU promises less
    found = []
    for name, hashes in (("first", "1"), ("second", "2")):  # the order of sets must not matter
        subprocess.run(
            [COMMAND, "evaluate", "--data", tmp_path / "data", "--out", tmp_path / name, *settings],
            check=True, capture_output=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": hashes},
        )  # fmt: skip
        found.append(contents(tmp_path / name))
    assert found[0] == found[1]
    assert {"metrics.json", "voc.safetensors", "tokens.safetensors"} <= set(found[0])

"""What a process measures of itself: processor time, and memory at its peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from voc_rl.runs import cpu_seconds, peak_memory_bytes


def test_time_and_memory_of_this_process() -> None:
    before = cpu_seconds()
    sum(i * i for i in range(1_000_000))
    assert 0.01 < cpu_seconds() - before < 5
    assert 10**7 < peak_memory_bytes() < 10**11


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset here")
def test_a_peak_after_a_reset_does_not_count_what_was_freed_before() -> None:
    code = (
        "import torch\n"
        "from voc_rl.precision import keep_freed_memory\n"
        "from voc_rl.runs import peak_memory_bytes, reset_peak_memory\n"
        "keep_freed_memory()\n"
        "before = peak_memory_bytes()\n"
        "large = torch.ones(100_000_000)\n"
        "during = peak_memory_bytes()\n"
        "del large\n"
        "reset_peak_memory()\n"
        "print(during - before, peak_memory_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    during, after = map(int, done.stdout.split())
    assert during > 390e6
    assert after < 40e6

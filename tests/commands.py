"""``voc-rl`` as tests call it: settings for a run of seconds, and what it says where it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import one_sentence

from voc_rl.cli import main

COMMANDS = ("demo", "collect", "train-quantizer", "tokenize", "train", "evaluate")
SHORT = ["--gamma", "0.5", "--quantizer-steps", "20", "--steps", "24", "--reward-steps", "60", "--threads", "1"]
POLICY = ["--policy", "walker-walk/step_60000"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command is refused, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.split("\n") if line]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("voc-rl: ")
    assert one_sentence(lines[0]), lines[0]
    return lines[0]


def train(data: Path, out: Path, *more: object) -> list[object]:
    return ["train", "--data", data, "--out", out, *SHORT, *more]


def final_files(folder: Path) -> list[str]:
    """What is there besides the lock and the notes of what was asked."""
    notes = {".lock", "config.json", "stages.json", "metrics.jsonl"}
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name not in notes)

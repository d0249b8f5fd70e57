"""Progress: a bar on a screen, lines in a log file, nothing where nobody asked for it."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from voc_rl import progress
from voc_rl.progress import progress_bar


def logged(monkeypatch: pytest.MonkeyPatch, screen: bool = False, show: bool = True) -> str:
    """What three steps, of which one was done before, print to stderr."""
    stream = io.StringIO()
    stream.isatty = lambda: screen  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(desc="train", unit="step", total=3, initial=1, show=show) as bar:
        for loss in (0.5, 0.25):
            bar.set_postfix({"loss": loss}, refresh=False)
            bar.update()
    return stream.getvalue()


def test_a_log_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged(monkeypatch)
    first, last = text.splitlines()  # a minute did not pass between them
    assert "\r" not in text
    assert text.endswith("\n")
    assert first.startswith("train: 1/3 step (33 %)")
    assert last.startswith("train: 3/3 step (100 %)")
    assert last.endswith(", loss=0.25")


def test_a_line_whenever_the_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    assert [line.split()[1] for line in logged(monkeypatch).splitlines()] == ["1/3", "2/3", "3/3", "3/3"]


def test_a_screen_gets_a_bar_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged(monkeypatch, screen=True)
    assert "\r" in text
    assert "3/3" in text


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(monkeypatch, show=False) == ""


def test_tqdm_can_be_turned_off_from_outside() -> None:
    code = "from voc_rl.progress import progress_bar\nfor _ in progress_bar(range(3), desc='a', unit='b'): pass"
    quiet = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, check=True
    )
    assert quiet.stderr == b""

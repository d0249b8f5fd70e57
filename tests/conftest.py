"""Set-up shared by all tests: one thread, so that numbers repeat and the tests do not fight for cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import Clock

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Pictures of reports are coarse here, and quick to write; a module that looks at them defines this anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voc_rl.reports.plots.DPI", 60)
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What ``time.perf_counter`` reads in this test."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.seconds)
    return clock


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six episodes of 30 rows of the world of ``worlds``; read it only."""
    from worlds import write_world

    folder = tmp_path_factory.mktemp("data")
    write_world(folder, episodes=6, rows=30)
    return folder


@pytest.fixture(scope="session")
def square_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a small VOC of the square's world; read it only."""
    from square import train_square_voc

    return train_square_voc(tmp_path_factory.mktemp("square"))


@pytest.fixture(scope="session")
def square_actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logged walks of the square, ``data``, and a small VOC that reads actions, ``voc``; read it only."""
    from square import train_square_actions

    return train_square_actions(tmp_path_factory.mktemp("square_actions"))

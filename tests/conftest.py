"""Set-up shared by all tests: one thread, so that numbers repeat and the tests do not fight for cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Pictures of reports are coarse here, and quick to write; a module that looks at them defines this anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voc_rl.reports.plots.DPI", 60)
        yield


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

"""Three small episodes on disk, the last of which terminates."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import LENGTHS, toy_folder

from voc_rl.data import Episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("data"), LENGTHS, terminated=(2,))


@pytest.fixture
def dataset(folder: Path) -> Episodes:
    return Episodes.open(folder)

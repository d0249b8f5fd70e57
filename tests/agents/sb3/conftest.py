"""Logged walks of the chain of ``links``."""

from __future__ import annotations

from pathlib import Path

import pytest
from links import write_chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the walks; read it only."""
    return write_chain(tmp_path_factory.mktemp("chain"))

"""What the wrappers add to a step: measured against the plain environment in the same run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from square import square_env

from voc_rl.benchmarks import wrapper_overhead
from voc_rl.model import VOC


def test_extra_time_is_the_difference() -> None:
    median, low, high = wrapper_overhead.added_milliseconds(lambda: time.sleep(0.002), lambda: time.sleep(0.006), 3)
    assert 3.5 < median < 8
    assert low <= median <= high


def test_every_wrapper_is_timed(square_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapper_overhead, "make_env", lambda task: square_env())
    args = wrapper_overhead.Args(square_voc, "square", blocks=1, results=tmp_path)
    found = wrapper_overhead.main(args)
    rows, config = found["rows"], VOC.load(square_voc).occupancy.config
    said = f"python -m voc_rl.benchmarks.wrapper_overhead --voc {square_voc} --task square --blocks 1"
    assert found["command"] == said
    assert found["scale"] == f"{config.n_layer} layers of width {config.width}, {config.n_tokens} codes"
    assert [row["wrapper"] for row in rows] == [*wrapper_overhead.WRAPPERS, *["info, vector"] * 3]
    assert [row["environments"] for row in rows[-3:]] == [1, 4, 16]
    assert json.loads((tmp_path / "wrapper_overhead.json").read_text())["rows"] == rows
    head = {row["wrapper"]: row["median"] for row in rows}
    assert head["info, 100 samples instead of the head"] > head["info"] > 0

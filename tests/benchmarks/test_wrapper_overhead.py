"""What the wrappers add to a step: measured against the plain environment in the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clocks import Clock
from square import square_env
from torch.utils.flop_counter import FlopCounterMode

from voc_rl.benchmarks import wrapper_overhead
from voc_rl.model import VOC


def test_extra_time_is_the_difference(clock: Clock) -> None:
    took = iter([0.006] * wrapper_overhead.BLOCK + [0.016] * wrapper_overhead.BLOCK + [0.005] * wrapper_overhead.BLOCK)
    added = wrapper_overhead.added_milliseconds(lambda: clock.sleep(0.002), lambda: clock.sleep(next(took)), 3)
    assert added == pytest.approx((4.0, 3.0, 14.0))


def test_every_wrapper_is_timed(square_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapper_overhead, "make_env", lambda task: square_env())
    args = wrapper_overhead.Args(square_voc, "square", blocks=1, results=tmp_path)
    with FlopCounterMode(display=False) as counter:  # a clock that counts arithmetic, which other processes do not slow
        monkeypatch.setattr(wrapper_overhead.time, "perf_counter", counter.get_total_flops)
        found = wrapper_overhead.main(args)
    rows, config = found["rows"], VOC.load(square_voc).occupancy.config
    said = f"python -m voc_rl.benchmarks.wrapper_overhead --voc {square_voc} --task square --blocks 1"
    assert found["command"] == said
    assert found["scale"] == f"{config.n_layer} layers of width {config.width}, {config.n_tokens} codes"
    assert [row["wrapper"] for row in rows] == [*wrapper_overhead.WRAPPERS, *["info, vector"] * 3]
    assert [row["environments"] for row in rows[-3:]] == [1, 4, 16]
    assert json.loads((tmp_path / "wrapper_overhead.json").read_text())["rows"] == rows
    work = {row["wrapper"]: row["median"] for row in rows[: len(wrapper_overhead.WRAPPERS)]}
    one, *more = (row["median"] for row in rows[-3:])
    assert more == [4 * one, 16 * one]
    assert work["info"] == work["observation: value"] == work["shaping"]
    assert work["info"] == pytest.approx(one * (1 + 1 / wrapper_overhead.BLOCK))  # one time limit in twenty steps
    assert work["info, 100 samples instead of the head"] > 5 * work["info"]
    assert work["info, with successor features of 100 futures"] > 5 * work["info, with 4 futures"]

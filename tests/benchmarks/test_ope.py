"""The policy-evaluation benchmark at its smallest, on real frames: whole, resumed, and with numbers that fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voc_rl.benchmarks.ope import METHODS, OPE
from voc_rl.benchmarks.ope_protocol import DEVELOPMENT, LOGGED, MIXED, UNSEEN, development_policies, target_policies
from voc_rl.errors import VOCError


def test_the_protocol_keeps_test_and_development_policies_apart() -> None:
    assert len(target_policies("walker-walk")) == len(LOGGED) + len(MIXED) + len(UNSEEN) == 24
    assert len(development_policies("walker-walk")) == len(DEVELOPMENT) == 8
    tested = {(step, 0.2) for step in LOGGED} | set(UNSEEN)
    assert not tested & set(DEVELOPMENT)
    assert not {step for step, _ in UNSEEN if _ == 0.2} & set(LOGGED)


@pytest.mark.slow
def test_smoke_run_from_pixels_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voc_rl.benchmarks import fqe
    from voc_rl.loop import LoopConfig

    few = fqe.FQEConfig(LoopConfig(steps=20, batch_size=64))
    monkeypatch.setattr("voc_rl.benchmarks.ope_baselines.FQEConfig", lambda: few)
    run = OPE("smoke", tmp_path / "out", tmp_path / "results", ("cheetah-run",), parts=("test",))
    found = run.run()
    entry = found["tasks"]["cheetah-run"]
    assert entry["gamma"] == 0.8
    assert entry["policies"] == 24
    methods = entry["methods"]
    expected = {
        "voc",
        "voc_head",
        "mfmc",
        "one_step",
        "fqe",
        "fqe_state",
        "dr",
        "wis",
        "nearest",
        "median",
        "mc",
        "exact",
    }
    assert set(methods) == expected
    assert methods["exact"]["mae"] == 0
    assert methods["exact"]["coverage90"] == 1
    assert methods["nearest"]["mae_logged"] == pytest.approx(0, abs=1e-9)  # the oracle knows them
    assert 0 < methods["mfmc"]["mae"] < entry["range"]
    assert json.loads((tmp_path / "results/ope.json").read_text())["tasks"] == found["tasks"]
    assert (tmp_path / "results/ope.png").stat().st_size > 10_000
    lines = (tmp_path / "out/cells.jsonl").read_text().splitlines()
    assert len(lines) == len(METHODS)
    assert run.run()["tasks"] == found["tasks"]  # nothing is done twice
    assert (tmp_path / "out/cells.jsonl").read_text().splitlines() == lines


def test_other_words_are_refused(tmp_path: Path) -> None:
    for run, message in (
        (OPE(out=tmp_path, tasks=("walker-fly",)), "Unknown task"),
        (OPE(out=tmp_path, methods=("magic",)), "Unknown method"),
        (OPE(out=tmp_path, gammas=(0.99,)), "reaches to gamma"),
    ):
        with pytest.raises(VOCError, match=message):
            run.run()
    assert list(tmp_path.iterdir()) == []

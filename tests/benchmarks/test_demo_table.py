"""The table of demos with every quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from voc_rl.benchmarks.demo_table import demo_table, main
from voc_rl.checkpoints import read_json, write_json
from voc_rl.errors import VOCError


def run(task: str, quantizer: str, error: float, **more: Any) -> dict[str, Any]:
    methods = {
        "voc": {"error": error, "nrmse": error / 10, "cpu_seconds": 99.6},
        "voc_head": {"error": error / 2, "nrmse": error / 20},
        "mc": {"error": 0.125, "nrmse": 0.0333},
        "constant": {"error": 1.0, "nrmse": 0.25},
    }
    seconds = {"collect": 10.25, "train": 20.5}
    return {"task": task, "quantizer": {"name": quantizer, "perplexity": 12.6, **more}, "methods": methods,
            "cpu_seconds": seconds}  # fmt: skip


def test_rows_by_task_and_quantizer() -> None:
    runs = [run("walker-walk", "dino", 0.5, tokens=27), run("cheetah-run", "musik", 0.4),
            run("walker-walk", "vqvae", 0.25, tokens=8)]  # fmt: skip
    assert demo_table(runs).splitlines()[2:] == [
        "| cheetah-run | `musik` | – | 13 | 0.40 / 4 % | 0.20 / 2 % | 0.12 / 3.3 % | – / – | – / – | 1.00 / 25 % "
        "| 100 | 31 |",
        "| walker-walk | `vqvae` | 8 | 13 | 0.25 / 2.5 % | 0.12 / 1.2 % | 0.12 / 3.3 % | – / – | – / – | 1.00 / 25 % "
        "| 100 | 31 |",
        "| walker-walk | `dino` | 27 | 13 | 0.50 / 5 % | 0.25 / 2.5 % | 0.12 / 3.3 % | – / – | – / – | 1.00 / 25 % "
        "| 100 | 31 |",
    ]


def test_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "a.json", run("walker-walk", "dino", 0.5))
    main([str(tmp_path / "a.json")])
    assert capsys.readouterr().out == demo_table([run("walker-walk", "dino", 0.5)]) + "\n"
    write_json(tmp_path / "b.json", {"task": "walker-walk"})
    refused = (
        ([], "name the metrics.json"),
        ([str(tmp_path / "b.json")], "lacks cpu_seconds, methods, quantizer"),
        ([str(tmp_path / "none.json")], "does not exist"),
    )
    for files, said in refused:
        with pytest.raises(SystemExit, match=said):
            main(files)
    with pytest.raises(VOCError, match=r"the metrics\.json of a demo is needed"):
        demo_table([{}])


def test_the_docs_show_the_committed_runs() -> None:
    root = Path(__file__).parents[2]
    runs = [read_json(path) for path in sorted((root / "docs").glob("demo_*.json"))]
    assert demo_table(runs) in (root / "docs" / "quantizers.md").read_text()


def test_the_readme_says_how_far_the_committed_runs_are_apart() -> None:
    """Errors less those of the critics, of samples and of the head, on both tasks."""
    root = Path(__file__).parents[2]
    runs = [read_json(root / "docs" / f"demo_{task}.json")["methods"] for task in ("walker-walk", "cheetah-run")]

    def apart(one: str, other: str) -> str:
        gaps = [round(run[one]["error"] - run[other]["error"], 2) + 0.0 for run in runs]
        return " / ".join(f"{gap:+.2f}".replace("+0.00", "0.00").replace("-", "−") for gap in gaps)

    said = (
        f"less those of `mc` are {apart('voc', 'mc')} (samples) and {apart('voc_head', 'mc')} (head), "
        f"less those of `td` {apart('voc', 'td')} and {apart('voc_head', 'td')}"
    )
    assert said in " ".join((root / "README.md").read_text().split())

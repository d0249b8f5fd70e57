"""Means over seeds of the quantizers' numbers, and the table of them."""

from __future__ import annotations

from typing import Any

import pytest

from voc_rl.benchmarks.quantizers_table import FRAMES, HEADER, psnr_notes, summary, table


def record(task: str, name: str, seed: int, seconds: float, reward: float | None) -> dict[str, Any]:
    result = {
        "n_tokens": 8, "stack": 3, "codebook_size": 240, "bits": 63.3, "use": 0.5, "perplexity": 31.0,
        "pooled_perplexity": 99.0, "psnr": 30.0, "codes": {"position": 0.9, "velocity": 0.5, "reward": reward},
        "feature_inputs": 0, "features": None, "train_cpu_seconds": seconds, "tokens_per_second": 16000.0,
        "stacks_per_second": 2000.0,
    }  # fmt: skip
    return {"cell": {"task": task, "quantizer": name, "seed": seed}, "result": result, "cpu_seconds": 1.0}


def reference(task: str) -> dict[str, Any]:
    features = {"position": 0.95, "velocity": 0.9, "reward": 0.97}
    result = {"stack": 3, "train_cpu_seconds": 2.0, "psnr": 20.0, "feature_inputs": 768, "features": features}
    return {"cell": {"task": task, "quantizer": FRAMES, "seed": 0}, "result": result, "cpu_seconds": 1.0}


RECORDS = [
    reference("walker-walk"),
    record("cheetah-run", "dino", 0, 90.0, None),
    record("walker-walk", "dino", 0, 80.0, 0.6), record("walker-walk", "dino", 1, 100.0, 0.8),
    record("walker-walk", "vqvae", 1, 10.0, 0.7), record("walker-walk", "vqvae", 0, 20.0, 0.7),
]  # fmt: skip


def test_means_errors_and_ratios() -> None:
    found = summary(RECORDS)
    assert [(task, list(rows)) for task, rows in found.items()] == [
        ("walker-walk", ["vqvae", "dino", FRAMES]), ("cheetah-run", ["dino"]),
    ]  # fmt: skip
    dino = found["walker-walk"]["dino"]
    assert dino["seeds"] == [0, 1]
    assert dino["mean"]["codes.reward"] == pytest.approx(0.7)
    assert dino["stderr"]["codes.reward"] == pytest.approx(0.1)  # sd .141 over root 2
    assert dino["mean"]["train_cpu_seconds"] == 90
    assert dino["mean"]["train_ratio"] == pytest.approx((80 / 20 + 100 / 10) / 2)  # within each seed
    assert found["walker-walk"]["vqvae"]["mean"]["train_ratio"] == 1
    alone = found["cheetah-run"]["dino"]
    assert "train_ratio" not in alone["mean"]  # no vqvae there
    assert "codes.reward" not in alone["mean"]
    assert alone["stderr"] == {}


def test_the_table_shows_them() -> None:
    text = table(summary(RECORDS))
    lines = text.splitlines()
    assert all(line.count("|") == HEADER.splitlines()[0].count("|") for line in lines if line.startswith("|"))
    assert (
        "| `dino` | 8 (2.67) | 63 | 50% | 31 (99 of 240) | 30.0 | 0.90 ± 0.00 | 0.50 ± 0.00 | 0.70 ± 0.10 | – "
        "| 90 (× 7) | 16,000 | 2,000 |"
    ) in lines
    assert (
        "| `dino` | 8 (2.67) | 63 | 50% | 31 (99 of 240) | 30.0 | 0.90 | 0.50 | – | – | 90 | 16,000 | 2,000 |" in lines
    )
    assert "| `frames` | – | – | – | – | 20.0 | – | – | – | 0.95, 0.90, 0.97 | 2 | – | – |" in lines
    assert [line for line in lines if line.startswith("**")] == ["**walker-walk**", "**cheetah-run**"]


def test_psnr_in_words() -> None:
    assert psnr_notes(summary(RECORDS)) == {"vqvae": "30.0 dB", "dino": "30.0 / 30.0 dB", FRAMES: "20.0 dB"}

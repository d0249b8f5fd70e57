"""The throughput benchmark: what is counted, what is written, and that the parts of two devices stand side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from voc_rl.benchmarks import throughput, throughput_cases
from voc_rl.benchmarks.throughput import Args, main
from voc_rl.benchmarks.throughput_cases import SIZES, Case, Rounds
from voc_rl.benchmarks.throughput_machine import matrix_weights, sampling_bytes, sampling_flops, training_flops
from voc_rl.benchmarks.throughput_memory import memory
from voc_rl.benchmarks.throughput_table import table
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer
from voc_rl.precision import autocast

COMMAND = "python -m voc_rl.benchmarks.throughput"


def test_operations_are_those_of_the_networks_matrices() -> None:
    config = OccupancyConfig(240, 8, n_layer=2, n_head=4, width=128)
    model = OccupancyTransformer(config)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith("positions")]
    assert matrix_weights(config) == sum(p.numel() for p in matrices)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.prefix(torch.zeros(3, 8, dtype=torch.long))
    head = 2 * 3 * 8 * 128 * 241  # counted by us, not needed for a context
    own = sampling_flops(config, 3, 0)
    assert own - head == pytest.approx(counter.get_total_flops(), rel=0.05)
    one, two = sampling_flops(config, 3, 1), sampling_flops(config, 3, 2)
    assert two - one == pytest.approx(3 * 7 * (2 * matrix_weights(config) + 4 * 2 * 128 * 12))
    pair = 2 * 2 * 128 * 2  # bytes of a key and a value in both layers
    assert sampling_bytes(config, 3, 5) == 7 * (2 * matrix_weights(config) + 3 * 8 * pair) + 15 * pair * 7 * 4
    assert training_flops(config, 4, 1.0) - training_flops(config, 4, 0.0) == pytest.approx(4 * one / 3)


def test_the_reference_and_ours_have_the_same_weights() -> None:
    pytest.importorskip("transformers")
    case = Case("tiny", torch.device("cpu"), Rounds())
    context = case.contexts(5)
    with torch.no_grad():
        theirs = case.reference.model(context).logits
    torch.testing.assert_close(case.model(context), theirs, atol=1e-4, rtol=1e-4)
    low = case.reference.in_bfloat16()
    assert {p.dtype for p in low.model.parameters()} == {torch.bfloat16}
    assert low.sample(context).shape == (5, SIZES["tiny"].n_tokens)
    assert {p.dtype for p in case.reference.model.parameters()} == {torch.float32}
    sampled = case.reference.sample(context)
    assert sampled.shape == (5, SIZES["tiny"].n_tokens)
    before = case.reference.model.transformer.wte.weight.detach().clone()
    assert float(case.reference.step(context, context, 0.8)) > 4
    assert not torch.equal(case.reference.model.transformer.wte.weight, before)
    with autocast(case.model):
        assert case.ours(5, 3)().shape == (5, 3, SIZES["tiny"].n_tokens)  # type: ignore[attr-defined]


def test_results_of_two_devices_and_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(throughput.machine, "rates", lambda device: {"matmul_flops": 1e11, "copy_bytes": 1e10})
    own = Args(scale="smoke", device="cpu", sizes=("tiny",), threads=1, out=tmp_path)
    path = tmp_path / "throughput.json"
    path.parent.mkdir(exist_ok=True)
    first = main(own)
    found = json.loads(path.read_text())
    assert found["cpu"]["tiny"]["sampler_speedup"] == first["cpu"]["tiny"]["sampler_speedup"] > 0
    for key in (
        "training_speedup",
        "sampler_roofline",
        "peak_memory_bytes",
        "threads",
        "sampler_flops",
        "refill_seconds",
    ):
        assert found["cpu"]["tiny"][key] > 0
    path.write_text(json.dumps({**found, "cuda": {**found["cpu"], "device": "a card"}}))
    again = main(Args(scale="smoke", device="cpu", sizes=("tiny",), parts=("scaling",), threads=1, out=tmp_path))
    assert again["cpu"]["tiny"] == found["cpu"]["tiny"]  # left as it was
    assert again["cuda"]["device"] == "a card"
    text = table(again)
    assert "A training step of size tiny: " in text
    assert "| a card | tiny | 1 | 2 x 3 |" in text
    assert "Seconds of our sampler with one number changed (1 thread): samples 2: " in text
    assert (tmp_path / "throughput.png").stat().st_size > 5000
    said = f"{COMMAND} --scale smoke --device cpu --sizes tiny"
    assert again["cpu"]["command"] == f"{said} --threads 1 and {said} --parts scaling --threads 1"
    path.write_text(json.dumps({**again, "cpu": {**again["cpu"], "paper": found["cpu"]["tiny"]}}))
    third = main(own)  # all parts of one size
    assert third["cpu"]["paper"] == found["cpu"]["tiny"]
    assert third["cpu"]["tiny"] != found["cpu"]["tiny"]
    kept = path.read_text()
    monkeypatch.setattr(throughput, "versions", lambda: {"torch": "0"})
    with pytest.raises(VOCError, match=r"throughput.json was timed with another versions; choose another --out, or"):
        main(own)
    assert path.read_text() == kept  # numbers of two versions are not mixed
    with pytest.raises(VOCError, match="Unknown part 'speed'; accepted: memory, scaling, sizes, storage"):
        main(Args(parts=("speed",), out=tmp_path))


SECONDS = {"median": 2.0, "lowest": 2.0, "highest": 2.0}


class Timed:
    """A case whose numbers say what they were timed with."""

    def __init__(self, size: str, device: torch.device, rounds: Rounds) -> None:
        self.best = {"tiny": 2, "small": 1}[size]

    def fastest_threads(self, most: int) -> int:
        return self.best

    def sampling(self, rates: dict[str, float]) -> dict[str, Any]:
        return {
            "states": 2, "samples": 3, "sampler_seconds": SECONDS, "reference_seconds": SECONDS, "sampler_speedup": 1.0,
            "values_per_second": 1.0, "sampler_roofline": 1e9 / rates["copy_bytes"], "sampler_bound": "memory",
            "peak_memory_bytes": 0,
        }  # fmt: skip

    def training(self, rates: dict[str, float]) -> dict[str, Any]:
        return {"training_speedup": 1.0, "training_seconds": SECONDS, "reference_training_seconds": SECONDS}

    def scaling(self, what: str, value: int) -> dict[str, Any]:
        return {"what": what, "value": value, "seconds": 1.0, "threads": torch.get_num_threads()}


def test_each_size_keeps_the_rates_of_its_own_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of what the machine allows is of these; the scaling takes the threads of its size."""

    def rates(device: torch.device) -> dict[str, float]:
        return {"matmul_flops": 1e11 * torch.get_num_threads(), "copy_bytes": 1e9 * torch.get_num_threads()}

    before = torch.get_num_threads()
    monkeypatch.setattr(throughput, "Case", Timed)
    monkeypatch.setattr(throughput.machine, "rates", rates)
    sized = main(Args(scale="smoke", device="cpu", sizes=("tiny", "small"), out=tmp_path))["cpu"]
    for size, threads in (("tiny", 2), ("small", 1)):
        assert sized[size]["machine"] == {"matmul_flops": 1e11 * threads, "copy_bytes": 1e9 * threads}
        assert sized[size]["sampler_roofline"] == 1 / threads
    assert sized["scaling"][0]["threads"] == 2
    text = table({"cpu": sized})
    assert "matrix products at 0.10 TFLOP/s, copies at 1 GB/s (measured, 1 thread)." in text
    assert "matrix products at 0.20 TFLOP/s, copies at 2 GB/s (measured, 2 threads)." in text
    torch.set_num_threads(1)
    alone = main(Args(scale="smoke", device="cpu", sizes=("tiny",), parts=("scaling",), out=tmp_path))["cpu"]
    assert alone["scaling"][0]["threads"] == 2  # the fastest, whatever was before
    assert alone["small"] == sized["small"]
    older = {key: own for key, own in sized["tiny"].items() if key != "machine"}
    text = table({"cpu": {"device": "cpu", "machine": {**sized["small"]["machine"], "threads": 1}, "tiny": older}})
    assert "cpu: matrix products at 0.10 TFLOP/s, copies at 1 GB/s (measured)." in text
    torch.set_num_threads(before)


def test_a_part_alone_without_an_earlier_run(tmp_path: Path) -> None:
    """No rates of the machine are known then, nor seconds of any size."""
    found = main(Args(scale="smoke", device="cpu", parts=("storage",), out=tmp_path))  # which smoke leaves out
    assert not set(SIZES) & set(found["cpu"])
    assert found["command"] == f"{COMMAND} --scale smoke --device cpu --parts storage"
    assert "TFLOP/s" not in (tmp_path / "throughput.md").read_text()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"reference_bfloat16_seconds": 8.0}, "(autocast): 8 s; ours is 4.0 x"),
        (
            {"reference_bfloat16_seconds": 8.0, "reference_bfloat16_weights_seconds": 6.0},
            "(its weights cast): 6 s; ours is 3.0 x",
        ),
        (
            {"reference_bfloat16_seconds": 5.0, "reference_bfloat16_weights_seconds": 6.0},
            "(autocast): 5 s; ours is 2.5 x",
        ),
        ({}, ""),
    ],
)
def test_of_the_references_in_bfloat16_the_faster_one_counts(found: dict[str, float], line: str) -> None:
    own = {
        "threads": 1, "states": 2, "samples": 3, "sampler_speedup": 9.0, "values_per_second": 1.0,
        "sampler_roofline": 0.1, "sampler_bound": "memory", "peak_memory_bytes": 0,
        **{key: {"median": 2.0, "lowest": 2.0, "highest": 2.0} for key in ("sampler_seconds", "reference_seconds")},
        **found,
    }  # fmt: skip
    text = table({"cpu": {"device": "cpu", "tiny": own}})
    assert f"The reference of size tiny in bfloat16 {line} faster." in text if line else "bfloat16" not in text


def test_memory_of_stages_in_processes_of_their_own() -> None:
    said: list[str] = []
    found = memory(said.append, episodes=6, rows=20, steps=2, states=100)
    assert found["rows"] == 120
    assert found["frames_bytes"] == 120 * 3 * 84 * 84
    peaks = found["peak_bytes"]
    assert list(peaks) == ["opening", "quantizer", "training"]
    assert 10**8 < peaks["opening"] < min(peaks["quantizer"], peaks["training"])
    assert len(said) == 3


def test_peak_memory_is_that_of_our_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    case, order = Case("tiny", torch.device("cpu"), Rounds(states=2, samples=3, rounds=2)), list[str]()

    def peak(device: torch.device) -> int:
        order.append("peak")
        return order.count("peak")

    monkeypatch.setattr(throughput_cases, "_reset", lambda device: order.append("reset"))
    monkeypatch.setattr(throughput_cases, "_peak", peak)
    monkeypatch.setattr(case, "ours", lambda states, samples: lambda: order.append("ours"))
    monkeypatch.setattr(case.reference, "sample", lambda *_: order.append("reference"))
    monkeypatch.setattr(throughput_cases.machine, "multiplies_in_bfloat16", lambda device: False)
    found = case.sampling({"matmul_flops": 1e11, "copy_bytes": 1e10})
    assert order == ["reference", *["reset", "ours", "peak", "reference"] * 2]
    assert found["peak_memory_bytes"] == 1  # of the first round, before the reference took any
    monkeypatch.setattr(case.reference, "step", lambda *_: None)
    found = case.training({"matmul_flops": 1e11, "copy_bytes": 1e10})
    assert found["training_peak_memory_bytes"] == 3

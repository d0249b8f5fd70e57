"""The table of the throughput benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = ("tiny", "small", "paper")


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each size and device, then the machine's rates, scaling and storage."""
    lines = [
        "| device | size | threads | states x samples | sampling, s | reference, s | faster | values a second | "
        "of what the machine allows | training step, s | reference, s | faster | peak memory, GB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    parts = [(name, results[name]) for name in ("cpu", "cuda") if name in results]
    lines += [_row(part["device"], size, part[size]) for _, part in parts for size in SIZES if size in part]
    for _, part in parts:
        rates = part["machine"]
        lines += ["", f"{part['device']}: matrix products at {rates['matmul_flops'] / 1e12:.2f} TFLOP/s, copies at "
                  f"{rates['copy_bytes'] / 1e9:.0f} GB/s (measured)."]  # fmt: skip
        for row in part.get("scaling", []):
            lines.append(f"- {row['what']} {row['value']}: {row['seconds']:.3f} s")
        lines += [f"- {name}: {value}" for name, value in part.get("storage", {}).items()]
    return "\n".join(lines)


def _row(device: str, size: str, own: Mapping[str, Any]) -> str:
    cells = [
        device, size, own["threads"], f"{own['states']} x {own['samples']}", _spread(own["sampler_seconds"]),
        _spread(own["reference_seconds"]), f"{own['sampler_speedup']:.1f} x", f"{own['values_per_second']:.1f}",
        f"{100 * own['sampler_roofline']:.0f} % ({own['sampler_bound']})",
    ]  # fmt: skip
    if "training_speedup" in own:
        cells += [_spread(own["training_seconds"]), _spread(own["reference_training_seconds"]),
                  f"{own['training_speedup']:.1f} x"]  # fmt: skip
    else:
        cells += ["-"] * 3
    return "| " + " | ".join(map(str, [*cells, f"{own['peak_memory_bytes'] / 1e9:.1f}"])) + " |"


def _spread(seconds: Mapping[str, float]) -> str:
    digits = 3 if seconds["median"] < 10 else 0
    return f"{seconds['median']:.{digits}f} ({seconds['lowest']:.{digits}f}-{seconds['highest']:.{digits}f})"

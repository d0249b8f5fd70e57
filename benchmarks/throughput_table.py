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
        lines += _rates(part)
        lines += [_low(size, part[size]) for size in SIZES if _ways(part.get(size, {}))]
        lines += [_steps(size, part[size]) for size in SIZES if "refill_seconds" in part.get(size, {})]
        lines += _scaling(part.get("scaling", []))
        lines += _storage(part.get("storage", {}))
        lines += _memory(part["memory"]) if "memory" in part else []
    return "\n".join(lines)


def _rates(part: Mapping[str, Any]) -> list[str]:
    """By the number of threads, where there are several; sizes without rates of their own have those of the part."""
    sizes = [part[size] for size in SIZES if size in part]
    shared = part.get("machine") if any("machine" not in own for own in sizes) else None
    found = {} if shared is None else {shared["threads"]: shared}
    found |= {own["threads"]: own["machine"] for own in sizes if "machine" in own}
    lines = []
    for threads, rates in sorted(found.items()):
        how = f"measured, {_threads(threads)}" if len(found) > 1 else "measured"
        lines += ["", f"{part['device']}: matrix products at {rates['matmul_flops'] / 1e12:.2f} TFLOP/s, copies at "
                  f"{rates['copy_bytes'] / 1e9:.0f} GB/s ({how})."]  # fmt: skip
    return lines


def _threads(count: int) -> str:
    return f"{count} threads" if count > 1 else "1 thread"


def _scaling(rows: list[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    threads = _threads(rows[0]["threads"])
    points = ", ".join(f"{row['what']} {row['value']}: {row['seconds']:.3g}" for row in rows)
    return ["", f"Seconds of our sampler with one number changed ({threads}): {points}."]


def _ways(own: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the reference in bfloat16, by the ways that were timed."""
    ways = {"autocast": "reference_bfloat16_seconds", "its weights cast": "reference_bfloat16_weights_seconds"}
    return {way: own[key] for way, key in ways.items() if key in own}


def _low(size: str, own: Mapping[str, Any]) -> str:
    ways = _ways(own)
    way = min(ways, key=lambda way: ways[way])
    faster = ways[way] / own["sampler_seconds"]["median"]
    return f"The reference of size {size} in bfloat16 ({way}): {ways[way]:.3g} s; ours is {faster:.1f} x faster."


def _steps(size: str, own: Mapping[str, Any]) -> str:
    line = (
        f"A training step of size {size}: {_spread(own['training_seconds_between_refills'])} s between refills; a "
        f"refill, the sampled targets of 8 steps: {own['refill_seconds']:.3f} s"
    )
    if "training_seconds_without_graph" in own:
        line += f"; without a CUDA graph {_spread(own['training_seconds_without_graph'])} s a step"
    return line + "."


def _storage(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if "reading" in found:
        read = found["reading"]
        lines += [f"Stacked observations at random rows: {read['observations_per_second_from_files']:.0f} a second "
                  f"from HDF5 files, {read['observations_per_second_from_memory']:.0f} from memory."]  # fmt: skip
    if "rendering" in found:
        drawn, both = found["rendering"], found["processes"]
        lines += [
            f"Frames of 84 pixels drawn: {drawn['fast']:.0f} a second `fast`, {drawn['faithful']:.0f} as dm_control "
            f"draws them ({drawn['speedup']:.1f} x).",
            f"Stepped and drawn: {both['one']:.0f} a second by one process, {both['two']:.0f} by two "
            f"({both['speedup']:.2f} x; load before: {both['load_before']:.1f} on {both['cores']} cores).",
        ]
    return ["", *lines] if lines else []


def _memory(found: Mapping[str, Any]) -> list[str]:
    peak = {stage: f"{used / 1e9:.1f} GB" for stage, used in found["peak_bytes"].items()}
    return [
        f"Memory of the host at its peak, {found['rows']} rows with {found['frames_bytes'] / 1e9:.1f} GB of frames on "
        f"disk, size tiny: {peak['quantizer']} while the quantizer is trained, {peak['training']} while the networks "
        f"are and values of 10,000 states are drawn; {peak['opening']} for Python, PyTorch and the opened files alone."
    ]


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

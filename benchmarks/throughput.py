"""How fast sampling and training are, against Hugging Face's GPT-2 used as the paper's public code uses it.

python -m voc_rl.benchmarks.throughput --scale cpu
python -m voc_rl.benchmarks.throughput --scale gpu --device cuda

The public code draws the futures of a batch by one ``generate`` call per sample (top_k 50, Hugging Face's default), and
draws targets for a whole batch of which it throws 1 - gamma away. Ours and the reference take turns in one process, on
equal threads: the number at which the reference is fastest. The reference is timed on fewer calls than samples, and
its seconds are scaled. Parts and sizes of one device replace the same ones of an earlier run with the same scale,
machine and versions; other parts, other sizes and those of the other device stay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from voc_rl.benchmarks import throughput_machine as machine
from voc_rl.benchmarks.results import hardware, options, results_folder, write_results
from voc_rl.benchmarks.throughput_cases import SIZES, Case, Rounds
from voc_rl.benchmarks.throughput_plot import draw
from voc_rl.benchmarks.throughput_table import table
from voc_rl.checkpoints import read_json
from voc_rl.errors import VOCError, check_choice, check_choices
from voc_rl.pipeline import Say
from voc_rl.precision import choose_device, device_name, keep_freed_memory
from voc_rl.runs import versions

NAME = "throughput"
PARTS = ("sizes", "scaling", "storage", "memory")
WHAT = "Sampling and training speed against Hugging Face's GPT-2 as the paper's public code uses it"


@dataclass(frozen=True)
class Scale:
    """rounds: per size. scaling: what is changed, one number at a time, and to what, at the first size asked for.
    budget: seconds after which no further scaling is measured. storage: whether rendering, reading and the memory
    of training are measured too."""

    rounds: Mapping[str, Rounds]
    scaling: tuple[tuple[str, int], ...]
    budget: float
    storage: bool


SCALES = {
    "smoke": Scale({size: Rounds(states=2, samples=3, rounds=2) for size in SIZES}, (("samples", 2),), 60, False),
    "cpu": Scale(
        {"tiny": Rounds(rounds=5, calls=5), "small": Rounds(rounds=5, calls=3), "paper": Rounds()},
        (
            ("samples", 1), ("samples", 4), ("samples", 16), ("states", 1), ("states", 4), ("states", 16),
            ("tokens", 8), ("tokens", 25), ("width", 128), ("width", 384),
        ),
        3600, True,
    ),
    "gpu": Scale(
        {"tiny": Rounds(rounds=3, calls=5), "small": Rounds(rounds=3, calls=5), "paper": Rounds(rounds=5, calls=4)},
        (
            ("samples", 1), ("samples", 10), ("samples", 400), ("states", 1), ("states", 8), ("states", 128),
            ("tokens", 25), ("tokens", 150), ("width", 256), ("width", 1536),
        ),
        90, False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Sampling and training speed against Hugging Face's GPT-2."""

    scale: str = "cpu"
    """smoke (seconds, says nothing), cpu or gpu."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    sizes: tuple[str, ...] = tuple(SIZES)
    """Of paper, small and tiny."""
    parts: tuple[str, ...] = PARTS
    """Of sizes, scaling, storage and memory; those that are left out stay as an earlier run left them."""
    threads: int | None = None
    """For both; default: the number at which the reference is fastest."""
    out: Path | None = None
    """Where throughput.json, .md and .png go; default: benchmarks/results of the working directory, of scale smoke
    runs/throughput."""


def main(args: Args) -> dict[str, Any]:
    """Time everything that the scale asks for; what is known so far is written after each part.

    Raises:
        VOCError: unknown words; some parts or sizes beside those of another scale, machine or version.
    """
    scale, device = SCALES[check_choice(args.scale, SCALES, "scale")], choose_device(args.device)
    check_choices(args.sizes, SIZES, "size")
    check_choices(args.parts, PARTS, "part")
    keep_freed_memory()
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {line}", flush=True)

    part = _begun(args, device)
    for size in args.sizes:
        if "sizes" in args.parts:
            _size(args, scale, size, device, part, say)
        if "scaling" in args.parts and size == args.sizes[0]:
            _scaling(args, scale, size, device, part, say, started + scale.budget)
        _write(args, device, part)
    if scale.storage and "storage" in args.parts:
        from voc_rl.benchmarks.throughput_storage import storage

        part["storage"] = storage(say)
    if scale.storage and "memory" in args.parts:
        from voc_rl.benchmarks.throughput_memory import memory

        part["memory"] = memory(say)
    results = _write(args, device, part)
    print(table(results))
    return results


def _begun(args: Args, device: torch.device) -> dict[str, Any]:
    """What the device's part begins with: what it was made on, and what an earlier run left that is not timed now."""
    made_on = {
        "scale": args.scale, "device": device_name(device), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    whole = {*PARTS, *SIZES} == {*args.parts, *args.sizes}
    kept = {} if whole else _before(args).get(device.type, {})
    if other := [name for name in made_on if kept and kept[name] != made_on[name]]:
        raise VOCError(
            f"{_file(args)} was timed with another {' and '.join(other)}; choose another --out, or time all --parts "
            "and --sizes."
        )
    commands = [*(kept["command"].split(" and ") if kept else []), command(args)]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {**kept, **made_on, "load_at_start": load, "command": " and ".join(dict.fromkeys(commands))}


def _size(args: Args, scale: Scale, size: str, device: torch.device, part: dict[str, Any], say: Say) -> None:
    """Time sampling and a training step of one size into ``part``."""
    case = Case(size, device, scale.rounds[size])
    threads = _choose_threads(args, case)
    timed = [part[other] for other in SIZES if "machine" in part.get(other, {})]
    rates = next((own["machine"] for own in timed if own["threads"] == threads), None) or machine.rates(device)
    say(f"{part['device']}: {rates['matmul_flops'] / 1e12:.2f} TFLOP/s, {rates['copy_bytes'] / 1e9:.0f} GB/s")
    own = part[size] = {"threads": threads, "machine": rates, **case.sampling(rates)}
    say(f"{size}: {_in_words(own)}, {threads} threads")
    _write(args, device, part)
    own.update(case.training(rates))
    say(f"{size}: a training step {own['training_speedup']:.1f} x, {own['training_seconds']['median']:.4f} s")


def _scaling(
    args: Args, scale: Scale, size: str, device: torch.device, part: dict[str, Any], say: Say, until: float
) -> None:
    """Time our sampler as one number changes, as long as there is time."""
    case, part["scaling"] = Case(size, device, scale.rounds[size]), []
    if "sizes" not in args.parts:  # else those of this size, which has just been timed
        _choose_threads(args, case)
    for point in scale.scaling:
        if time.perf_counter() < until:
            part["scaling"].append(case.scaling(*point))
            say(f"scaling: {part['scaling'][-1]}")


def _choose_threads(args: Args, case: Case) -> int:
    threads = args.threads or case.fastest_threads(len(os.sched_getaffinity(0)))
    torch.set_num_threads(threads)
    return threads


def command(args: Args) -> str:
    """What makes this part again."""
    usual = Args()
    said = options({"scale": ([args.scale], [usual.scale]), "device": ([args.device], [usual.device]),
                    "sizes": (args.sizes, usual.sizes), "parts": (args.parts, usual.parts),
                    "threads": ([args.threads], [usual.threads])})  # fmt: skip
    return f"python -m voc_rl.benchmarks.throughput{said}"


def _in_words(own: Mapping[str, Any]) -> str:
    return (
        f"sampling {own['sampler_speedup']:.1f} x the reference, {own['sampler_seconds']['median']:.4f} s for "
        f"{own['states']} x {own['samples']}, {100 * own['sampler_roofline']:.0f} % of what the machine allows "
        f"({own['sampler_bound']})"
    )


def _before(args: Args) -> dict[str, Any]:
    """What an earlier run left."""
    path = _file(args)
    return read_json(path) if path.exists() else {}


def _folder(args: Args) -> Path:
    return results_folder(args.out, args.scale, Path("runs/throughput"))


def _file(args: Args) -> Path:
    return _folder(args) / f"{NAME}.json"


def _write(args: Args, device: torch.device, part: Mapping[str, Any]) -> dict[str, Any]:
    """The device's part beside that of the other device, where there is one."""
    before = _before(args)
    parts: dict[str, Any] = {name: before[name] for name in ("cpu", "cuda") if name in before}
    parts[device.type] = dict(part)
    results = {
        "what": WHAT, "scale": " and ".join(sorted({p["scale"] for p in parts.values()})),
        "command": " and ".join(sorted({p["command"] for p in parts.values()})),
        "hardware": " and ".join(sorted({f"{p['hardware']} ({p['device']})" for p in parts.values()})), **parts,
    }  # fmt: skip
    folder = write_results(NAME, results, table(results), _folder(args))
    draw(results, folder / f"{NAME}.png")
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.throughput"))

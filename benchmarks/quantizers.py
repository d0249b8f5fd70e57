"""What each quantizer keeps of Walker and Cheetah frames, and what it costs.

    python -m voc_rl.benchmarks.quantizers

Each quantizer is trained at the size ``tiny`` on 64 episodes of a task; everything is measured on 16 others. The probes
(``probes.py``) are the floor of every value estimate: what ridge regression cannot read off the codes' vectors, a
reward head will hardly read. A finished task, quantizer and seed is kept and skipped, so an interrupted benchmark
goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from voc_rl.agents import load_policy
from voc_rl.benchmarks.cells import Cell, finished, hold_settings, run_cells
from voc_rl.benchmarks.demo import POLICIES
from voc_rl.benchmarks.probes import probe, probe_targets, probed_rows
from voc_rl.benchmarks.quantizers_plot import draw_reconstructions
from voc_rl.benchmarks.quantizers_table import FRAMES, ORDER, psnr_notes, summary, table
from voc_rl.benchmarks.results import hardware_of, options, results_folder, versions_of, write_results
from voc_rl.configs import fingerprint, from_dict
from voc_rl.data import Episodes
from voc_rl.envs import collect
from voc_rl.errors import check_choice, check_positive
from voc_rl.precision import autocast, keep_freed_memory
from voc_rl.quantizers import (
    QUANTIZERS,
    Quantizer,
    codebook_use,
    load_quantizer,
    save_quantizer,
    tokenize,
    train_quantizer,
)
from voc_rl.quantizers.vqvae import PrincipalComponents
from voc_rl.reports.plots_frames import psnr
from voc_rl.runs import cpu_seconds
from voc_rl.sizes import sized
from voc_rl.training import VOCConfig, fresh_quantizer

HELD_OUT = 0.2  # share of the episodes
FITTED = 3000  # training frames behind the reference's components and mean picture
DECODED = 512  # held-out rows behind a PSNR
PICTURES = 4  # per task, in the committed picture
BATCH = 128


@dataclass(frozen=True)
class Scale:
    """episodes, episode_steps: of a task. steps: of a quantizer's training, None for its own. components: of the
    raw frames that the reference sees. seconds: CPU seconds behind a speed."""

    episodes: int
    episode_steps: int
    steps: int | None
    components: int
    seconds: float


SCALES = {"smoke": Scale(6, 40, 5, 16, 0.05), "cpu": Scale(80, 250, None, 256, 2.0)}


@dataclass(frozen=True)
class Args:
    """Codebook use, reconstruction, linear probes and cost of every quantizer on Walker and Cheetah frames."""

    scale: str = "cpu"
    """smoke (a minute) or cpu."""
    out: Path = Path("runs/quantizers")
    """Where episodes, trained quantizers and finished cells are kept."""
    tasks: tuple[str, ...] = tuple(POLICIES)
    """dm_control tasks that there are stored policies for."""
    quantizers: tuple[str, ...] = ORDER[:-1]
    """Which quantizers to train; the table shows all that are finished."""
    seeds: tuple[int, ...] = (0,)
    """Of the quantizers' training; episodes and their split are the same for all."""
    results: Path | None = None
    """Where quantizers.json, .md and .png go; default: benchmarks/results of the working directory, of scale
    smoke --out."""


@dataclass
class Bench:
    """The episodes of each task, and what is measured on them."""

    scale: Scale
    out: Path
    _episodes: dict[str, tuple[Episodes, Episodes]] = field(default_factory=dict)

    def episodes(self, task: str) -> tuple[Episodes, Episodes]:
        """Episodes to train on and held-out ones; collected if they are not there yet."""
        if task not in self._episodes:
            folder = self.out / "data" / task
            collect(
                folder, task, load_policy(POLICIES[task]), self.scale.episodes, 0,
                max_episode_steps=self.scale.episode_steps,
            )  # fmt: skip
            dataset = Episodes.open(folder).load_frames()
            self._episodes[task] = dataset.split(HELD_OUT, np.random.default_rng([0, 7]))
        return self._episodes[task]

    def folder(self, cell: Cell) -> Path:
        """Where the trained quantizer of a cell is kept."""
        return self.out / "quantizers" / f"{cell['task']}_{cell['quantizer']}_{cell['seed']}"

    def work(self, cell: Cell) -> dict[str, Any]:
        """The numbers of one cell."""
        task = str(cell["task"])
        if cell["quantizer"] == FRAMES:
            return self.reference(task)
        training = self.episodes(task)[0]
        config = config_of(str(cell["quantizer"]), self.scale.steps, int(cell["seed"]))
        started = cpu_seconds()
        quantizer = fresh_quantizer(training, config)
        train_quantizer(quantizer, training, config.quantizer_training, config.seed, progress=True)
        seconds = cpu_seconds() - started
        save_quantizer(quantizer, self.folder(cell))
        return {"train_cpu_seconds": seconds, **self.measure(quantizer, task)}

    def measure(self, quantizer: Quantizer, task: str) -> dict[str, Any]:
        """Numbers of a trained quantizer."""
        training, test = self.episodes(task)
        (codes, features), (test_codes, test_features) = tokenize(quantizer, training), tokenize(quantizer, test)
        use = codebook_use(test_codes.numpy(), quantizer.codebook_size)
        rows = spread_rows(test, DECODED)
        stacks = encoding_speed(quantizer, torch.from_numpy(test.observations(rows[:BATCH])), self.scale.seconds)
        return {
            "n_tokens": quantizer.n_tokens, "stack": training.stack, "codebook_size": quantizer.codebook_size,
            "bits": quantizer.n_tokens * math.log2(quantizer.codebook_size),
            "use": use["use"], "perplexity": use["perplexity"],
            # of all positions together: a code may be rare at one and common at another
            "pooled_perplexity": codebook_use(test_codes.numpy().reshape(-1, 1), quantizer.codebook_size)["perplexity"],
            "psnr": psnr(test.frames(rows), decoded(quantizer, test_codes[torch.from_numpy(rows)].long())),
            "code_inputs": quantizer.n_tokens * quantizer.code_dim,
            "codes": self.probe(task, _vectors(quantizer, codes), _vectors(quantizer, test_codes)),
            "feature_inputs": quantizer.feature_dim,
            "features": self.probe(task, features.numpy(), test_features.numpy()) if quantizer.feature_dim else None,
            "stacks_per_second": stacks, "tokens_per_second": stacks * quantizer.n_tokens,
        }  # fmt: skip

    def reference(self, task: str) -> dict[str, Any]:
        """No codes: components of the raw frames for the probe, and the mean picture for the PSNR."""
        training, test = self.episodes(task)
        started = cpu_seconds()
        components = PrincipalComponents(training.frame_shape, self.scale.components)
        frames = training.frames(spread_rows(training, FITTED))
        components.fit(torch.from_numpy(frames), torch.Generator().manual_seed(0))
        seconds = cpu_seconds() - started
        rows = spread_rows(test, DECODED)
        mean = np.broadcast_to(frames.mean(0).round().astype(np.uint8), (len(rows), *training.frame_shape))
        return {
            "stack": training.stack, "train_cpu_seconds": seconds, "psnr": psnr(test.frames(rows), mean),
            "feature_inputs": training.stack * self.scale.components,
            "features": self.probe(task, _stacked(components, training), _stacked(components, test)),
        }  # fmt: skip

    def probe(self, task: str, inputs: np.ndarray, test_inputs: np.ndarray) -> dict[str, float | None]:
        """R² on the held-out episodes, from inputs (N, D) of every row of the training and of the held-out ones."""
        training, test = self.episodes(task)
        rows, test_rows = probed_rows(training), probed_rows(test)
        return probe(
            inputs[rows], probe_targets(training, task), training.episode[rows],
            test_inputs[test_rows], probe_targets(test, task),
        )  # fmt: skip


def config_of(name: str, steps: int | None, seed: int = 0, size: str = "tiny") -> VOCConfig:
    """A quantizer at a size; with ``steps``, everything that the quantizer trains takes so many."""
    config = replace(sized(size, name), seed=seed)
    if steps is None:
        return config
    settings = dict(config.quantizer_config)
    if "teacher_steps" in settings:
        settings["teacher_steps"] = steps
    loop = replace(config.quantizer_training, steps=steps, batch_size=32)
    return replace(config, quantizer_config=settings, quantizer_training=loop)


@torch.no_grad()
def decoded(quantizer: Quantizer, codes: Tensor) -> np.ndarray:
    """int64 (B, n_tokens) -> uint8 (B, 3, H, W), the newest frames."""
    return torch.cat([quantizer.decode(part)[:, -3:] for part in codes.split(BATCH)]).numpy()


@torch.no_grad()
def encoding_speed(quantizer: Quantizer, obs: Tensor, seconds: float) -> float:
    """Observations encoded in a CPU second, over at least ``seconds`` of them."""
    count = 0
    with autocast(quantizer):
        quantizer.encode(obs)  # what is set up at the first call is not counted
        started = time.process_time()
        while (used := time.process_time() - started) < seconds:
            quantizer.encode(obs)
            count += len(obs)
    return count / used


@torch.no_grad()
def _vectors(quantizer: Quantizer, codes: Tensor) -> np.ndarray:
    """(N, n_tokens) -> float32 (N, n_tokens * code_dim): what the reward head sees."""
    return quantizer.embed(codes.long()).flatten(1).numpy()


@torch.no_grad()
def _stacked(components: PrincipalComponents, dataset: Episodes) -> np.ndarray:
    """Every row's components: of the newest frame, and the differences of neighbouring frames, (N, K * components)."""
    rows = np.arange(len(dataset))
    single = torch.cat([components(torch.from_numpy(dataset.frames(part))) for part in np.array_split(rows, 64)])
    stacked = single.numpy()[dataset.stacked_rows(rows)]
    return np.concatenate([stacked[:, -1], *np.diff(stacked, axis=1).swapaxes(0, 1)], 1)


def spread_rows(dataset: Episodes, count: int) -> np.ndarray:
    """At most ``count`` rows, evenly spread over a dataset."""
    return np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))


def main(args: Args) -> dict[str, Any]:
    """Run what is not finished; write table and picture of all that is."""
    scale = SCALES[check_choice(args.scale, SCALES, "scale")]
    for task in args.tasks:
        check_choice(task, POLICIES, "task")
    for name in args.quantizers:
        check_choice(name, QUANTIZERS, "quantizer")
    for count, what in ((len(args.tasks), "tasks"), (len(args.seeds), "seeds")):
        check_positive(count, f"number of {what}")
    hold_settings(args.out / "settings.json", {"scale": args.scale})
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench(scale, args.out)
    marks = {name: fingerprint(_settings(name, scale)) for name in QUANTIZERS} | {FRAMES: fingerprint(asdict(scale))}
    wanted = [(task, FRAMES, 0) for task in args.tasks]
    wanted += [(task, name, seed) for seed in args.seeds for task in args.tasks for name in args.quantizers]
    cells = [
        {"task": task, "quantizer": name, "seed": seed, "scale": args.scale, "settings": marks[name]}
        for task, name, seed in wanted
    ]
    path = args.out / "cells.jsonl"
    run_cells(cells, bench.work, path)
    # of other settings, which a quantizer's size may have had before, nothing is shown
    records = [r for r in finished(path) if r["cell"]["settings"] == marks.get(r["cell"]["quantizer"])]
    return _write(args, bench, records)


def _write(args: Args, bench: Bench, records: list[dict[str, Any]]) -> dict[str, Any]:
    found = summary(records)
    scale, usual = bench.scale, Args()
    results = {
        "what": f"What quantizers keep of frames: trained on {1 - HELD_OUT:.0%} of {scale.episodes} episodes of "
        f"{scale.episode_steps} steps, measured on the others",
        "scale": args.scale, "settings": {name: _settings(name, scale) for name in args.quantizers}, "threads": 1,
        "tasks": found, "hardware": hardware_of(records), "versions": versions_of(records),
        "command": f"python -m voc_rl.benchmarks.quantizers --scale {args.scale}" + options({
            "tasks": (args.tasks, usual.tasks), "quantizers": (args.quantizers, usual.quantizers),
            "seeds": (args.seeds, usual.seeds),
        }),
    }  # fmt: skip
    text = table(found)
    folder = write_results("quantizers", results, text, results_folder(args.results, args.scale, args.out))
    pictures = {task: _pictures(bench, task, rows) for task, rows in found.items()}
    draw_reconstructions(pictures, psnr_notes(found), folder / "quantizers.png")
    print(text)
    return results


def _pictures(bench: Bench, task: str, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Some held-out frames, and what the codes of each quantizer decode to: uint8 (P, 3, H, W)."""
    test = bench.episodes(task)[1]
    chosen = np.sort(np.random.default_rng(0).choice(len(test), PICTURES, replace=False))
    pictures = {"original": test.frames(chosen)}
    for name in rows:
        if name != FRAMES:
            quantizer = load_quantizer(bench.folder({"task": task, "quantizer": name, "seed": rows[name]["seeds"][0]}))
            with torch.no_grad():
                codes = quantizer.encode(torch.from_numpy(test.observations(chosen)))
            pictures[name] = decoded(quantizer, codes)
    return pictures


def _settings(name: str, scale: Scale) -> dict[str, Any]:
    """What a quantizer is made and trained with, for the results and to tell cells apart."""
    config = config_of(name, scale.steps)
    sizes = from_dict(QUANTIZERS[name][1], config.quantizer_config)  # with its defaults
    return {"sizes": asdict(sizes), "training": asdict(config.quantizer_training)}


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.quantizers"))

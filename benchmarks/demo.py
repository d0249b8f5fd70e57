"""From pixels to values on a real task in one command: collect, train, compare with the truth and baselines, report.

voc-rl demo --task walker-walk --out runs/demo
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voc_rl.agents import load_policy
from voc_rl.benchmarks.baselines import Budget, train_critic
from voc_rl.benchmarks.one_step import roll_out, train_one_step
from voc_rl.checkpoints import write_json
from voc_rl.configs import fingerprint
from voc_rl.envs import collect
from voc_rl.envs.collection import same_settings
from voc_rl.errors import VOCError, check_choice, check_positive
from voc_rl.occupancy import default_n
from voc_rl.pipeline import Pipeline, Say
from voc_rl.precision import device_name
from voc_rl.reports.run_report import report_data, write_run_report
from voc_rl.reports.table import format_table
from voc_rl.runs import RunFolder
from voc_rl.stage_settings import made_elsewhere
from voc_rl.training import VOCConfig
from voc_rl.values import ValueEstimate, scores

# stochastic actors of medium skill (agents/policies/README.md)
POLICIES = {"walker-walk": "walker-walk/step_60000", "cheetah-run": "cheetah-run/step_80000"}
TRAINING = ("quantizer", "train")  # stages whose CPU seconds the baselines may use


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does.

    task: walker-walk or cheetah-run. episodes, episode_steps: how much is collected (agent steps of 2 control steps).
    samples: futures per state. max_states: held-out states that are scored. baseline_steps: exact optimiser steps of
    mc and td, which makes a run repeatable; None: as many as fit into the CPU seconds that the VOC took.
    """

    task: str = "walker-walk"
    episodes: int = 80
    episode_steps: int = 250
    samples: int = 100
    max_states: int = 600
    baseline_steps: int | None = None
    voc: VOCConfig = field(default_factory=VOCConfig)

    def __post_init__(self) -> None:
        check_choice(self.task, POLICIES, "task of the demo")
        for name in ("episodes", "episode_steps", "samples", "max_states"):
            check_positive(getattr(self, name), name)
        if self.episodes < 3:
            raise VOCError(f"episodes is {self.episodes}; at least 3 are needed: training, validation and held out.")


def run_demo(
    config: DemoConfig,
    out: Path,
    *,
    processes: int = 2,
    device: torch.device | None = None,
    force: bool = False,
    progress: bool = True,
    say: Say = print,
) -> dict[str, Any]:
    """Run or resume the demo in the folder ``out``; returns what metrics.json holds. ``device``: None is the CPU."""
    started, device = time.perf_counter(), device or torch.device("cpu")
    with RunFolder(out, device_name(device)) as run:
        if not force and (refusal := made_elsewhere(run)):  # before minutes of collecting
            raise VOCError(refusal)
        data = _collect(run, config, processes, force, progress, say)
        stages = ("quantizer", "tokenize", "train", "evaluate", "mc", "td", "one_step", "report")
        anew = frozenset(stages if force else ())
        pipeline = Pipeline(run, data, config.voc, say=say, progress=progress, force=anew, device=device)
        pipeline.test_states(config.max_states)  # before training: bad input is refused at once
        pipeline.constant_value()
        pipeline.train()
        metrics = _evaluate(pipeline, config)
        say(format_table(metrics))
        say(f"{time.perf_counter() - started:.0f} s. Report: {out / 'report.html'}")
    return metrics


def _collect(run: RunFolder, config: DemoConfig, processes: int, force: bool, progress: bool, say: Say) -> Path:
    data = run.path / "data"
    settings = {"task": config.task, "policy": POLICIES[config.task], "episodes": config.episodes,
                "episode_steps": config.episode_steps, "seed": config.voc.seed}  # fmt: skip
    mark = fingerprint(settings)
    if not force:
        there = _check_collected(data, config)
        if there == config.episodes and run.finished("collect", mark):
            say("collect: done already, skipped (--force does it again)")
            return data
    with run.stage("collect", mark, settings, resumes=not force):
        collect(
            data, config.task, load_policy(POLICIES[config.task]), config.episodes, config.voc.seed,
            max_episode_steps=config.episode_steps, processes=processes, progress=progress, force=force,
        )  # fmt: skip
    return data


def _check_collected(data: Path, config: DemoConfig) -> int:
    """The number of episodes that are there, before anything of the folder is overwritten.

    Raises:
        VOCError: they were collected with other settings, or are more than are asked for, all of which would be used.
    """
    asked = {"task": config.task, "seed": config.voc.seed, "max_episode_steps": config.episode_steps}
    same_settings(data, asked)
    there = len(list(data.glob("episode_*.hdf5")))
    if there > config.episodes:
        raise VOCError(
            f"{data} holds {there} episodes and {config.episodes} are asked for; ask for {there}, choose another "
            "--out, or use --force to collect anew."
        )
    return there


def _evaluate(pipeline: Pipeline, config: DemoConfig) -> dict[str, Any]:
    """Values of the held-out states by every method, their scores, and the report."""
    run, voc = pipeline.run, pipeline.train()
    rows, truth, estimates, values = pipeline.answers(config.samples, config.max_states)
    baselines: dict[str, Callable[..., ValueEstimate]] = {
        "mc": partial(_critic, kind="mc"), "td": partial(_critic, kind="td"), "one_step": _one_step,
    }  # fmt: skip
    settings: dict[str, Any] = {
        "samples": config.samples, "max_states": config.max_states, "baseline_steps": config.baseline_steps
    }  # fmt: skip
    for name, baseline in baselines.items():
        values[name] = pipeline.estimate(name, settings, partial(baseline, pipeline, config, rows)).mean
    methods: dict[str, Any] = {name: scores(v, truth, voc.gamma, pipeline.r_max) for name, v in values.items()}
    cpu = run.measured("cpu_seconds")
    budget = sum(cpu[stage] for stage in TRAINING)
    for name, used in (("voc", budget), ("voc_head", budget), ("mc", cpu["mc"]), ("td", cpu["td"]),
                       ("one_step", cpu["quantizer"] + cpu["one_step"])):  # fmt: skip
        methods[name]["cpu_seconds"] = round(used, 1)
    write_json(run.path / "metrics.json", pipeline.metrics(methods, len(truth)))
    mark = pipeline.mark("report", values["mc"].tolist(), values["td"].tolist(), values["one_step"].tolist())
    if not (pipeline.skip("report", mark) and (run.path / "report.html").exists()):
        with run.stage("report", mark, {}):
            metrics = pipeline.metrics(methods, len(truth))
            write_run_report(run.path, report_data(pipeline, metrics, truth, values, estimates))
    metrics = pipeline.metrics(methods, len(truth))
    write_json(run.path / "metrics.json", metrics)
    return metrics


def _critic(pipeline: Pipeline, config: DemoConfig, rows: np.ndarray, kind: Any) -> ValueEstimate:
    cpu = pipeline.run.measured("cpu_seconds")
    budget = Budget(sum(cpu[stage] for stage in TRAINING), config.baseline_steps)
    gamma = config.voc.occupancy.gamma
    n = config.voc.occupancy.n or default_n(gamma)
    critic = train_critic(
        kind, pipeline.training, gamma, n, budget, config.voc.seed,
        device=pipeline.device, log=pipeline.run.log, progress=pipeline.progress,
    )  # fmt: skip
    return _without_interval(critic.values(pipeline.test, rows))


def _without_interval(values: np.ndarray) -> ValueEstimate:
    nothing = np.zeros_like(values)
    return ValueEstimate(values, nothing, values.copy(), values.copy(), 0.0, "nothing: a point estimate")


def _one_step(pipeline: Pipeline, config: DemoConfig, rows: np.ndarray) -> ValueEstimate:
    voc = pipeline.train()
    model = train_one_step(
        voc, pipeline.training, pipeline.tokens_of(pipeline.training), config.voc,
        log=pipeline.run.log, progress=pipeline.progress,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(config.voc.seed)
    codes, features = pipeline.tokens_of(pipeline.test)
    chosen = torch.from_numpy(rows)
    return roll_out(model, voc, codes[chosen], features[chosen], config.samples, generator)

"""The report of a run whose values of states were scored: what it shows, gathered from the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from voc_rl.checkpoints import atomic_path
from voc_rl.model import VOC
from voc_rl.pipeline import Pipeline
from voc_rl.plugin import pictures_of
from voc_rl.quantizers import code_counts
from voc_rl.reports.report import ReportData, write_report
from voc_rl.runs import versions
from voc_rl.values import ValueEstimate, discounted_returns

CONTEXTS = 4
FUTURES = 5
PICTURES = 8
AS_PNG = {"scatter", "episode", "futures"}  # figures that are also files of their own


def report_evaluation(pipeline: Pipeline, metrics: dict[str, Any], samples: int, max_states: int) -> None:
    """The report of ``Pipeline.evaluate(samples, max_states)``, which returned ``metrics``; a stage of its own.

    Where other methods were scored beside it, as the demo does, their report is there and stays.
    """
    _, truth, estimates, values = pipeline.answers(samples, max_states)
    if metrics["methods"].keys() - values.keys():
        return
    mark = pipeline.mark("report", samples, max_states)
    if pipeline.skip("report", mark, pipeline.run.path / "report.html"):
        return
    with pipeline.run.stage("report", mark, {}):
        if pipeline.run.writes:
            write_run_report(pipeline.run.path, report_data(pipeline, metrics, truth, values, estimates))


def write_run_report(folder: Path, shown: ReportData) -> None:
    """Write report.html, and some of its figures as PNGs, into the folder of a run."""
    pictures = write_report(folder / "report.html", shown)
    for name in AS_PNG & pictures.keys():
        with atomic_path(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(pictures[name])


def report_data(
    pipeline: Pipeline,
    metrics: dict[str, Any],
    truth: np.ndarray,
    values: dict[str, np.ndarray],
    estimates: dict[str, ValueEstimate],
) -> ReportData:
    """Gather pictures, values along an episode and curves; every random choice comes from the run's seed."""
    voc, test = pipeline.train(), pipeline.test
    rng = np.random.default_rng([pipeline.config.seed, 17])
    generator = torch.Generator().manual_seed(pipeline.config.seed)
    episode = _telling_episode(pipeline)
    rows = np.arange(test.starts[episode], test.ends[episode])
    returns, known = discounted_returns(test, voc.gamma)
    codes, features = pipeline.tokens_of(test)
    along = {}
    for name, estimator in (("voc", "sample"), ("voc_head", "head")):
        if name not in estimates:  # a model without a value head
            continue
        estimate = voc.value_of_codes(codes[rows], features[rows], estimator=estimator, generator=generator)  # type: ignore[arg-type]
        along[name] = (estimate.mean, estimate.low, estimate.high)
    gammas = _discounts(voc.gamma)
    contexts, real, sampled = _futures(pipeline, gammas, rng, generator)
    pictures = rng.choice(len(test), size=min(PICTURES, len(test)), replace=False)
    originals, decoded = (
        test.observations(pictures),
        voc.quantizer.decode(codes[pictures].long().to(voc.device)).detach().cpu().numpy(),
    )
    squared = float(np.mean((originals.astype(float) - decoded) ** 2))
    shown = {**metrics, "quantizer": {**metrics["quantizer"], "psnr": 10 * np.log10(255**2 / max(squared, 1e-9))},
             "versions": versions()}  # fmt: skip
    return ReportData(
        metrics=shown,
        truth=truth,
        predictions=values,
        intervals={name: (estimate.low, estimate.high) for name, estimate in estimates.items()},
        covers={name: estimate.covers for name, estimate in estimates.items()},
        episode_frames=test.frames(rows),
        episode_truth=np.where(known[rows], returns[rows], np.nan),
        episode_values=along,
        gammas=gammas,
        context_frames=test.frames(contexts),
        real_futures=real,
        sampled_futures=sampled,
        originals=originals[:, -3:],
        reconstructions=decoded[:, -3:],
        code_counts=code_counts(codes.numpy(), voc.quantizer.codebook_size),
        curves=pipeline.run.curve(),
    )


def _telling_episode(pipeline: Pipeline) -> int:
    """The held-out episode whose true values vary most, over its rows: a flat or short one shows nothing."""
    test = pipeline.test
    returns, known = discounted_returns(test, pipeline.config.occupancy.gamma)
    known = known & ~test.terminal
    own = [returns[a:b][known[a:b]] for a, b in zip(test.starts, test.ends, strict=True)]
    return int(np.argmax([len(some) * some.var() if len(some) else 0.0 for some in own]))


def _discounts(gamma: float) -> tuple[float, ...]:
    """The model's own discount, and two larger ones that it reaches by feeding futures back: horizons x 2 and x 4."""
    return tuple(round(1.0 - (1.0 - gamma) / factor, 4) for factor in (1, 2, 4))


def _futures(
    pipeline: Pipeline, gammas: tuple[float, ...], rng: np.random.Generator, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts (R,), logged frames and decoded samples (R, G, S, 3, H, W) at geometric times; black after an end."""
    voc: VOC = pipeline.train()
    test = pipeline.test
    far = np.flatnonzero(test.steps_left >= min(60, int(np.median(test.steps_left[test.steps_left > 0]))))
    contexts = np.sort(rng.choice(far, size=min(CONTEXTS, len(far)), replace=False))
    codes, features = pipeline.tokens_of(test)
    real, sampled = [], []
    for gamma in gammas:
        k, left = np.sort(rng.geometric(1.0 - gamma, (len(contexts), FUTURES)), 1), test.steps_left[contexts][:, None]
        last = contexts[:, None] + np.minimum(k, left)  # of what a time limit cuts off, its last row
        frames = test.frames(last)
        frames[(k > left) & test.terminal[last]] = 0
        real.append(frames)
        drawn = voc.futures_of_codes(codes[contexts], features[contexts], FUTURES, gamma, generator).flatten(0, 1)
        sampled.append(pictures_of(voc, drawn).reshape(frames.shape))
    return contexts, np.stack(real, 1), np.stack(sampled, 1)

"""Scores, table and picture of the benchmark of many rewards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from voc_rl.benchmarks.ope_scores import policy_scores
from voc_rl.benchmarks.results import hardware_of, versions_of
from voc_rl.reports.plots import save

Truth = Mapping[str, Mapping[str, Mapping[str, float]]]  # task -> reward -> policy -> J
WHAT = {
    "voc": "sampled futures of one policy-conditioned VOC, a reward head fitted per reward",
    "voc_density": "the same network's density ratios, real rewards of logged rows",
    "mfmc": "its stitched chains, real rewards of logged rows",
    "voc_corrected": "these chains, their jumps corrected by a critic that is fitted to each reward when it is asked",
    "sf_td": "TD successor features, a reward is weights on them",
    "fqe_all": "fitted Q evaluation with an output per reward: knows them before it is trained",
    "median": "median of the logged policies' true J (an oracle helps)",
}
SCORES = ("mae", "bias", "spearman", "regret@1")
SHOWN = ("voc", "voc_corrected", "voc_density", "sf_td", "fqe_all")


def results_of(records: Sequence[Mapping[str, Any]], truth: Truth, scale: str, gamma: float) -> dict[str, Any]:
    """What rewards.json holds: scores by task, reward and method, of the test policies; the development ones apart."""
    found: dict[str, Any] = {"test": {}, "development": {}}
    for part, tasks in found.items():
        own = [record for record in records if record["cell"]["part"] == part]
        for task in dict.fromkeys(record["cell"]["task"] for record in own):
            tasks[task] = {
                "gamma": gamma,
                "rewards": {reward: _of_reward(own, task, reward, truth[task][reward]) for reward in truth[task]},
                "cpu_seconds": _cpu_seconds([record for record in own if record["cell"]["task"] == task]),
            }
    return {
        "what": "Values of policies under rewards that nobody logged, J = (1 - gamma) V, against true roll-outs",
        "scale": scale, "tasks": found["test"], "development": found["development"], "hardware": hardware_of(records),
        "versions": versions_of(records), "command": f"python -m voc_rl.benchmarks.rewards --scale {scale}",
    }  # fmt: skip


def _cpu_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of a cell by its method, averaged over seeds."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for record in records:
        seconds[record["cell"]["method"]].append(record["cpu_seconds"])
    return {method: float(np.mean(own)) for method, own in seconds.items()}


def _of_reward(
    records: Sequence[Mapping[str, Any]], task: str, reward: str, true: Mapping[str, float]
) -> dict[str, Any]:
    methods: dict[str, list[dict[str, float]]] = defaultdict(list)
    names: list[str] = []
    for record in records:
        if record["cell"]["task"] != task:
            continue
        for method, rewards in record["result"]["estimates"].items():
            names = list(rewards[reward])
            answered = {name: value for name, value in rewards[reward].items() if value is not None}
            scored = {"answered": len(answered) / len(names)}
            if len(answered) > 1:
                own = {name: true[name] for name in answered}
                rng = np.random.default_rng([record["cell"]["seed"], 53])
                scores = policy_scores(answered, own, answered, answered, rng)
                scored |= {key: scores[key] for key in SCORES}
            methods[method].append(scored)
    middle = float(np.median([value for name, value in true.items() if name.startswith("logged")]))
    own = {name: true[name] for name in names}
    flat = dict.fromkeys(own, middle)
    scores = policy_scores(flat, own, flat, flat, np.random.default_rng(53))
    methods["median"] = [{"answered": 1.0, **{key: scores[key] for key in SCORES}}]
    return {
        "range": float(np.ptp(list(own.values()))), "policies": len(own),
        "methods": {method: _mean(seeds) for method, seeds in methods.items()},
    }  # fmt: skip


def _mean(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = [key for key in ("answered", *SCORES) if all(key in s for s in seeds)]
    return {"seeds": len(seeds), **{key: float(np.mean([s[key] for s in seeds])) for key in keys}}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a table per task; MAE and rank correlation by method and reward, test policies; the development ones
    where no others were asked."""
    lines: list[str] = []
    kind, tasks = ("", found["tasks"]) if found["tasks"] else ("development ", found["development"])
    for task, entry in tasks.items():
        rewards = entry["rewards"]
        some = next(iter(rewards.values()))
        lines.append(f"**{task}**, γ = {entry['gamma']:g}, {some['policies']} {kind}policies: MAE of J (Spearman)\n")
        lines.append(f"| method | what it is | {' | '.join(rewards)} | CPU s |")
        lines.append(f"|---|---|{'---:|' * (len(rewards) + 1)}")
        spread = " | ".join(f"{one['range']:.3f}" for one in rewards.values())
        lines.append(f"| | range of the true J | {spread} | |")
        for method in [name for name in WHAT if name in some["methods"]]:
            cells = [_cell(one["methods"][method]) for one in rewards.values()]
            source = "voc" if method in ("voc_density", "mfmc") else method
            cpu = entry["cpu_seconds"].get(source)
            lines.append(
                f"| `{method}` | {WHAT[method]} | {' | '.join(cells)} | {'–' if cpu is None else f'{cpu:.0f}'} |"
            )
        lines.append("")
    note = "`voc`, `voc_density` and `mfmc` share the CPU seconds of one cell."
    if any("% answered" in line for line in lines):
        note += " % answered: share of the policies that got a number; error and rank are of those alone."
    return "\n".join([*lines, note])


def _cell(scored: Mapping[str, float]) -> str:
    if "mae" not in scored:
        return "no number"
    part = "" if scored["answered"] == 1 else f" {scored['answered']:.0%} answered"
    return f"{scored['mae']:.3f} ({scored['spearman']:.2f}){part}"


def save_plot(path: Path, records: Sequence[Mapping[str, Any]], truth: Truth) -> None:
    """Estimated against true J: a row per task, a panel per reward; of the test policies where there are some."""
    part = "test" if any(record["cell"]["part"] == "test" for record in records) else "development"
    chosen: dict[tuple[str, str], Mapping[str, Mapping[str, float | None]]] = {}
    for record in records:
        if record["cell"]["part"] == part:
            for method, rewards in record["result"]["estimates"].items():
                chosen.setdefault((record["cell"]["task"], method), rewards)
    tasks = list(dict.fromkeys(task for task, _ in chosen))
    width = max((len(truth[task]) for task in tasks), default=1)
    figure = Figure(figsize=(2.6 * width, 2.6 * max(len(tasks), 1)), layout="constrained")
    panels = figure.subplots(max(len(tasks), 1), width, squeeze=False)
    colours = dict(zip(SHOWN, ("#1f6fb4", "#b03060", "#2a9a4a", "#d08020", "#999999"), strict=True))
    for line, task in zip(panels, tasks, strict=False):
        for axes, (reward, true) in zip(line, truth[task].items(), strict=False):
            for method in [name for name in SHOWN if (task, name) in chosen]:
                points = [(true[n], v) for n, v in chosen[task, method][reward].items() if v is not None]
                if points:
                    axes.plot(*np.array(points).T, "o", markersize=3, color=colours[method], label=method)
            ends = [min(true.values()), max(true.values())]
            axes.plot(ends, ends, color="#555555", linewidth=1)
            axes.set_title(f"{task}: {reward}", fontsize=9)
            axes.grid(alpha=0.3)
        line[0].set_ylabel("estimated J")
    for axes in panels[-1]:
        axes.set_xlabel("true J")
    panels[0][0].legend(fontsize=7)
    save(path, figure)

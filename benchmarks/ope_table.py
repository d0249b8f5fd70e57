"""Scores, table and picture of the policy-evaluation benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from voc_rl.benchmarks.ope_scores import pair_scores, paired_difference, policy_scores
from voc_rl.benchmarks.results import hardware_of, versions_of
from voc_rl.reports.plots import save

Truth = Mapping[tuple[str, float], Mapping[str, float]]
COLUMNS = ("mae", "bias", "spearman", "spearman_top_half", "regret@1", "regret@5", "coverage90")
WHAT = {
    "voc": "sampled futures of one policy-conditioned VOC",
    "voc_warm": "the same without a value head, from a behaviour model on, in as many steps in all",
    "voc_alone": "a network of each policy's own, from a behaviour model on, in as many steps in all",
    "voc_head": "its value head, one pass; learns from the corrected chains",
    "voc_corrected": "stitched chains, a fitted critic corrects their jumps",
    "mfmc": "stitched chains of logged rows, no network (Model-free Monte Carlo)",
    "one_step": "the same network trained for one step, rolled out",
    "fqe": "fitted Q evaluation on the quantizer's features",
    "fqe_state": "the same on true states: an upper reference",
    "wis": "weighted importance sampling of logged steps",
    "dr": "weighted doubly robust with fqe; its interval takes fqe as it is",
    "nearest": "true J of the logged policy that acts most alike (an oracle helps)",
    "median": "median of the logged policies' true J (an oracle helps)",
    "mc": "mean logged return: the behaviour's value",
    "exact": "the truth itself",
}  # fmt: skip
STRATA = ("logged", "mixed", "unseen")
REFERENCE = "voc_head"  # what differences are to
NOTES = """\
- J: (1 − γ) V / r_max. MAE, bias: of estimated J. Spearman: rank correlation with true J; top half: within the better
  half of the policies by true J.
- regret@k: true J that is lost by picking the best of the k highest estimates out of ten policies drawn at random
  (500 times), as a share of the range of true J. covered: share of the 90 % intervals that hold the truth.
- logged, mixed, unseen: MAE of checkpoints that made the data, of mixtures of two of them, and of policies that the
  data do not hold (8 each; at scale gpu 16, 12 and 12).
- Pairs: all of two policies. hold: share of the intervals that hold the true difference. apart: share that leave out 0;
  unpaired: the same if the errors of two policies were independent; wrongly: share of those that leave out 0 which lie
  on the wrong side of it.
- CPU s: of one cell, a mean over seeds; `voc`, `voc_head`, `voc_corrected` and `mfmc` share one. The quantizer, which
  all methods share, is not in it."""
BOLD = """\
- **Bold** differences: the two are told apart, that is, the interval leaves out 0 and every seed has its sign (of a
  single seed it says nothing about training anew)."""
SHOWN = ("voc", "voc_head", "voc_corrected", "mfmc", "fqe")


def results_of(records: Sequence[Mapping[str, Any]], truth: Truth, scale: str) -> dict[str, Any]:
    """What ope.json holds: scores of the test policies by task and method, the development ones apart."""
    found: dict[str, Any] = {"development": {}, "test": {}}
    for part, tasks in found.items():
        groups: dict[Any, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        values_of: dict[Any, dict[str, dict[int, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
        pairs_of: dict[Any, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        for record in records:
            cell = record["cell"]
            if cell["part"] != part:
                continue
            where = (cell["task"], cell["gamma"])
            true = truth[where]
            for method, estimates in record["result"]["estimates"].items():
                own = {name: true[name] for name in estimates}
                scored = _scores(estimates, own, cell["seed"])
                scored["cpu_seconds"] = record["cpu_seconds"]
                groups[where][method].append(scored)
                values_of[where][method][cell["seed"]] = {n: e[0] for n, e in estimates.items()}
                if pairs := record["result"].get("pairs", {}).get(method):  # the chains and their networks have them
                    low, high = ({name: e[i] for name, e in estimates.items()} for i in (1, 2))
                    pairs_of[where][method].append(pair_scores(pairs, own, low, high))
                groups[where].setdefault("exact", [_scores(_exact(own), own, 0)])
        for (task, gamma), methods in groups.items():
            names = _names(records, part, task)
            values = np.array([truth[task, gamma][name] for name in names])
            j = {
                method: {seed: np.array([own[name] for name in names]) for seed, own in seeds.items()}
                for method, seeds in values_of[task, gamma].items()
            }
            entry = {
                "gamma": gamma, "range": float(np.ptp(values)), "policies": len(names),
                "methods": {method: _mean(seeds) for method, seeds in methods.items()},
                "differences": _differences(j, values),
                "pairs": {method: _mean(seeds) for method, seeds in pairs_of[task, gamma].items()},
                "true": dict(zip(names, values.tolist(), strict=True)),
                "estimates": {m: np.mean(list(own.values()), 0).round(5).tolist() for m, own in j.items()},
            }  # fmt: skip
            tasks.setdefault(task, {"others": []})
            if "gamma" in tasks[task]:
                tasks[task]["others"].append(entry)
            else:
                tasks[task].update(entry)
    return {
        "what": "Values of policies from logged pixels, against true roll-outs: J = (1 - gamma) V / r_max",
        "scale": scale, "tasks": found["test"], "development": found["development"], "hardware": hardware_of(records),
        "versions": versions_of(records), "command": f"python -m voc_rl.benchmarks.ope --scale {scale}",
    }  # fmt: skip


def _scores(estimates: Mapping[str, Sequence[float]], true: Mapping[str, float], seed: int) -> dict[str, float]:
    mean, low, high = ({name: e[i] for name, e in estimates.items()} for i in range(3))
    scored = policy_scores(mean, true, low, high, np.random.default_rng([seed, 53]))
    for stratum in STRATA:
        errors = [abs(mean[name] - true[name]) for name in mean if name.startswith(stratum)]
        if errors:
            scored[f"mae_{stratum}"] = float(np.mean(errors))
    return scored


def _differences(j: Mapping[str, Mapping[int, np.ndarray]], true: np.ndarray) -> dict[str, dict[str, Any]]:
    """By method: its absolute errors less those of ``REFERENCE``, of J (P,) by seed, over the seeds that both have."""
    found, base = {}, j.get(REFERENCE, {})
    for method, own in j.items():
        seeds = sorted(set(own) & set(base))
        if seeds and method != REFERENCE:
            mine, other = (np.stack([np.abs(side[seed] - true) for seed in seeds]) for side in (own, base))
            found[method] = paired_difference(mine, other, np.random.default_rng(61))
    return found


def _exact(true: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    return {name: (value, value, value) for name, value in true.items()}


def _names(records: Sequence[Mapping[str, Any]], part: str, task: str) -> list[str]:
    own = next(r for r in records if (r["cell"]["part"], r["cell"]["task"]) == (part, task))
    return list(next(iter(own["result"]["estimates"].values())))


def _mean(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {"seeds": len(seeds), **{key: float(np.mean([s[key] for s in seeds])) for key in seeds[0]}}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a table per task and discount, test policies; the development ones where no others were asked."""
    parts, kind, tasks = [], "", found["tasks"]
    if not tasks:
        kind, tasks = "development ", found["development"]
    for task, first in tasks.items():
        for entry in (first, *first["others"]):
            parts.append(
                f"**{task}**, γ = {entry['gamma']:g}, {entry['policies']} {kind}policies, true J over a range of "
                f"{entry['range']:.3f}\n"
            )
            head = ("MAE", "bias", "Spearman", "top half", "regret@1", "regret@5", "covered")
            parts.append(f"| method | what it is | {' | '.join(head)} | logged | mixed | unseen | seeds | CPU s |")
            parts.append(f"|---|---|{'---:|' * (len(head) + 5)}")
            order = [m for m in WHAT if m in entry["methods"]]
            for method in order:
                row = entry["methods"][method]
                numbers = [f"{row[c]:+.3f}" if c == "bias" else f"{row[c]:.3f}" for c in COLUMNS[:4]]
                numbers += [f"{row[c]:.2f}" for c in COLUMNS[4:]]
                strata = [f"{row[f'mae_{s}']:.3f}" if f"mae_{s}" in row else "–" for s in STRATA]
                cpu = f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "–"
                parts.append(
                    f"| `{method}` | {WHAT[method]} | {' | '.join([*numbers, *strata, str(row['seeds']), cpu])} |"
                )
            if entry["differences"]:
                told = [f"`{m}` {_difference(found)}" for m, found in entry["differences"].items()]
                parts.append(f"\nMAE less that of `{REFERENCE}` [90 % of bootstraps over policies]: {', '.join(told)}.")
            if entry["pairs"]:
                said = [f"`{m}` {_pairs(found)}" for m, found in entry["pairs"].items()]
                parts.append(f"\nPairs of policies, by 90 % intervals of their differences: {'; '.join(said)}.")
            parts.append("")
    return "\n".join([*parts, NOTES, BOLD])


def _difference(found: Mapping[str, Any]) -> str:
    bold = "**" if found["told_apart"] else ""
    return f"{bold}{found['mean']:+.3f}{bold} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _pairs(found: Mapping[str, Any]) -> str:
    wrong = f"{found['wrong'] / found['told']:.1%} of these wrongly" if found["told"] else "none"
    return f"hold {found['held']:.0%}, tell {found['told']:.0%} apart ({found['unpaired']:.0%} unpaired), {wrong}"


def save_plot(path: Path, records: Sequence[Mapping[str, Any]], truth: Truth, gamma: float) -> None:
    """Estimated against true J of the test policies, with intervals: a row per task, a panel per method; no file where
    none were evaluated."""
    chosen = [r for r in records if (r["cell"]["part"], r["cell"]["gamma"]) == ("test", gamma)]
    tasks = list(dict.fromkeys(r["cell"]["task"] for r in chosen))
    if not tasks:
        return
    figure = Figure(figsize=(12, 3.2 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(SHOWN), squeeze=False, sharex="row", sharey="row")
    colours = dict(zip(STRATA, ("#1f6fb4", "#d08020", "#2a9a4a"), strict=True))
    for line, task in zip(panels, tasks, strict=True):
        true = truth[task, gamma]
        own = [r["result"]["estimates"] for r in chosen if r["cell"]["task"] == task]
        for axes, method in zip(line, SHOWN, strict=True):
            ends = [min(true.values()), max(true.values())]
            axes.plot(ends, ends, color="#999999", linewidth=1)
            first: Mapping[str, Sequence[float]] = next(
                (estimates[method] for estimates in own if method in estimates), {}
            )
            for stratum in STRATA:
                points = [(true[name], *e) for name, e in first.items() if name.startswith(stratum)]
                if points:
                    x, mean, low, high = np.array(points).T
                    bars = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
                    style = {"fmt": "o", "markersize": 4, "linewidth": 1, "color": colours[stratum]}
                    axes.errorbar(x, mean, bars, label=stratum, **style)
            axes.set_title(f"{task}: {method}", fontsize=10)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel(f"true J at γ = {gamma:g}")
    for line in panels:
        line[0].set_ylabel("estimated J, 90 % intervals")
    panels[0][0].legend(fontsize=8)
    save(path, figure)

"""Scores, paired differences and the table of the value-error benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voc_rl.benchmarks.ope_data import R_MAX
from voc_rl.benchmarks.ope_scores import told_apart
from voc_rl.benchmarks.results import hardware_of, versions_of
from voc_rl.benchmarks.value_error_data import HELD_OUT, LEFT_OUT, Truth
from voc_rl.reports.table import COLUMNS, METHODS, OURS, ordered
from voc_rl.values import scores

BASE = "vqvae"  # the quantizer with all seeds and discounts; what its VOC took is the critics' budget
PIXELS = "pixels"  # what methods without a quantizer see
RIVALS = ("mc", "td", "paper")
RESAMPLED = 2000
LEVEL = 0.9
SCORES = ("error", "nrmse", "bias", "spearman")

Truths = Mapping[tuple[str, float], Truth]
# (method, what it sees) -> seed -> values (B,) and the cell's record
Values = Mapping[tuple[str, str], Mapping[int, tuple[np.ndarray, Mapping[str, Any]]]]

NOTES = """\
- error: squared error of the true value over its variance over states, the roll-outs' noise taken off both: 1 is the
  best constant, 0 the truth. ±: standard deviation over seeds. NRMSE: root of the squared error times (1 − γ) / 2.
- Differences of errors: the mean over states of what one method's squared error is above the other's, averaged over
  the seeds that both have, over the same variance. In brackets 90 % of bootstrapped means; whole episodes are drawn,
  because neighbouring states err alike; then each seed. **Bold**: the two are told apart, that is, the interval leaves
  out 0 and every seed has its sign (of a single seed it says nothing about training anew).
- CPU s: of training, the quantizer included. `mc` and `td` had what `voc` on `vqvae` took. All in one thread."""


def results_of(records: Sequence[Mapping[str, Any]], truths: Truths, scale: str) -> dict[str, Any]:
    """What value_error.json holds: per task, an entry for each discount, the smallest first."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, gamma), truth in sorted(truths.items(), key=lambda item: item[0][1]):
        own = [r for r in records if r["cell"]["task"] == task and r["cell"].get("gamma") == gamma]
        tasks.setdefault(task, []).append(_entry(own, truth, gamma))
    return {
        "what": "Errors of values of held-out states of the behaviour policy, against true roll-outs",
        "scale": scale, "tasks": dict(sorted(tasks.items(), reverse=True)), "threads": 1,
        "held_out": HELD_OUT, "left_out_by_seed": LEFT_OUT,
        "quantizers": [{**r["cell"], **r["result"]} for r in records if r["cell"]["method"] == "quantizer"],
        "hardware": hardware_of(records), "versions": versions_of(records),
        "command": f"python -m voc_rl.benchmarks.value_error --scale {scale}",
    }  # fmt: skip


def _entry(records: Sequence[Mapping[str, Any]], truth: Truth, gamma: float) -> dict[str, Any]:
    """Scores of all methods at one task and discount."""
    values: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    refused: dict[str, str] = {}
    rows: dict[str, list[int]] = defaultdict(list)
    for record in records:
        cell, result = record["cell"], record["result"]
        for method, found in result["values"].items():
            values[method, cell["quantizer"]][cell["seed"]] = np.array(found), result
        if "refused" in result:
            refused[cell["method"]] = result["refused"]
        for key in ("known_rows", "rows"):
            if key in result:
                rows[key].append(result[key])
    noise = float(truth.noise.mean())
    names = ordered({method for method, _ in values})
    seen = sorted(values, key=lambda key: (names.index(key[0]), key[1] != BASE, key[1]))
    return {
        "gamma": gamma, "states": len(truth.mean), "episodes": len(np.unique(truth.episode)),
        "mean": float(truth.mean.mean()), "variance": float(truth.mean.var()) - noise, "noise": noise,
        **{key: round(float(np.mean(counts))) for key, counts in rows.items()},
        "methods": [_scored(method, sees, values[method, sees], truth, gamma) for method, sees in seen],
        "differences": _differences(values, truth), "refused": refused,
    }  # fmt: skip


def _scored(method: str, sees: str, seeds: Mapping[int, Any], truth: Truth, gamma: float) -> dict[str, Any]:
    """Means over seeds of a method's scores, and the spread of its error."""
    found = [scores(values, truth.mean, gamma, R_MAX, float(truth.noise.mean())) for values, _ in seeds.values()]
    cpu = [result["train_cpu_seconds"] for _, result in seeds.values() if "train_cpu_seconds" in result]
    return {
        "method": method, "sees": sees, "seeds": sorted(seeds),
        **{key: float(np.mean([f[key] for f in found])) for key in SCORES},
        "error_spread": float(np.std([f["error"] for f in found], ddof=1)) if len(found) > 1 else None,
        "cpu_seconds": float(np.mean(cpu)) if cpu else None,
    }  # fmt: skip


def _differences(values: Values, truth: Truth) -> list[dict[str, Any]]:
    """Both of ours against each rival: on the same quantizer where the rival has one, else against pixels."""
    found = []
    for (method, sees), ours in values.items():
        for rival in RIVALS if method in OURS else ():
            theirs = values.get((rival, sees), values.get((rival, PIXELS), {}))
            seeds = sorted(set(ours) & set(theirs))
            if seeds:
                mine, other = (np.stack([side[seed][0] for seed in seeds]) for side in (ours, theirs))
                difference = paired_difference(mine, other, truth, np.random.default_rng(61))
                found.append({"method": method, "sees": sees, "rival": rival, "seeds": seeds, **difference})
    return found


def paired_difference(ours: np.ndarray, theirs: np.ndarray, truth: Truth, rng: np.random.Generator) -> dict[str, Any]:
    """By how much the error of values (seeds, B) is above that of others (seeds, B): mean, low, high (90 %), by_seed.

    The roll-outs' noise cancels: both are compared with the same means. Episodes are drawn with replacement.
    """
    each = (ours - truth.mean) ** 2 - (theirs - truth.mean) ** 2
    variance = max(float(truth.mean.var() - truth.noise.mean()), 1e-12)
    squares, by_seed = each.mean(0) / variance, each.mean(1) / variance
    _, place = np.unique(truth.episode, return_inverse=True)
    sums, counts = np.bincount(place, squares), np.bincount(place)
    drawn = rng.integers(len(sums), size=(RESAMPLED, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return {
        "mean": float(squares.mean()), "low": float(low), "high": float(high), "by_seed": by_seed.tolist(),
        "told_apart": told_apart(low, high, by_seed.tolist()),
    }  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a table and the differences per task and discount, and how to read them."""
    parts = []
    for task, entries in results["tasks"].items():
        for entry in entries:
            parts += [_head(task, entry), _rows(entry), *_sentences(entry), ""]
    return "\n".join([*parts, NOTES])


def _head(task: str, entry: Mapping[str, Any]) -> str:
    return (
        f"**{task}**, γ = {entry['gamma']:g}: {entry['states']} states of {entry['episodes']} held-out episodes, true "
        f"values {entry['mean']:.1f} ± {max(entry['variance'], 0.0) ** 0.5:.1f}, known to "
        f"± {entry['noise'] ** 0.5:.2f}\n"
    )


def _rows(entry: Mapping[str, Any]) -> str:
    shown = [column for column in COLUMNS if column.key in (*SCORES, "cpu_seconds")]
    lines = ["| method | sees | what it is | seeds | " + " | ".join(column.heading for column in shown) + " |"]
    lines.append("|---|---|---|---:|" + "---:|" * len(shown))
    for row in entry["methods"]:
        texts = {column.key: column.show(row[column.key]) for column in shown}
        if row["error_spread"] is not None:
            texts["error"] += f" ± {row['error_spread']:.2f}"
        cells = [f"`{row['method']}`", row["sees"], METHODS[row["method"]].description, str(len(row["seeds"]))]
        lines.append("| " + " | ".join([*cells, *texts.values()]) + " |")
    return "\n".join(lines) + "\n"


def _sentences(entry: Mapping[str, Any]) -> list[str]:
    """Differences, and what the data allowed."""
    lines = []
    for method, sees in dict.fromkeys((d["method"], d["sees"]) for d in entry["differences"]):
        own = [d for d in entry["differences"] if (d["method"], d["sees"]) == (method, sees)]
        lines.append(f"- Error of `{method}` ({sees}) minus that of: {', '.join(map(_difference, own))}")
    if "known_rows" in entry:
        share = entry["known_rows"] / entry["rows"]
        lines.append(
            f"- {entry['known_rows']:,} training rows ({share:.0%}) have a known return (a mean over seeds); 15 % of "
            "the episodes are kept back from `mc` and `td` for early stopping."
        )
    lines += [f"- `{method}` refused: {why}." for method, why in entry["refused"].items()]
    return lines


def _difference(found: Mapping[str, Any]) -> str:
    """A difference with its interval and, of several seeds, each seed's."""
    bold = "**" if found["told_apart"] else ""
    seeds = "; " + ", ".join(f"{own:+.2f}" for own in found["by_seed"]) if len(found["by_seed"]) > 1 else ""
    return f"`{found['rival']}` {bold}{found['mean']:+.2f}{bold} [{found['low']:+.2f}, {found['high']:+.2f}{seeds}]"

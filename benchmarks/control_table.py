"""Numbers and table of the control benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voc_rl.benchmarks.control_data import name_of
from voc_rl.benchmarks.results import hardware_of, versions_of
from voc_rl.values.statistics import student_interval

LEVEL = 0.9
NOTES = """\
- return: a mean over seeds of the mean over episodes; its interval is over the seeds where there are several, else over
  episodes. seeds: the mean of each.
- lies: mean share of the time on the ground (Walker) or on the back (Cheetah). never lies: episodes that never do, of
  all, and what they earn.
- outside support: share of the planned actions that lie outside the support of the clone that proposes them.
- ms per decision: to see (frames to codes and features), to propose actions and to score them; so many environments are
  decided for at once."""
WHAT = {
    "behaviour": "what made the data",
    "best_logged": "the best checkpoint of the data, from the true state, with the noise it logged with",
    "bc": "behaviour cloning, mean action",
    "bc_sampled": "behaviour cloning, sampled action",
    "bc_top10": "cloning of the best tenth of the episodes",
    "td3bc": "TD3+BC",
    "mc_awr": "clone weighted by logged returns less a linear value of the features, no VOC",
    "voc_awr": "clone weighted by lambda-returns with the VOC's values less a linear value of the features",
    "voc_awr_v": "clone weighted by logged returns less the VOC's values",
    "voc_awr_q": "clone weighted by the VOC's Q(s, a) less its V(s)",
    "voc_awr_2": "voc_awr_q once more, on a VOC of the clone voc_awr",
    "bc_conv": "bc, but seen through convolutions that a clone of all rows learned",
    "bc_top10_conv": "bc_top10 through them",
    "td3bc_conv": "td3bc through them",
    "mc_awr_conv": "mc_awr through them",
    "voc_awr_conv": "voc_awr through them",
    "td3bc_tokens": "TD3+BC on the vectors of the quantizer's tokens",
    "drqv2bc": "DrQ-v2+BC from frames, convolutions of its own",
    "planner": "planner, Q by the head",
    "planner_awr": "planner around the weighted clone, Q by the head",
    "planner_samples": "planner, Q by samples",
    "one_step_mppi": "MPPI on a one-step model, eight steps ahead: as many tokens as planner_samples",
    "zero_shot": "planner for another goal (its return is of the data's reward)",
    "td3": "Stable-Baselines3's TD3 from the VOC's features, offline; nothing keeps it near the data",
    "voc_critic": "the same with its critic drawn towards the VOC's Q as much as towards its own target (VOCCritic)",
    "voc_critic_alone": "the same, the actor follows the VOC's Q alone (VOCCritic, voc_weight inf)",
    "td3_near": "td3, kept near the logged actions as TD3+BC is (VOCCritic, bc_alpha 2.5, voc_weight 0)",
    "voc_critic_near": "voc_critic, kept near them (VOCCritic, bc_alpha 2.5)",
    "voc_critic_alone_near": "voc_critic_alone, kept near them (VOCCritic, bc_alpha 2.5, voc_weight inf)",
}


def interval_of(returns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and interval of returns by seed and episode: over the seeds where there are several, else over episodes."""
    means = np.array([np.mean(own) for own in returns])
    parts = means if len(means) > 1 else np.asarray(returns[0], float)
    stderr = parts.std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else 0.0
    low, high = student_interval(np.asarray(parts.mean()), np.asarray(stderr), max(len(parts), 2), LEVEL)
    return {
        "mean": float(means.mean()), "low": float(low), "high": float(high),
        "seeds": len(returns), "episodes": int(sum(map(len, returns))), "seed_means": means.round(1).tolist(),
    }  # fmt: skip


def lying_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean share of the time on the ground (on the back), and how many episodes never lie there and what they earn."""
    down, returns = (np.concatenate([record[key] for record in found]) for key in ("down", "returns"))
    up = returns[down == 0]
    return {
        "down": float(down.mean()),
        "never_down": len(up),
        "return_never_down": float(up.mean()) if len(up) else 0.0,
    }


def curve_of(curves: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Steps, the mean return at each, and of how many seeds, of curves of (step, return).

    Seeds that were finished under another ``--curve`` have other steps: those that most seeds have are shown.
    """
    steps = [tuple(int(step) for step, _ in curve) for curve in curves]
    shown = max(dict.fromkeys(steps), key=steps.count)
    returns = np.array(
        [[value for _, value in curve] for curve, own in zip(curves, steps, strict=True) if own == shown]
    )
    return {"steps": list(shown), "returns": returns.mean(0).round(1).tolist(), "seeds": len(returns)}


def results_of(
    records: Sequence[Mapping[str, Any]], scale: str, models: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What is committed, of the records of cells; ``models``: those of models, of which a clone has a curve.

    A task with data of a mix is one entry, by ``name_of``.
    """
    tasks: dict[str, Any] = {}
    curves: dict[tuple[str, str], list[Any]] = {}
    for record in [*models, *records]:
        if record["result"].get("curve"):
            cell = record["cell"]
            of = name_of(cell["task"], cell["mix"]), cell.get("method", cell.get("model"))
            curves.setdefault(of, []).append(record["result"]["curve"])
    for record in records:
        cell, result = record["cell"], record["result"]
        methods = tasks.setdefault(name_of(cell["task"], cell["mix"]), {}).setdefault("methods", {})
        methods.setdefault(cell["method"], []).append(result)
    for task_name, task in tasks.items():
        for name, found in task["methods"].items():
            # the data are the same for all seeds
            found = found[: 1 if name == "behaviour" else None]
            own = interval_of([r["returns"] for r in found])
            if "down" in found[0]:
                own |= lying_of(found)
            for key in ("outside_support", "goal_reward_data"):
                if key in found[0]:
                    own[key] = float(np.mean([r[key] for r in found]))
            if "milliseconds" in found[0]:
                parts = found[0]["milliseconds"]
                own["milliseconds"] = {
                    p: round(float(np.mean([r["milliseconds"][p] for r in found])), 2) for p in parts
                }
                own["decisions_at_once"] = found[0]["decisions"]
            if "goal" in found[0]:
                own["goal"] = found[0]["goal"]
                own |= {key: interval_of([r[key] for r in found]) for key in ("goal_reward", "goal_reward_prior")}
            if (task_name, name) in curves:
                own["curve"] = curve_of(curves[task_name, name])
            task["methods"][name] = own
    return {
        "what": "Returns of policies learned from logged pixels; 90 % intervals of the mean, over seeds where there "
        "are several",
        "scale": scale, "tasks": tasks,
        "hardware": hardware_of([*models, *records]), "versions": versions_of([*models, *records]),
        "command": f"python -m voc_rl.benchmarks.control --scale {scale}",
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for name, task in found["tasks"].items():
        head = "| method | what it is | return | 90 % interval | seeds | lies | never lies | outside support | "
        lines += [f"**{name}**", "", f"{head}ms per decision |", "|---|---|---:|---|---|---:|---|---:|---|"]
        for method, own in task["methods"].items():
            outside = f"{own['outside_support']:.0%}" if "outside_support" in own else ""
            spent = own.get("milliseconds", {})
            split = ", ".join(f"{part} {value:.0f}" for part, value in spent.items())
            if split:
                split += f" ({own['decisions_at_once']} at once)"
            seeds = ", ".join(f"{mean:.0f}" for mean in own["seed_means"])
            lies = f"{own['down']:.0%} | {_never(own)}" if "down" in own else " | "
            lines.append(
                f"| `{method}` | {WHAT[method]} | {own['mean']:.0f} | {own['low']:.0f} to {own['high']:.0f} | {seeds} "
                f"| {lies} | {outside} | {split} |"
            )
        for method, own in task["methods"].items():
            if "goal" in own:
                got, prior = (
                    f"{goal['mean']:.3f} ({goal['low']:.3f} to {goal['high']:.3f})"
                    for goal in (own["goal_reward"], own["goal_reward_prior"])
                )
                said = (
                    f"`{method}`, goal {own['goal']}: mean reward of the goal {got}, of the clone that proposes {prior}"
                )
                lines += ["", f"{said}; in the data {own['goal_reward_data']:.3f}."]
        lines.append("")
    return "\n".join([*lines, NOTES])


def _never(own: Mapping[str, Any]) -> str:
    """Episodes that never lie and their return, in words."""
    said = f"{own['never_down']} of {own['episodes']}"
    return f"{said}: {own['return_never_down']:.0f}" if own["never_down"] else said

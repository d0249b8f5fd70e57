"""The words of the report: what each figure shows and how each number is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voc_rl.reports.page import escape
from voc_rl.reports.table import as_number, method, ordered, percent
from voc_rl.reports.verdict import TIE

# Figure name -> its lead, caption, alternative text, and the words where it cannot be drawn.
WORDS: dict[str, dict[str, str]] = {
    "scatter": {
        "lead": "",
        "alt": "Predicted values against true discounted returns, a panel per method.",
        "caption": "",
        "absent": "No predictions were recorded.",
    },
    "episode": {
        "lead": "One held-out episode. Each picture is the frame at the thin line above its middle.",
        "alt": "Values along one held-out episode with their intervals, above frames of the episode.",
        "caption": "Bands are the intervals described above. Where the line of true returns stops, too few steps "
        "are left before a time limit to know them; the values go on.",
        "absent": "No episode was recorded.",
    },
    "futures": {
        "lead": "A discount sets how far the model looks ahead: 1 / (1 − γ) steps on average. Compare "
        "the two sides for variety and likeness, not picture by picture: each has its own random time.",
        "alt": "Logged future frames beside decoded samples, a block per context, a row per discount.",
        "caption": "Real futures are frames of the same episode at random, geometrically distributed "
        "times (of times behind a time limit, its last frame). A sampled future is drawn code by code and "
        "decoded by the quantizer, so it is as blurred as that. Black: the episode has ended before.",
        "absent": "No futures were recorded.",
    },
    "reconstructions": {
        "lead": "",
        "alt": "Original frames above their reconstructions from codes, with the PSNR of each pair.",
        "caption": "What the codes lose, no model on top of them can value.",
        "absent": "No reconstructions were recorded.",
    },
    "codebook": {
        "lead": "",
        "alt": "How often each code of the codebook occurs, sorted, one panel per token.",
        "caption": "Perplexity is the number of equally frequent codes that would be as diverse.",
        "absent": "No code counts were recorded.",
    },
    "curves": {
        "lead": "One panel per number that a stage logged; thick lines are running means.",
        "alt": "Training curves of each stage.",
        "caption": "",
        "absent": "No training curves were recorded.",
    },
    "cost": {
        "lead": "",
        "alt": "Bars: seconds and peak memory of each stage.",
        "caption": "Stages do not overlap. Peak memory is that of the process while the stage ran.",
        "absent": "Neither time nor memory was recorded.",
    },
}


def share_inside(truth: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> float:
    """The share of the true returns that lie inside their intervals; NaN if none can be judged."""
    known = np.isfinite(truth) & np.isfinite(low) & np.isfinite(high)
    return float(np.mean((low <= truth)[known] & (truth <= high)[known])) if known.any() else float("nan")


def interval_words(
    truth: NDArray[Any], intervals: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], covers: Mapping[str, str]
) -> str:
    """What each method's interval covers, and how many true returns it happened to hold."""
    sentences = []
    for name in ordered(intervals):
        share = share_inside(np.asarray(truth), *(np.asarray(bound) for bound in intervals[name]))
        held = f" (it holds {percent(share)} of the true returns)" if np.isfinite(share) else ""
        meaning = covers.get(name) or "what it covers was not recorded"
        sentences.append(f"Interval of {method(name).label}: {meaning}{held}.")
    return "\n".join(sentences)


def captions(
    metrics: Mapping[str, Any],
    truth: NDArray[Any],
    intervals: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    covers: Mapping[str, str],
) -> dict[str, dict[str, str]]:
    """``WORDS`` with the numbers of a run filled in."""
    states = f"{len(truth):,} held-out states"
    words = {name: dict(texts) for name, texts in WORDS.items()}
    words["scatter"]["lead"] = f"{states}, never seen in training. The closer to the line, the better."
    words["scatter"]["caption"] = interval_words(truth, intervals, covers)
    words["reconstructions"]["lead"] = _quantizer_words(metrics)
    return words


def _quantizer_words(metrics: Mapping[str, Any]) -> str:
    """What the quantizer's numbers say, as far as there are some."""
    quantizer = metrics.get("quantizer") or {}
    parts = []
    if np.isfinite(value := as_number(quantizer.get("psnr"))):
        parts.append(f"PSNR {value:.1f} dB on a few random held-out stacks of frames")
    if np.isfinite(value := as_number(quantizer.get("use"))):
        parts.append(f"{percent(value)} of the codes in use")
    if np.isfinite(value := as_number(quantizer.get("perplexity"))):
        parts.append(f"perplexity {value:.0f}")
    return "The quantizer: " + ", ".join(parts) + "." if parts else ""


def how_to_read(metrics: Mapping[str, Any]) -> str:
    """A short glossary of the numbers."""
    top = as_number(metrics.get("r_max"))
    r_max = f"{top:g}" if np.isfinite(top) else "the largest reward of a step"
    entries = {
        "Value": "The reward still to come, summed over the frames of an action repeat and discounted from "
        "the next step on. Values are those of the policy that made the data, not of the best policy.",
        "True return": "What the held-out episode then really collected. It is one draw of chance, so even a "
        "perfect method has some error where the policy or the environment is random.",
        "error": "Mean squared error divided by the variance of the true returns: 0 is perfect, 1 is what "
        "the best constant reaches, above 1 is worse than that.",
        "NRMSE": "Root mean squared error × (1 − γ) / r_max: the typical error as a share of the largest "
        f"possible value, with r_max = {r_max}.",
        "MAE and bias": "Mean absolute and mean signed error, in units of value; positive: too high.",
        "Spearman and Pearson": "Rank and linear correlation with the true returns; a constant has none.",
        "Interval": "The uncertainty of an estimated mean, as each method's line below its figure says. It "
        "is not a range for the next return, so it need not hold any given share of the true returns.",
        "Win, tie, loss": f"By NRMSE; two that differ by less than {percent(TIE)} of the smaller one tie. "
        "One run with one seed is weak evidence.",
    }
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries.items())
    return f"<dl>{items}</dl>"

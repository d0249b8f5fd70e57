"""One table of the demo's runs with every quantizer, from the metrics.json that each left.

python -m voc_rl.benchmarks.demo_table docs/demo_*.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voc_rl.checkpoints import read_json
from voc_rl.errors import VOCError
from voc_rl.reports.table import COLUMNS, DASH

METHODS = ("voc", "voc_head", "mc", "td", "one_step", "constant")
SCORES = ("error", "nrmse")
ORDER = ("vqvae", "musik", "dino", "vqgan")


def demo_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per run, by task and then by quantizer.

    tokens: per observation. perplexity: of the codes, averaged over token positions. Each method: error / NRMSE.
    CPU s: of training quantizer and VOC. all CPU s: of the whole demo. A number that a run lacks is a dash.

    Raises:
        VOCError: something that is not the metrics of a demo.
    """
    heads = ["task", "quantizer", "tokens", "perplexity", *(f"`{name}`" for name in METHODS), "CPU s", "all CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for run in runs:
        missing = {"task", "quantizer", "methods", "cpu_seconds"} - set(run)
        if missing:
            raise VOCError(f"A run lacks {', '.join(sorted(missing))}; the metrics.json of a demo is needed.")
    for run in sorted(runs, key=lambda run: (run["task"], ORDER.index(run["quantizer"]["name"]))):
        quantizer, methods = run["quantizer"], run["methods"]
        cells = [run["task"], f"`{quantizer['name']}`", str(quantizer.get("tokens", DASH))]
        cells += [f"{quantizer['perplexity']:.0f}", *(_scores(methods.get(name, {})) for name in METHODS)]
        cells += [f"{methods['voc']['cpu_seconds']:.0f}", f"{sum(run['cpu_seconds'].values()):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _scores(method: Mapping[str, Any]) -> str:
    shown = {column.key: column.show(method.get(column.key)) for column in COLUMNS}
    return " / ".join(shown[key] for key in SCORES)


def main(files: Sequence[str]) -> None:
    """Print the table of metrics files."""
    if not files:
        sys.exit("demo_table: name the metrics.json of one demo or more.")
    try:
        print(demo_table([read_json(Path(file), "metrics of a demo") for file in files]))
    except VOCError as error:
        sys.exit(f"demo_table: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])

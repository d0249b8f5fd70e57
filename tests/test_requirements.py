"""What a plain installation brings: all that is used without an extra."""

from __future__ import annotations

import ast
import configparser
import sys
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def brought(name: str) -> set[str]:
    """Distributions that come with one without its extras, by the metadata of those that are installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(name), frozenset[str]())]
    while todo:
        asked, wanted = todo.pop()
        if (asked, wanted) in seen:
            continue
        seen.add((asked, wanted))
        for line in requires(asked) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return {asked for asked, _ in seen}


def of_extra(extra: str) -> set[str]:
    """Distributions that an extra of voc_rl names, those of the extras that it refers to among them."""
    found: set[str] = set()
    for needed in map(Requirement, requires("voc_rl") or []):
        if needed.marker is not None and needed.marker.evaluate({"extra": extra}):
            own = canonicalize_name(needed.name) == "voc-rl"
            found |= set().union(*map(of_extra, needed.extras)) if own else {canonicalize_name(needed.name)}
    return found


def test_all_and_dev_bring_the_other_extras() -> None:
    """But for d4rl, which is asked for by name alone."""
    asked = {"sb3", "minari", "wandb", "video", "hub"}
    assert of_extra("all") == set().union(*map(of_extra, asked))
    assert "stable-baselines3" in of_extra("all")
    assert of_extra("dev") >= of_extra("all") | of_extra("benchmarks") | {"pytest", "mypy"}


def test_gymnasiums_mujoco_tasks_need_no_extra() -> None:
    """D4RL's states are drawn in them."""
    found = find_spec("gymnasium.envs.mujoco")
    assert found is not None
    assert found.origin is not None
    modules = set()
    for path in Path(found.origin).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add((node.module or "").split(".")[0])
    where = packages_distributions()
    needed = {canonicalize_name(where[module][0]) for module in modules - sys.stdlib_module_names}
    assert needed >= {"mujoco", "imageio"}
    assert needed <= brought("voc_rl")


def test_the_lowest_versions_are_those_that_were_tested() -> None:
    """Of what a plain installation and the extra ``all`` bring."""
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    every = [Requirement(line) for line in requires("voc_rl") or []]
    asked = [needed for needed in every if canonicalize_name(needed.name) in {*of_extra("all"), *tested}]
    lowest = {
        canonicalize_name(needed.name): bound.version
        for needed in asked
        for bound in needed.specifier
        if bound.operator == ">="
    }
    assert lowest.keys() == tested.keys() - {"torchvision"}  # its version is torch's choice
    for name, version in lowest.items():
        assert f"{tested[name]}.".startswith(f"{version}."), name


def test_the_extra_of_agents_brings_what_they_log_with() -> None:
    """Stable-Baselines3 takes tensorboard_log, and brings no tensorboard."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert any(line.startswith("tensorboard") for line in setup["options.extras_require"]["sb3"].split())

"""One direction of imports, held by reading every module; and what an import must not pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import voc_rl

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "quantizers", "occupancy", "values")
FOUNDATION = {
    "errors",
    "checkpoints",
    "configs",
    "precision",
    "policy",
    "loop",
    "graphs",
    "distributed",
    "progress",
    "workers",
}
# who may import whom, of the modules and rooms below voc_rl; what is not listed is at the top and may import all
LINE = [*ROOMS, "model_files", "model", "joint", "training_inputs", "training", "ope", "plugin", "envs", "agents"]
# what reports must not import: they show finished runs, and need neither simulators nor commands
ABOVE_REPORTS = {"envs", "agents", "benchmarks", "cli"}
FOREIGN = (
    "gymnasium",
    "mujoco",
    "dm_control",
    "stable_baselines3",
    "wandb",
    "minari",
    "d4rl",
    "timm",
    "matplotlib",
)


@cache
def modules() -> dict[str, Path]:
    """Every module by its name inside voc_rl: ``data.hdf5``, ``envs.make``, ``model``."""
    found = {}
    for folder, prefix in [
        (ROOT / "voc_rl", ""),
        *((ROOT / name, f"{name}.") for name in ("envs", "agents", "benchmarks")),
    ]:
        for path in folder.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__") or "__init__"] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules below voc_rl that a file imports anywhere, also inside functions and for type checking."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
            if node.module == "voc_rl":  # its names are those of the modules behind it
                names |= {voc_rl._HOME[alias.name] for alias in node.names if alias.name in voc_rl._HOME}
    for name in names:
        first = name.split(".")[0]
        assert first not in ("envs", "agents", "benchmarks", "tests"), f"{path} imports {name}; say voc_rl.{name}"
    return {name.removeprefix("voc_rl.") for name in names if name.startswith("voc_rl.")}


def room(name: str) -> str:
    return name.split(".")[0]


def allowed(importer: str, target: str) -> bool:
    if target in FOUNDATION:
        return True
    if importer in FOUNDATION:
        return False
    if importer == "reports":
        return target not in ABOVE_REPORTS
    if importer not in LINE:  # benchmarks, cli and what stands beside them
        return True
    return target in LINE and LINE.index(target) <= LINE.index(importer)


def test_direction() -> None:
    known = {room(n) for n in modules()}
    wrong = [
        f"voc_rl.{name} imports {target}"
        for name in sorted(set(modules()) - {"__init__"})
        for target in sorted({room(target) for target in imported(modules()[name])} & known)
        if not allowed(room(name), target)
    ]
    assert not wrong


def test_the_rule_itself() -> None:
    assert {room(n) for n in modules()} >= {*ROOMS, *FOUNDATION, *ABOVE_REPORTS, "reports"}
    assert allowed("values", "occupancy")
    assert allowed("agents", "envs")
    assert allowed("cli", "benchmarks")
    assert allowed("reports", "pipeline")
    assert allowed("benchmarks", "reports")
    for importer, target in [
        ("data", "quantizers"), ("occupancy", "values"), ("quantizers", "model"), ("loop", "data"), ("model", "envs"),
        ("envs", "agents"), ("values", "benchmarks"), ("values", "reports"), ("envs", "reports"),
        ("reports", "benchmarks"), ("reports", "envs"), ("agents", "cli"), ("errors", "data"),
    ]:  # fmt: skip
        assert not allowed(importer, target), (importer, target)


def test_a_name_of_the_top_level_is_an_import_of_its_module(tmp_path: Path) -> None:
    file = tmp_path / "low.py"
    file.write_text("def late():\n    from voc_rl import VOC, VOCValueWrapper, evaluate_policy\n")
    assert imported(file) & set(modules()) == {"model", "envs", "ope"}


def test_foundation_imports_only_foundation() -> None:
    order = ["errors", "checkpoints", "configs", "precision", "policy", "loop"]
    for name in order:
        later = imported(modules()[name]) & set(order[order.index(name) + 1 :])
        assert not later, f"voc_rl.{name} imports {later}"


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    heavy = fresh(
        "import sys, voc_rl; print([m for m in ('torch', 'numpy', 'gymnasium', 'mujoco', 'h5py') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


def seconds(code: str, repeats: int = 3) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        fresh(code)
        best = min(best, time.perf_counter() - start)
    return best


def test_import_is_fast() -> None:
    assert seconds("import voc_rl") - seconds("pass") < 0.2


def test_stored_data_needs_no_simulator() -> None:
    rooms = ", ".join(f"voc_rl.{name}" for name in (*ROOMS, "benchmarks.cells"))
    code = f"import sys, {rooms}; print([m for m in {FOREIGN} if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_public_names() -> None:
    code = (
        "import voc_rl\n"
        "assert all(name in dir(voc_rl) for name in voc_rl.__all__)\n"
        "print([getattr(voc_rl, name).__name__ for name in voc_rl.__all__])\n"
        "try:\n    voc_rl.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    first, second = fresh(code).strip().splitlines()
    assert first == (
        "['VOC', 'Episodes', 'Policy', 'PolicyEstimate', 'VOCConfig', 'VOCError', 'VOCValueVectorWrapper', "
        "'VOCValueWrapper', 'ValueEstimate', 'evaluate_policy', 'train']"
    )
    assert second == "module 'voc_rl' has no attribute 'nothing'"


def test_all_public_names_are_there_without_stable_baselines3() -> None:
    code = (
        "import inspect, sys\n"
        "sys.modules['stable_baselines3'] = None\n"  # as where it is not installed
        "from voc_rl import *\n"
        "from voc_rl.envs import *\n"
        "import voc_rl, voc_rl.envs\n"
        "print(len(inspect.getmembers(voc_rl)) > len(voc_rl.__all__), 'VOCValueWrapper' in globals())\n"
        "try:\n    voc_rl.VecVOCValue\nexcept ImportError as error:\n    print(error)"
    )
    first, second = fresh(code).strip().splitlines()
    assert first == "True True"
    assert "needs Stable-Baselines3" in second

"""Who may import whom: the floor, the two packages, one door for each third party, and a light ``--help``."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR = ("worker.errors", "worker.spec", "worker.schedule", "worker.planner", "worker.checkpoint", "worker.logfilter")
DOORS = {
    "typer": ("vpipe_cli.app", "vpipe_cli.commands"),
    "rich": ("vpipe_cli.render",),
    "yaml": ("vpipe_cli.yamltree",),
    "paramiko": ("vpipe_cli.transport.ssh",),
    "spython": ("vpipe_cli.container.build",),
}
"""The only modules, packages with all below them, that may import each third party."""
HEAVY = {"torch", "numpy", "paramiko", "matplotlib", "rich", "yaml", "pydantic", "tokenizers", "transformers"}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def modules() -> dict[str, str]:
    """The source of every module of both packages, by its dotted name."""
    paths = [path for package in ("vpipe_cli", "worker") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: path.read_text() for name, path in zip(names, paths, strict=True)}


def imports(module: str, source: str) -> Iterator[str]:
    """Every module that a source imports anywhere; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def broken_rules(module: str, source: str) -> list[str]:
    """The imports of a module that the house forbids."""
    found = set(imports(module, source)) - {"worker", "worker.__version__"}
    ours = {name for name in found if within(name, "worker", "vpipe_cli")}
    theirs = {name.partition(".")[0] for name in found - ours} - sys.stdlib_module_names
    above = {name for name in ours if not within(name, *FLOOR)}
    wrong = {name for name in theirs if name in DOORS and not within(module, *DOORS[name])}
    if within(module, "vpipe_cli"):
        wrong |= {name for name in above if within(name, "worker")} | theirs & {"torch"}
    if within(module, "worker"):
        wrong |= {name for name in ours if within(name, "vpipe_cli")}
    if within(module, *FLOOR):
        wrong |= above | (theirs - {"pydantic"})
    if within(module, "worker.hostd"):
        wrong |= {name for name in ours if not within(name, "worker.hostd", "hostd")} | theirs - {"hostd"}
    return sorted(wrong)


@pytest.mark.parametrize("module", modules())
def test_the_house(module: str) -> None:
    assert broken_rules(module, modules()[module]) == []


@pytest.mark.parametrize(
    "module, line, wrong",
    [
        ("vpipe_cli.launch", "from worker import runtime", ["worker.runtime"]),
        ("vpipe_cli.launch", "from worker.stage import Stage", ["worker.stage", "worker.stage.Stage"]),
        ("vpipe_cli.launch", "def f():\n    import torch", ["torch"]),
        ("vpipe_cli.launch", "import typer", ["typer"]),
        ("vpipe_cli.commands.ps", "from rich.table import Table", ["rich"]),
        ("vpipe_cli.commands.ps", "from typer import Option", []),
        ("vpipe_cli.app", "from worker import __version__", []),
        ("worker.stage", "import vpipe_cli.config", ["vpipe_cli.config"]),
        ("worker.planner.solve", "import numpy as np", ["numpy"]),
        ("worker.spec.job", "from ..stage import x", ["worker.stage", "worker.stage.x"]),
        ("worker.hostd", "from worker.errors import X", ["worker.errors", "worker.errors.X"]),
    ],
)
def test_the_rules_catch_what_they_forbid(module: str, line: str, wrong: list[str]) -> None:
    assert broken_rules(module, line) == wrong


def test_all_that_knows_paramiko_is_under_500_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "vpipe_cli/transport/ssh").glob("*.py")) < 500


@pytest.mark.parametrize("folder", ["worker/hostd", "vpipe_cli/onhost"])
def test_what_runs_on_a_bare_host_is_python_3_8(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vpipe_cli.app", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", ended.stderr, re.MULTILINE)}
    assert "typer" in loaded
    assert loaded & HEAVY == set()

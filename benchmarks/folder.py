"""A folder with a cluster.yml and a home of its own, in which benchmarks type `vpipe` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Folder:
    """Where the files are, and what the command's environment is."""

    path: Path
    env: dict[str, str]

    def vpipe(self, *arguments: str) -> str:
        """What the command prints on standard output; it must end well."""
        command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
        root = str(Path(__file__).parent.parent)
        env = {**self.env, "PYTHONPATH": root}
        return subprocess.run(command, cwd=self.path, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def folder(cluster: dict[str, object]) -> Iterator[Folder]:
    """Such a folder, gone afterwards. Data that was prepared before is used again."""
    with tempfile.TemporaryDirectory(prefix="vpipe-benchmark-") as name:
        path = Path(name)
        (path / "cluster.yml").write_text(yaml.safe_dump(cluster))
        yield Folder(path, {**os.environ, "VPIPE_HOME": str(path / "home")})

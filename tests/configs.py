"""Configuration files for tests: written, loaded, and what is said of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import strategies as st

from vpipe_cli import config, explain
from worker.errors import ConfigError
from worker.spec.cluster import ClusterSpec

M = "machines: [cpu*2]\n"
"""The least a file must hold."""

VALUE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "bsp", "text", "cpu"])
)
KEY = st.sampled_from([name.rpartition(".")[2] for name in explain.names()]) | st.text(max_size=5)
TREE = st.recursive(VALUE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=5))
"""Any tree of values, many of them under keys that there are."""


def problems(text: str | bytes, overrides: tuple[str, ...] = ()) -> list[str]:
    """What ``load`` says of a file, each without the file's name; empty when it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            config.load(path, overrides)
        except ConfigError as error:
            assert error.exit_code == 2
            return [str(problem).removeprefix(str(path)) for problem in error.problems]
    return []


def load(tmp_path: Path, text: str, *overrides: str) -> ClusterSpec:
    path = tmp_path / "c.yml"
    path.write_text(text)
    return config.load(path, overrides)

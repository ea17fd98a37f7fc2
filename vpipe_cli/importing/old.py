"""The YAML that vPipe's and PipeDream's driver.py read -> OldJob: typed values, each with its place in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpipe_cli import config, yamltree
from vpipe_cli.importing.note import Note
from vpipe_cli.yamltree import Mistake, Node, Place
from worker.errors import ConfigError, Problem, UsageError

TEXT = (
    *("directory", "module", "data_dir", "config_file", "partition", "container", "log_directory", "model_type"),
    *("sync_mode", "distributed_backend", "learning_rate_policy", "master_addr", "resume"),
)
COUNTS = ("batch_size", "epochs", "num_minibatches")
NUMBERS = ("learning_rate", "weight_decay", "momentum", "loss_scale", "grad_clip")
FLAGS = ("no_input_pipelining", "lr_warmup", "synthetic_data", "recompute", "macrobatch", "fp16")
FREE = ("print_frequency", "verbose_frequency", "compress_activations", "compress_in_gpu")
"""Keys of which any value is taken, since none of them is carried."""
NEEDED = ("machines", "module", "model_type")
MODEL_TYPES = ("image_classification", "translation", "bert", "transformer", "cpm")


@dataclass
class OldJob:
    """What one driver file says; ``notes`` grows while it is turned into a cluster.yml."""

    path: Path
    values: dict[str, Any]
    places: dict[str, str]
    notes: list[Note] = field(default_factory=list)

    def text(self, key: str) -> str:
        """A text; empty where the key is not given."""
        return str(self.values.get(key) or "")

    def number(self, key: str, default: float) -> float:
        """A number, or what the old program took without the key."""
        return float(self.values.get(key, default))

    def count(self, key: str, default: int) -> int:
        """A whole number from 1, or what the old program took without the key."""
        return int(self.values.get(key, default))

    def flag(self, key: str) -> bool:
        """Whether the key is given and true."""
        return bool(self.values.get(key))

    @property
    def machines(self) -> list[str]:
        """``host:gpu`` of every slot, as written."""
        return list(self.values["machines"])

    def where(self, key: str) -> str:
        """file:line:column of a key; the file where it is not given."""
        return self.places.get(key, str(self.path))

    def left_out(self, key: str, why: str, where: str = "") -> None:
        """Say that a key's meaning is not in cluster.yml."""
        self.notes.append(Note("left out", key, where or self.where(key), why))

    def changed(self, key: str, why: str, where: str = "") -> None:
        """Say that a key means something a little different now."""
        self.notes.append(Note("changed", key, where or self.where(key), why))

    def not_needed(self, key: str, why: str, where: str = "") -> None:
        """Say that nothing is lost without a key."""
        self.notes.append(Note("not needed", key, where or self.where(key), why))

    def refuse(self, key: str, message: str) -> ConfigError:
        """An error about one key."""
        return ConfigError([Problem(self.where(key), key, message)])

    def find(self, key: str) -> Path:
        """The JSON file that a key names.

        The driver changed into ``directory`` below the folder it was started in, and started beside or above its own
        configuration files: so that is where a relative path is looked for.
        Raises:
            ConfigError: with the folders where it is not.
        """
        tried = self.folders()
        found = next((folder / self.text(key) for folder in tried if (folder / self.text(key)).is_file()), None)
        if found is None:
            looked = ", ".join(str(folder) for folder in tried) or "/"
            raise self.refuse(key, f"no such file: {self.text(key)!r}; looked for it below {looked}")
        return found

    def folders(self) -> list[Path]:
        """Where the relative paths of the file may begin, the likeliest first."""
        here = self.path.parent
        bases = [here, here / "..", here / "../..", Path()]
        inner = [base / self.text("directory") for base in bases] if self.text("directory") else []
        existing = [Path(folder.resolve()) for folder in (*inner, *bases) if folder.is_dir()]
        return list(dict.fromkeys(existing))


def read(path: Path) -> OldJob:
    """The file, with notes on the keys nobody reads.

    Raises:
        UsageError: there is no such file.
        ConfigError: with every mistake of form and of type, anchors and tags included.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file", "vpipe import OLD.yml takes a configuration of driver.py")
    root, mistakes = yamltree.parse(config.read(path), lambda line, column: _place(path, line, column))
    if root is not None and not isinstance(root.value, dict):
        mistakes.append(Mistake(root.place, "", "is no mapping of keys, as the configurations of driver.py are"))
    entries = root.value if root is not None and isinstance(root.value, dict) else {}
    if not mistakes:
        mistakes += _mistakes(entries, _place(path, 0, 0))
    if mistakes:
        raise ConfigError([Problem(each.place.text, each.key, each.message) for each in sorted(mistakes)])
    places = {key: node.key_place.text for key, node in entries.items()}
    job = OldJob(path, {key: yamltree.plain(node) for key, node in entries.items() if node.value is not None}, places)
    for key in entries:
        if key not in (*TEXT, *COUNTS, *NUMBERS, *FLAGS, *FREE, "machines"):
            job.left_out(
                yamltree.label(key), "unknown: neither vPipe's nor PipeDream's driver reads it, nor does vpipe"
            )
    return job


def _place(path: Path, line: int, column: int) -> Place:
    return Place((0, line, column), f"{path}:{line + 1}:{column + 1}")


def _mistakes(entries: dict[str, Node], top: Place) -> Iterator[Mistake]:
    for key in NEEDED:
        if key not in entries or entries[key].value is None:
            hint = "is this a configuration of driver.py?"
            yield Mistake(entries[key].place if key in entries else top, key, f"is missing; {hint}")
    for keys, wanted, right in KINDS:
        for key in keys:
            node = entries.get(key)
            if node is not None and node.value is not None and not right(node.value):
                yield Mistake(node.place, key, f"must be {wanted}, not {node.text[:40] or 'a list or group'!r}")
    node = entries.get("machines")
    if node is not None and not (isinstance(node.value, list) and node.value and all(map(_is_machine, node.value))):
        yield Mistake(node.place, "machines", "must be a list of host:gpu, such as ['node1:0', 'node1:1']")
    yield from _choices(entries)


def _choices(entries: dict[str, Node]) -> Iterator[Mistake]:
    for key, words in (("model_type", MODEL_TYPES), ("sync_mode", ("asp", "bsp"))):
        node = entries.get(key)
        if node is not None and isinstance(node.value, str) and node.value not in words:
            yield Mistake(node.place, key, f"is {node.value[:40]!r}; there were programs for {', '.join(words)} only")


def _is_machine(node: Node) -> bool:
    host, _, gpu = node.text.rpartition(":")
    return isinstance(node.value, str) and bool(host) and gpu.isascii() and gpu.isdigit()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(value) < float("inf")  # type: ignore[arg-type]


KINDS: tuple[tuple[tuple[str, ...], str, Callable[[object], bool]], ...] = (
    (TEXT, "text", lambda value: isinstance(value, str)),
    (COUNTS, "a whole number from 1", _is_count),
    (NUMBERS, "a number from 0", _is_number),
    (FLAGS, "true or false", lambda value: isinstance(value, bool)),
)
"""Which keys take which values."""

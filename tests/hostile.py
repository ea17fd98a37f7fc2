"""Strings that do harm where one is read by a shell, as an option, a format or markup; and all keys that take text.

``CASES`` says for each key of cluster.yml that takes text what a file with a given text there holds. ``keys`` finds
these keys in the classes of the specification, so that a new one is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from worker.spec.cluster import ClusterSpec

CANARY = "vpipe-was-executed"
"""A file that nothing but a shell that read one of these strings would make."""
EVIL = f"-rf $(touch {CANARY}) `touch {CANARY}`; touch {CANARY} | touch {CANARY} & 'q' \" \\ * {{a,b}} %s # [red]"
"""All at once, in one line and without a slash, so that it can name a file too."""
BOUND = EVIL.translate({ord(character): "_" for character in '",\\'})
"""Of that what a bind may hold."""
STRINGS = (
    EVIL,
    f"x\ntouch {CANARY}\n",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY}",
    "'",
    '"',
    "\\",
    "-rf",
    "--help",
    "--",
    "*",
    "%h",
    "{0}{{ x }}",
    "a,b=c",
    "a:b:rw",
    "[/red][bold]",
    "\x1b]0;title\x07\x1b[2J",
    "\u202egnp.exe",
    "é\u2028\U0001f600",
    "#!&|@",
    " ",
    "..",
)

Document = dict[str, Any]


class Case(NamedTuple):
    """A key: what of a cluster.yml there is to hold a text, and a text that is right there."""

    write: Callable[[str], Document]
    right: str = "x"


def _ssh(**keys: object) -> Document:
    return {"ssh": keys}


def _slurm(**keys: object) -> Document:
    return {"slurm": keys}


def _container(**keys: object) -> Document:
    return {"container": {"image": "x.sif", **keys}}


def _built(**arguments: str) -> Document:
    return {"container": {"image": "x.def", "build_args": arguments}}


def _data(source: str, **keys: object) -> Document:
    return {"data": {"source": source, **keys}}


PARALLEL: Document = {"model": {"name": "transformer"}, "data": {"source": "parallel", "path": "x", "target_path": "x"}}
CASES: dict[str, tuple[Case, ...]] = {
    "ClusterSpec.name": (Case(lambda text: {"name": text}),),
    "ClusterSpec.machines": (Case(lambda text: {"machines": [text]}, "h1:cpu"),),
    "ClusterSpec.spares": (Case(lambda text: {"spares": [text]}, "h2:cpu"),),
    "ClusterSpec.python": (Case(lambda text: {"python": text}),),
    "SshSpec.user": (Case(lambda text: _ssh(user=text)),),
    "SshSpec.key": (Case(lambda text: _ssh(key=text)),),
    "SshSpec.jump": (Case(lambda text: _ssh(jump=text)),),
    "SshSpec.config": (Case(lambda text: _ssh(config=text)),),
    "SshSpec.known_hosts": (Case(lambda text: _ssh(known_hosts=text)),),
    "SshSpec.hosts": (Case(lambda text: _ssh(hosts={text: {"port": 22}})),),
    "SshHost.user": (Case(lambda text: _ssh(hosts={"h1": {"user": text}})),),
    "SshHost.key": (Case(lambda text: _ssh(hosts={"h1": {"key": text}})),),
    "SshHost.jump": (Case(lambda text: _ssh(hosts={"h1": {"jump": text}})),),
    "SshHost.address": (Case(lambda text: _ssh(hosts={"h1": {"address": text}})),),
    "SlurmSpec.partition": (Case(lambda text: _slurm(partition=text)),),
    "SlurmSpec.account": (Case(lambda text: _slurm(account=text)),),
    "SlurmSpec.qos": (Case(lambda text: _slurm(qos=text)),),
    "SlurmSpec.time": (Case(lambda text: _slurm(time=text), "1:00:00"),),
    "SlurmSpec.constraint": (Case(lambda text: _slurm(constraint=text)),),
    "SlurmSpec.extra": (Case(lambda text: _slurm(extra=[text]), "--comment=x"),),
    "SlurmSpec.node_folder": (Case(lambda text: _slurm(node_folder=text), "/x"),),
    "SlurmSpec.login": (Case(lambda text: {"machines": ["n1:cpu"], "engine": "slurm", **_slurm(login=text)}),),
    "ContainerSpec.image": (Case(lambda text: {"container": {"image": text}}, "x.sif"),),
    "ContainerSpec.binds": (Case(lambda text: _container(binds=[text]), "/x"),),
    "ContainerSpec.build_args": (
        Case(lambda text: _built(NAME=text)),
        Case(lambda text: _built(**{text: "value"})),
    ),
    "BertSpec.folder": (Case(lambda text: {"model": {"folder": text}}),),
    "Gpt2Spec.folder": (Case(lambda text: {"model": {"name": "gpt2", "folder": text}}),),
    "HfSpec.folder": (Case(lambda text: {"model": {"name": "hf", "folder": text}}),),
    "HfSpec.config": (
        Case(lambda text: {"model": {"name": "hf", "config": {"model_type": text}}}),
        Case(lambda text: {"model": {"name": "hf", "config": {text: 1}}}),
    ),
    "EntrySpec.entry": (Case(lambda text: {"model": {"entry": text}}, "x:y"),),
    "EntrySpec.args": (
        Case(lambda text: {"model": {"entry": "x:y", "args": {"label": [text]}}}),
        Case(lambda text: {"model": {"entry": "x:y", "args": {text: 1}}}),
    ),
    "EntrySpec.code": (Case(lambda text: {"model": {"entry": "x:y", "code": text}}),),
    "DataSpec.path": (Case(lambda text: _data("text", path=text)),),
    "DataSpec.text_key": (Case(lambda text: _data("jsonl", path="x", text_key=text)),),
    "ParallelSpec.path": (Case(lambda text: PARALLEL | {"data": {**PARALLEL["data"], "path": text}}),),
    "ParallelSpec.target_path": (Case(lambda text: PARALLEL | {"data": {**PARALLEL["data"], "target_path": text}}),),
    "ImagesSpec.path": (
        Case(lambda text: {"model": {"name": "vgg16"}, **_data("images", path=text, classes=2)}),
    ),
    "Hdf5Spec.path": (Case(lambda text: _data("hdf5", path=text)),),
    "EntryDataSpec.entry": (Case(lambda text: {"data": {"entry": text}}, "x:y"),),
    "EntryDataSpec.args": (
        Case(lambda text: {"data": {"entry": "x:y", "args": {"label": {"deep": text}}}}),
        Case(lambda text: {"data": {"entry": "x:y", "args": {text: 1}}}),
    ),
    "EntryDataSpec.code": (Case(lambda text: {"data": {"entry": "x:y", "code": text}}),),
    "PlannerSpec.memory": (Case(lambda text: {"planner": {"memory": text}}, "1GiB"),),
    "PlannerSpec.profile": (Case(lambda text: {"planner": {"profile": text}}),),
    "EvaluateSpec.held_out": (Case(lambda text: {"evaluate": {"held_out": text}}),),
    "EvaluateSpec.held_out_target": (
        Case(lambda text: PARALLEL | {"evaluate": {"held_out": "x", "held_out_target": text}}),
    ),
}  # fmt: skip
"""By class and field."""


def keys() -> Iterator[str]:
    """Every field of the specification that takes any text: by itself, in a list, as key or value of a mapping."""
    schema = ClusterSpec.model_json_schema()
    for name, section in {"ClusterSpec": schema, **schema["$defs"]}.items():
        yield from (f"{name}.{field}" for field, held in section.get("properties", {}).items() if _takes_text(held))


def _takes_text(held: Document) -> bool:
    """Sections are none of it: they have fields of their own."""
    inner = [*held.get("anyOf", []), *([held["items"]] if "items" in held else [])]
    any_text = held.get("type") == "string" and "enum" not in held and "const" not in held
    return any_text or "additionalProperties" in held or any(map(_takes_text, inner))

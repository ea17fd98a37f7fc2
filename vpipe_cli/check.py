"""The tree of cluster.yml -> ClusterSpec with its defaults worked out, and everything wrong with the values."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpipe_cli import explain, machines, yamltree
from vpipe_cli.yamltree import Mistake, Node, Place
from worker.spec.cluster import ClusterSpec
from worker.spec.pipeline import CHUNKED
from worker.spec.slurm import SlurmSpec

MINIBATCHES_PER_STEP = 8
_PASSES = 5  # values, what does not fit in a section, what does not fit between sections, and two to spare
_MOST_ERRORS = 200

PATHS = (("data", "path"), ("data", "target_path"), ("model", "folder"), ("model", "code"), ("data", "code"))
KINDS = frozenset((section, key) for section in ("model", "data") for key in ("name", "source", "entry"))
"""Keys that tell what else a section may hold: where one is wrong, the others cannot be judged."""
HELD_OUT = (("evaluate", "held_out"), ("evaluate", "held_out_target"))
"""Keys that name a file or folder."""

Keys = tuple[str, ...]


def check(root: Node, folder: Path) -> tuple[ClusterSpec | None, list[Mistake]]:
    """The job with stages, minibatches_per_step of bsp, and data.path absolute; or None and the mistakes.

    A wrong value is reported, left out, and the rest judged without it, so that one mistake does not hide another.
    ``folder`` is where a relative data.path of the file begins; one from the command line begins in this folder.
    """
    broken = set(_broken(root, ()))
    _fill_machines(root)
    mistakes = [
        *_wrong_spares(root, broken),
        *_fill_stages(root, broken),
        *_fill_engine(root),
        *_fill_ssh(root, folder),
        *_fill_paths(root, folder, ("machines",) in broken),
    ]
    _fill_flush(root)
    for _ in range(_PASSES):
        try:
            spec = ClusterSpec.model_validate(_values(root, broken))
        except ValidationError as error:
            before = broken.copy()
            for fault in explain.faults(error.errors(include_url=False)[:_MOST_ERRORS], root):
                keys = {_keys(path) for path in fault.paths}
                if not any(_overlap(key, other) for key in keys for other in before):
                    mistakes.append(fault.mistake)
                broken |= {key[:1] if key in KINDS else key for key in keys}
        else:
            return None if mistakes or broken else spec, mistakes
    return None, mistakes


def _broken(node: Node, path: Keys) -> list[Keys]:
    """The paths of what was refused while reading."""
    if node.broken and path:
        return [path]
    children = node.value.items() if isinstance(node.value, dict) else ()
    return [found for key, child in children for found in _broken(child, (*path, key))]


def _values(root: Node, broken: set[Keys]) -> dict[str, Any]:
    """The tree's values without those that are broken; a machine stands in for machines, which have no default."""
    values: Any = yamltree.plain(root)
    for path in broken:
        section = values
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(path[-1], None)
    if ("machines",) in broken:
        values["machines"] = ["cpu"]
    return dict(values)


def _keys(path: explain.Path) -> Keys:
    """The path up to the first index: a list with a wrong entry is left out whole."""
    return tuple(str(part) for part in takewhile(lambda part: isinstance(part, str), path))


def _overlap(one: Keys, other: Keys) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _fill_machines(root: Node) -> None:
    """machines from slurm.nodes, where Slurm is to choose them."""
    nodes = _get(root, "slurm", "nodes")
    if _value(root, "engine") != "slurm" or nodes is None or not isinstance(root.value, dict):
        return
    values = {key: _value(root, "slurm", key) for key in ("nodes", "gpus_per_node", "ranks_per_node")}
    try:
        given = SlurmSpec.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError:  # told with all other values; until then one node stands for them
        given = SlurmSpec(nodes=1)
    entries = [Node(nodes.place, nodes.place, text, text) for text in given.machines]
    root.value["machines"] = Node(nodes.place, nodes.place, list(entries))


def _fill_stages(root: Node, broken: set[Keys]) -> list[Mistake]:
    """pipeline.stages from machines, where it is not given; and what is wrong with the machines."""
    given = _get(root, "machines")
    if given is None or not isinstance(given.value, list) or given.broken:
        return []
    slots, mistakes = _read_slots(given, "machines")
    if mistakes:
        broken.add(("machines",))
        return mistakes
    if not slots or not all(isinstance(item.value, str) for item in given.value):
        return []
    stages = _get(root, "pipeline", "stages")
    if stages is None or stages.value is None:
        _set(root, "pipeline", "stages", _default_stages(root, len(slots)), given.place)
    elif type(stages.value) is int and stages.value >= 1 and (message := _misfit(root, stages.value, len(slots))):
        return [Mistake(stages.place, "pipeline.stages", message)]
    return []


def _wrong_spares(root: Node, broken: set[Keys]) -> list[Mistake]:
    """What is wrong with the spares."""
    given = _get(root, "spares")
    if given is None or not isinstance(given.value, list) or given.broken:
        return []
    _, mistakes = _read_slots(given, "spares")
    if mistakes:
        broken.add(("spares",))
    return mistakes


def _read_slots(given: Node, key: str) -> tuple[list[machines.Slot], list[Mistake]]:
    """The slots of a list of machines, and a mistake for each entry that is wrong."""
    assert isinstance(given.value, list)
    items = [(index, item) for index, item in enumerate(given.value) if isinstance(item.value, str)]
    slots, wrong = machines.read(str(item.value) for _, item in items)
    placed = [(items[number], message) for number, message in wrong.items()]
    return slots, [Mistake(item.place, f"{key}[{index}]", message) for (index, item), message in placed]


def _fill_engine(root: Node) -> list[Mistake]:
    """engine from machines, where it is not given; and what machines the engine given cannot reach."""
    given, engine = _get(root, "machines"), _get(root, "engine")
    if given is None or not isinstance(given.value, list) or not isinstance(root.value, dict):
        return []
    entries = [(item, machines.read([str(item.value)])[0]) for item in given.value]
    elsewhere = [(index, item) for index, (item, slots) in enumerate(entries) if not machines.is_local(slots)]
    if "engine" not in root.value:
        engine = Node(given.place, given.place, "ssh" if elsewhere else "local")
        root.value["engine"] = engine
    if engine is not None and engine.value == "slurm":
        near = [(index, item) for index, (item, slots) in enumerate(entries) if slots and machines.is_local(slots)]
        hint = "is this machine; with engine slurm name its nodes, or give `slurm: {nodes: N}` and Slurm chooses them"
        return [Mistake(item.place, f"machines[{index}]", f"{item.value!r} {hint}") for index, item in near]
    if engine is None or engine.value != "local":
        return []
    why = "is another machine, but engine local runs here only; leave `engine` out, or write ssh"
    return [Mistake(item.place, f"machines[{index}]", f"{item.value!r} {why}") for index, item in elsewhere]


def _default_stages(root: Node, slots: int) -> int:
    """One stage per device, or for each ``replicas`` of them; two per device where it holds several."""
    replicas = _value(root, "pipeline", "replicas")
    if isinstance(replicas, list):
        return len(replicas)
    row = max(1, slots // replicas) if type(replicas) is int and replicas > 1 else slots
    return 2 * row if _value(root, "pipeline", "schedule") in CHUNKED else row


def _misfit(root: Node, stages: int, slots: int) -> str | None:
    """Why ``stages`` stages do not fit the devices, if they do not."""
    gives = "1 device" if slots == 1 else f"{slots} devices"
    replicas = _value(root, "pipeline", "replicas")
    schedule = _value(root, "pipeline", "schedule")
    if schedule in CHUNKED:
        each = replicas[0].value if isinstance(replicas, list) and replicas else replicas
        each = each if type(each) is int and each > 1 else 1
        chunks, rest = divmod(stages * each, slots)
        fits = slots % each == 0 and not rest and (chunks == 2 or (chunks > 2 and schedule != "zb-v"))
        group = "each" if each == 1 else f"each {each} of them"
        wants = f"{schedule} needs {'2' if schedule == 'zb-v' else '2, 3 ...'} stages for {group}"
        return None if fits else f"is {stages} but machines gives {gives}; {wants}"
    if isinstance(replicas, list) and all(type(each.value) is int for each in replicas):
        ranks = sum(each.value for each in replicas)
        return f"is {stages}, of {ranks} ranks together, but machines gives {gives}" if ranks != slots else None
    ranks = stages * (replicas if type(replicas) is int else 1)
    if ranks == slots:
        return None
    if ranks == stages:
        return f"is {stages} but machines gives {gives}; they must be equal"
    return f"is {stages}, of {replicas} ranks each, but machines gives {gives}"


def _fill_flush(root: Node) -> None:
    """pipeline.minibatches_per_step, where an update covers several and it is not given."""
    source = next(
        (node for key in ("sync_mode", "schedule") if (node := _get(root, "pipeline", key)) is not None), None
    )
    flushes = _value(root, "pipeline", "sync_mode") == "bsp"
    if not flushes and _value(root, "pipeline", "schedule") not in ("2bw", "accumulate"):
        return
    if source is not None and _value(root, "pipeline", "minibatches_per_step") is None:
        stages = _value(root, "pipeline", "stages")
        count = max(MINIBATCHES_PER_STEP, stages if type(stages) is int else 0)
        _set(root, "pipeline", "minibatches_per_step", count, source.place)


def _value(root: Node, *path: str) -> Any:
    """The value at ``path``; None where there is none."""
    node = _get(root, *path)
    return None if node is None else node.value


def _fill_paths(root: Node, folder: Path, anywhere: bool) -> list[Mistake]:
    """The files that image, model and data are made of, made absolute; they must exist.

    Args:
        anywhere: nobody knows on which machines.
    """
    image = str(_value(root, "container", "image"))
    local = "://" not in image and image.endswith((".def", ".sif"))
    return [*(_fill_path(root, folder, "container", "image") if local else []), *_fill_read(root, folder, anywhere)]


def _fill_read(root: Node, folder: Path, anywhere: bool) -> list[Mistake]:
    """The files that model and data read."""
    for section in ("model", "data"):
        entry = _get(root, section, "entry")
        if entry is not None and _value(root, section, "code") is None:
            _set(root, section, "code", str(folder.resolve()), entry.place)
    unread = _value(root, "data", "source") in (None, "python-stdlib")
    paths = [path for path in (*PATHS, *HELD_OUT) if path != ("data", "path") or not unread]
    mistakes = [mistake for path in paths for mistake in _fill_path(root, folder, *path)]
    inside = _value(root, "container") is not None
    login = _value(root, "slurm", "login") if _value(root, "engine") == "slurm" else None
    elsewhere = _value(root, "engine") == "ssh" or login or inside  # there they are looked for
    return [] if elsewhere or anywhere else mistakes


def _fill_ssh(root: Node, folder: Path) -> list[Mistake]:
    """The files that logging in reads, made absolute; they must exist."""
    named: list[tuple[str, ...]] = [("ssh", "config"), ("ssh", "key"), ("ssh", "known_hosts")]
    own = _value(root, "ssh", "hosts")
    named += [("ssh", "hosts", host, "key") for host in own] if isinstance(own, dict) else []
    return [mistake for path in named for mistake in _fill_path(root, folder, *path)]


def _fill_path(root: Node, folder: Path, *keys: str) -> list[Mistake]:
    path = _get(root, *keys)
    if path is None or not isinstance(path.value, str) or not path.value:
        return []
    base = folder if path.place.order[0] == 0 else Path()
    path.value = os.path.abspath(base / os.path.expanduser(path.value))
    if os.path.exists(path.value):
        return []
    return [Mistake(path.place, explain.dotted(keys), f"no such file or folder: {path.value!r}")]


def _get(root: Node, *path: str) -> Node | None:
    node: Node | None = root
    for key in path:
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    return node if node is None or not node.broken else None


def _set(root: Node, section: str, key: str, value: int | str, place: Place) -> None:
    """Give ``section.key`` a value that follows from what stands at ``place``."""
    assert isinstance(root.value, dict)
    node = root.value.setdefault(section, Node(place, place, {}))
    if isinstance(node.value, dict):  # a section that is something else stays as it is, to be refused
        node.value[key] = Node(place, place, value, str(value))

"""The JSON files beside a driver's YAML: which module runs in which stage, on which ranks, and how it is cut."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpipe_cli import config
from vpipe_cli.importing.old import OldJob
from worker.errors import ConfigError, Problem

KEYS = ("module_to_stage_map", "stage_to_rank_map", "stage_to_depth_map", "mp_size")


@dataclass(frozen=True)
class Document:
    """A JSON object and the text it came from."""

    path: Path
    text: str
    values: dict[str, Any]

    def where(self, key: str) -> str:
        """file:line:column of a key at the top level; the file where it is not there."""
        found = re.search(rf'"{re.escape(key)}"\s*:', self.text)
        if found is None:
            return str(self.path)
        line = self.text.count("\n", 0, found.start())
        return f"{self.path}:{line + 1}:{found.start() - self.text.rfind(chr(10), 0, found.start())}"

    def refuse(self, key: str, message: str) -> ConfigError:
        """An error about one key."""
        return ConfigError([Problem(self.where(key), key, message)])


@dataclass(frozen=True)
class Maps:
    """``modules``: the stage of every module, the criterion last; ``ranks`` and ``depth``: by stage."""

    source: Document
    modules: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]
    depth: tuple[int, ...] | None
    tensor: int

    @property
    def warmups(self) -> tuple[int, ...]:
        """PipeDream's own depth of every stage: ranks behind it per rank in it, rounded down."""
        sizes = [len(ranks) for ranks in self.ranks]
        return tuple((sum(sizes[stage:]) - 1) // size for stage, size in enumerate(sizes))


@dataclass(frozen=True)
class Cut:
    """Blocks of every module, and the share of its lines that was recomputed, from its end."""

    source: Document
    blocks: tuple[int, ...]
    ratios: tuple[float, ...]


def read(path: Path) -> Document:
    """A JSON object.

    Raises:
        ConfigError: the file cannot be read, is no JSON object, or has a key twice; with line and column.
    """
    text = config.read(path)
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(f"{path}:{error.lineno}:{error.colno}", "", f"is not JSON: {error.msg}")]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem(str(path), "", f"is not JSON as it should be: {error}")]) from None
    if not isinstance(values, dict):
        raise ConfigError([Problem(str(path), "", "must be a JSON object: {...}")])
    return Document(path, text, values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def maps_of(job: OldJob) -> Maps | None:
    """What ``config_file`` says; None where the job has none.

    Raises:
        ConfigError: a file or key is missing, or the maps contradict each other.
    """
    if not job.text("config_file"):
        return None
    source = read(job.find("config_file"))
    modules = _modules(source)
    stages = modules[-1] + 1
    ranks = _by_stage(source, "stage_to_rank_map", stages)
    _check_ranks(source, ranks)
    depth = _by_stage(source, "stage_to_depth_map", stages) if source.values.get("stage_to_depth_map") else None
    if depth is not None and not all(_is_index(each) for each in depth):
        raise source.refuse("stage_to_depth_map", "must give each stage a whole number from 0")
    tensor = source.values.get("mp_size", 1)
    if not _is_index(tensor) or tensor < 1:
        raise source.refuse("mp_size", f"must be a whole number from 1, not {tensor!r}")
    for key in source.values.keys() - set(KEYS):
        job.left_out(key, "unknown: the old runtime did not read it, nor does vpipe", source.where(key))
    whole = tuple(depth) if depth is not None else None
    return Maps(source, modules, tuple(map(tuple, ranks)), whole, tensor)


def _modules(source: Document) -> tuple[int, ...]:
    key = "module_to_stage_map"
    found = source.values.get(key)
    if not isinstance(found, list) or not found or not all(map(_is_index, found)):
        raise source.refuse(key, "must be a list of stages, one for each module, such as [0, 1, 1]")
    for index, (before, stage) in enumerate(zip([0, *found], found, strict=False)):
        if stage not in (before, before + 1) or (index == 0 and stage):
            message = (
                f"module {index} is in stage {stage}, after stage {before}; a stage holds modules that follow each "
                "other, and stages count up from 0"
            )
            raise source.refuse(key, message)
    return tuple(found)


def _by_stage(source: Document, key: str, stages: int) -> list[Any]:
    """The values of a mapping from stage to something, in the order of stages."""
    found = source.values.get(key)
    if not isinstance(found, dict):
        raise source.refuse(key, 'must say something for each stage: {"0": ..., "1": ...}')
    strange = [stage for stage in found if not re.fullmatch("0|[1-9][0-9]{0,5}", stage) or int(stage) >= stages]
    if strange:
        raise source.refuse(key, f"has stage {strange[0]!r}, but no module is in it; stages are 0 to {stages - 1}")
    missing = [stage for stage in range(stages) if str(stage) not in found]
    if missing:
        raise source.refuse(key, f"says nothing of stage {missing[0]}, which module_to_stage_map has")
    return [found[str(stage)] for stage in range(stages)]


def _check_ranks(source: Document, ranks: list[Any]) -> None:
    key, owner = "stage_to_rank_map", dict[int, int]()
    for stage, group in enumerate(ranks):
        if not isinstance(group, list) or not group or not all(map(_is_index, group)):
            raise source.refuse(key, f"stage {stage} needs a list of one or more ranks, such as [0, 1]")
        for rank in group:
            if rank in owner:
                where = f"stage {owner[rank]} and stage {stage}" if owner[rank] != stage else f"stage {stage} twice"
                raise source.refuse(key, f"rank {rank} is in {where}; a rank runs one stage")
            owner[rank] = stage


def cut_of(job: OldJob) -> Cut | None:
    """What ``partition`` says; None where the job has none, as all of PipeDream's.

    Raises:
        ConfigError: a file or key is missing, or its lists do not fit each other.
    """
    if not job.text("partition"):
        return None
    source = read(job.find("partition"))
    blocks, ratios = source.values.get("partition"), source.values.get("recompute_ratio")
    if not isinstance(blocks, list) or not blocks or not all(_is_index(each) and each for each in blocks):
        raise source.refuse("partition", "must be a list of blocks per stage, such as [12, 13, 13, 11]")
    if not isinstance(ratios, list) or not all(type(each) in (int, float) and 0 <= each <= 1 for each in ratios):
        raise source.refuse("recompute_ratio", "must be a list of shares from 0 to 1, one per entry of partition")
    if len(ratios) != len(blocks):
        raise source.refuse("recompute_ratio", f"has {len(ratios)} entries, partition {len(blocks)}")
    for key in source.values.keys() - {"partition", "recompute_ratio"}:
        job.left_out(key, "unknown: the old runtime did not read it, nor does vpipe", source.where(key))
    return Cut(source, tuple(blocks), tuple(map(float, ratios)))


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0

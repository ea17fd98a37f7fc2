"""Ranks that raise, die or get stuck: all others end too, and the first cause is on record."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tests import harness, ranks, toy
from tests.test_bad_models import Marked, job, odd_model
from worker import __main__ as main
from worker import data, models
from worker.data.base import Source
from worker.errors import PeerLost, StallError
from worker.models.base import Model
from worker.spec.files import RunFiles
from worker.spec.job import Job


def pipeline(job: Job, source: Source, folder: Path, model_of: Callable[[int], Model]) -> list[dict[str, Any] | None]:
    """Run ``job`` as ``python -m worker`` does; what each rank recorded of its failure."""
    files = RunFiles(folder)
    files.job.write_text(job.model_dump_json())
    files.error(1, 0).parent.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))

    def body(rank: int) -> int:
        os.environ |= {
            "VPIPE_STORE": f"127.0.0.1:{listener.getsockname()[1]}",
            "VPIPE_STORE_FD": str(listener.fileno()),
            "VPIPE_NONCE": "once",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        models.build_model = lambda spec: model_of(rank)
        data.signature = lambda spec: source.signature
        data.open_source = lambda spec, cache: source
        sys.argv = ["worker", "--job", str(files.job), "--rank", str(rank)]
        return main.main()

    with listener:
        statuses = ranks.run(len(job.ranks), folder, body)
    records = [files.error(1, rank) for rank in range(len(job.ranks))]
    assert statuses == [int(record.exists()) for record in records]
    return [json.loads(record.read_text()) if record.exists() else None for record in records]


def too_bad(hidden: Tensor) -> Tensor:
    raise ValueError("too bad")


def test_all_ranks_end_and_the_first_cause_is_recorded(tmp_path: Path) -> None:
    """Long before the stall limit, and though some have no connection in use to the rank that failed."""
    whole = job([1, 1, 1, 2], timeout=300.0)
    records = pipeline(whole, Marked(), tmp_path, lambda rank: odd_model(too_bad))
    assert (records[1]["message"], records[1]["consequence"]) == ("ValueError: too bad", False)
    for rank in (0, 2, 3):
        assert records[rank] is not None
        assert records[rank]["consequence"]
        assert records[rank]["message"].startswith("lost the connection while waiting for ")


def test_a_job_without_a_failure_records_none(tmp_path: Path) -> None:
    assert pipeline(job([1, 3]), toy.Data(), tmp_path, lambda rank: toy.model(blocks=2)) == [None, None]


def wider(rank: int) -> Model:
    """On the last rank with one more word, which no cut shows."""

    class Wider(toy.Embed):
        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(toy.WORDS + (rank == 2), toy.WIDTH)

    plain = toy.model(blocks=2, tied=False)
    return Model((replace(plain.layers[0], build=Wider), *plain.layers[1:]))


def test_ranks_that_hold_other_models_refuse_each_other(tmp_path: Path) -> None:
    """Whoever is late to look meets a rank 0 that has left, which is no cause."""
    records = [record or {} for record in pipeline(job([1, 1, 2]), toy.Data(), tmp_path, wider)]
    causes = [record["message"] for record in records if not record["consequence"]]
    assert records[0]["message"] in causes
    assert all(cause.startswith("job, code and shapes: rank 2 differs from rank 0 (") for cause in causes)


def die(hidden: Tensor) -> Tensor:
    os._exit(9)


@pytest.mark.parametrize(
    ("sync_mode", "partition", "replicas"),
    [("asp", [1, 1, 1, 2], None), ("bsp", [1, 1, 1, 2], None), ("bsp", [2, 3], [2, 2])],
)
def test_a_rank_that_dies_takes_the_others_along(
    sync_mode: str, partition: list[int], replicas: list[int] | None, tmp_path: Path
) -> None:
    whole = job(partition, sync_mode, replicas, timeout=300.0)
    dead = next(rank for rank in range(whole.plan.ranks) if 1 in whole.plan.layers_of(whole.plan.stages_of(rank)[0]))
    errors = harness.failures(whole, odd_model(die), Marked(), tmp_path)
    assert [type(error) for rank, error in enumerate(errors) if rank != dead] == [PeerLost] * (len(errors) - 1)
    assert errors[dead] is None


def sleep(hidden: Tensor) -> Tensor:
    time.sleep(6.0)
    return hidden * 1


def test_a_rank_that_is_stuck_is_named_by_those_who_wait(tmp_path: Path) -> None:
    whole = job([1, 4], timeout=0.2)
    waiting, stuck = harness.failures(whole, odd_model(sleep), Marked(), tmp_path)
    assert isinstance(waiting, StallError)
    assert waiting.message == "waited too long for gradient of hidden into stage 0 of minibatch 4, rank 1 -> rank 0"
    assert isinstance(stuck, PeerLost)

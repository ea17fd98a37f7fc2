"""The benchmark of checkpoints runs: a tiny case of each prints what it should. What it measures decides nothing."""

from __future__ import annotations

from pathlib import Path

from benchmarks import checkpoint


def test_each_case_gives_its_records(tmp_path: Path) -> None:
    (cost,) = checkpoint.cost(1, 1, 64, tmp_path)
    assert cost["case"] == "cost" and cost["seconds_per_interval"] > 0
    save, load = checkpoint.speed(2, 64, 1, tmp_path)
    assert (save["case"], load["case"]) == ("save", "load")
    assert save["bytes"] == load["bytes"] > 1e6
    assert min(save["ratio_to_dcp"], load["ratio_to_dcp"], save["stall_seconds"]) > 0

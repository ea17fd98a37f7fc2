"""Schedules as pictures, against torch's own orders, and proved by validate."""

from __future__ import annotations

from inspect import cleandoc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops
from torch.distributed.pipelining.schedules import _Action

from worker.errors import ScheduleError
from worker.schedule import (
    SCHEDULES,
    Action,
    Kind,
    Setting,
    actions,
    build,
    from_csv,
    num_warmup,
    peak_activations,
    peak_in_flight,
    peak_versions,
    picture,
    to_csv,
    validate,
    versions,
)
from worker.spec.pipeline import SYNC_MODES

PLAIN = [name for name, schedule in SCHEDULES.items() if not schedule.is_chunked and not schedule.is_searched]
CASES = [(name, mode) for name in PLAIN for mode in SCHEDULES[name].sync_modes]

PICTURES = {
    ("gpipe", "bsp", 3): """
        F0 F1 F2 B0 B1 B2 U2
        F0 F1 F2 B0 B1 B2 U2
        F0 F1 F2 B0 B1 B2 U2
        F0 F1 F2 B0 B1 B2 U2""",
    ("1f1b", "bsp", 5): """
        F0 F1 F2 F3 B0 F4 B1 B2 B3 B4 U4
        F0 F1 F2 B0 F3 B1 F4 B2 B3 B4 U4
        F0 F1 B0 F2 B1 F3 B2 F4 B3 B4 U4
        F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 U4""",
    ("none", "bsp", 2): """
        F0 B0 F1 B1 U1
        F0 B0 F1 B1 U1
        F0 B0 F1 B1 U1
        F0 B0 F1 B1 U1""",
    ("1f1b", "asp", 5): """
        F0 F1 F2 F3 B0 U0 F4 B1 U1 B2 U2 B3 U3 B4 U4
        F0 F1 F2 B0 U0 F3 B1 U1 F4 B2 U2 B3 U3 B4 U4
        F0 F1 B0 U0 F2 B1 U1 F3 B2 U2 F4 B3 U3 B4 U4
        F0 B0 U0 F1 B1 U1 F2 B2 U2 F3 B3 U3 F4 B4 U4""",
    ("none", "asp", 2): """
        F0 B0 U0 F1 B1 U1
        F0 B0 U0 F1 B1 U1
        F0 B0 U0 F1 B1 U1
        F0 B0 U0 F1 B1 U1""",
    ("2bw", "asp", 6): """
        F0 F1 F2 F3 B0 F4 B1 F5 B2 B3 U3 B4 B5 U5
        F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 U3 B4 B5 U5
        F0 F1 B0 F2 B1 F3 B2 F4 B3 U3 F5 B4 B5 U5
        F0 B0 F1 B1 F2 B2 F3 B3 U3 F4 B4 F5 B5 U5""",
    ("accumulate", "asp", 5): """
        F0 F1 F2 F3 B0 F4 B1 B2 B3 U3 B4 U4
        F0 F1 F2 B0 F3 B1 F4 B2 B3 U3 B4 U4
        F0 F1 B0 F2 B1 F3 B2 F4 B3 U3 B4 U4
        F0 B0 F1 B1 F2 B2 F3 B3 U3 F4 B4 U4""",
}


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_picture(case: tuple[str, str, int]) -> None:
    name, mode, minibatches = case
    assert picture(build(name, mode, Setting(4, range(minibatches)))) == cleandoc(PICTURES[case])


def test_interleaved_picture() -> None:
    """Stages 0 and 2 are on the first rank, 1 and 3 on the second."""
    ranks = build("interleaved", "bsp", Setting(2, range(2), chunks=2))
    assert [" ".join(map(str, rank)) for rank in ranks] == [
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1 0U1 2U1",
        "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1 1U1 3U1",
    ]


def test_zb_v_picture() -> None:
    """Stages 0 and 3 are on the first rank, 1 and 2 on the second."""
    ranks = build("zb-v", "bsp", Setting(2, range(3), chunks=2))
    assert [" ".join(map(str, rank)) for rank in ranks] == [
        "0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 3W2 0I1 0W1 0I2 0W2 0U2 3U2",
        "1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1I1 2I2 1I2 1W1 2W2 1W2 1U2 2U2",
    ]


def test_in_flight_spreads_over_the_cuts() -> None:
    assert picture(build("1f1b", "bsp", Setting(3, range(5), in_flight=5))) == cleandoc("""
        F0 F1 F2 F3 F4 B0 B1 B2 B3 B4 U4
        F0 F1 F2 B0 F3 B1 F4 B2 B3 B4 U4
        F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 U4""")


def test_gpipe_runs_in_rounds_of_what_may_be_in_flight() -> None:
    assert picture([list(actions("gpipe", "bsp", 0, 2, range(3), 2))]) == "F0 F1 B0 B1 F2 B2 U2"


def test_minibatches_keep_their_numbers() -> None:
    assert picture([list(actions("1f1b", "asp", 1, 3, range(7, 13, 2)))]) == "F7 F9 B7 U7 F11 B9 U9 B11 U11"


@pytest.mark.parametrize("in_flight", [None, 1, 2, 4, 5, 7, 9])
def test_warmup_ends_with_none(in_flight: int | None) -> None:
    depths = [num_warmup(stage, 4, in_flight) for stage in range(4)]
    assert depths == sorted(depths, reverse=True)
    assert (depths[0], depths[-1]) == ((in_flight or 4) - 1, 0)


def orders(name: str, stages: int, minibatches: int, chunks: int | None = None) -> list[list[str]]:
    """Torch's computations of every rank, without its waits."""
    kinds = ("F", "B", "I", "W")
    ranks = get_schedule_ops(name, stages, minibatches, chunks)
    return [[str(each) for each in rank if each is not None and each.computation_type.value in kinds] for rank in ranks]


def computations(ranks: list[list[Action]]) -> list[list[str]]:
    return [[str(action) for action in rank if action.kind is not Kind.UPDATE] for rank in ranks]


@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize(("stages", "minibatches"), [(1, 3), (2, 2), (2, 6), (3, 2), (3, 5), (4, 8), (4, 10), (5, 15)])
def test_interleaved_is_torchs(stages: int, minibatches: int, chunks: int) -> None:
    ours = build("interleaved", "bsp", Setting(stages, range(minibatches), chunks=chunks))
    assert computations(ours) == orders("Interleaved1F1B", stages, minibatches, chunks)


@pytest.mark.parametrize("minibatches", [1, 2, 3, 7, 8, 12, 17])
@pytest.mark.parametrize("stages", range(1, 9))
def test_zb_v_is_torchs(stages: int, minibatches: int) -> None:
    ours = build("zb-v", "bsp", Setting(stages, range(minibatches), chunks=2))
    assert computations(ours) == orders("ZBVZeroBubble", stages, minibatches, 2)


@pytest.mark.parametrize(("stages", "minibatches"), [(2, 1), (4, 4), (3, 7)])
def test_gpipe_is_torchs(stages: int, minibatches: int) -> None:
    assert computations(build("gpipe", "bsp", Setting(stages, range(minibatches)))) == orders(
        "GPipe", stages, minibatches
    )


@pytest.mark.parametrize(("stages", "minibatches"), [(2, 2), (4, 8), (3, 9)])
def test_1f1b_is_torchs_but_for_its_last_rank(stages: int, minibatches: int) -> None:
    """torch 2.13's printed order (not its runtime) has no F0 on the last rank."""
    ours, torchs = (
        computations(build("1f1b", "bsp", Setting(stages, range(minibatches)))),
        orders("1F1B", stages, minibatches),
    )
    assert ours[:-1] == torchs[:-1]


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from([*CASES, ("interleaved", "bsp"), ("zb-v", "bsp")]),
    stages=st.integers(1, 7),
    minibatches=st.integers(1, 20),
    in_flight=st.none() | st.integers(1, 16),
    per_update=st.integers(1, 9),
)
def test_every_schedule_is_valid(
    case: tuple[str, str], stages: int, minibatches: int, in_flight: int | None, per_update: int
) -> None:
    """Whatever a generator does not refuse runs without a deadlock and within what it promises."""
    name, mode = case
    chunks = {"interleaved": 3, "zb-v": 2}.get(name, 1)
    try:
        ranks = build(name, mode, Setting(stages, range(minibatches), in_flight, chunks=chunks, per_update=per_update))
    except ScheduleError:
        return
    own = {"none": 1, "gpipe": minibatches, "zb-h2": 2 * stages - 1, "interleaved": minibatches}.get(name, stages)
    kept = {"2bw": 2, "1f1b": in_flight or own}.get(name, 1)
    depth = own if name in ("none", "interleaved") else in_flight or own
    validate(ranks, in_flight=depth, versions=kept, stashes=SCHEDULES[name].stashes)


@pytest.mark.parametrize(
    ("name", "mode", "peaks"),
    [
        ("gpipe", "bsp", [8, 8, 8, 8]),
        ("1f1b", "bsp", [4, 3, 2, 1]),
        ("1f1b", "asp", [4, 3, 2, 1]),
        ("2bw", "asp", [4, 3, 2, 1]),
        ("zb-h1", "bsp", [4, 4, 4, 4]),
        ("zb-h2", "bsp", [7, 7, 7, 7]),
        ("none", "asp", [1, 1, 1, 1]),
    ],
)
def test_peak_in_flight(name: str, mode: str, peaks: list[int]) -> None:
    assert [peak_in_flight(rank) for rank in build(name, mode, Setting(4, range(8)))] == peaks


def test_an_input_gradient_frees_a_part() -> None:
    ranks = build("zb-h2", "bsp", Setting(4, range(8)))
    assert [peak_activations(rank, 0.5) for rank in ranks] == [7.0, 6.0, 5.0, 4.0]


def of_steady_state(name: str, **setting: int) -> list[tuple[int, int, int]]:
    """Staleness, drift and versions held of each of four stages, over a stream of 40."""
    stashes = SCHEDULES[name].stashes
    ranks = build(name, "asp", Setting(4, range(40), **setting))
    uses = [versions(rank, stashes)[20:36] for rank in ranks]
    worst = [(max(use.staleness for use in each), max(use.drift for use in each)) for each in uses]
    return [(*each, peak_versions(rank, stashes)) for each, rank in zip(worst, ranks, strict=True)]


def test_1f1b_under_asp_is_late_by_its_warmup() -> None:
    assert of_steady_state("1f1b") == [(3, 0, 4), (2, 0, 3), (1, 0, 2), (0, 0, 1)]


@pytest.mark.parametrize("in_flight", [4, 6])
def test_2bw_is_late_by_one_everywhere(in_flight: int) -> None:
    assert of_steady_state("2bw", per_update=6, in_flight=in_flight) == [(1, 0, 2)] * 4


@pytest.mark.parametrize(
    ("per_update", "drifts"), [(1, [3, 2, 1, 0]), (2, [2, 1, 1, 0]), (3, [1, 1, 1, 0]), (8, [1, 1, 1, 0])]
)
def test_accumulate_drifts_by_the_bound(per_update: int, drifts: list[int]) -> None:
    """ceil((stages behind) / per_update) updates, on one version of the weights."""
    assert [each[1:] for each in of_steady_state("accumulate", per_update=per_update)] == [(d, 1) for d in drifts]


def test_bsp_has_one_version_and_no_delay() -> None:
    for name, mode in CASES:
        if mode == "bsp":
            ranks = build(name, mode, Setting(4, range(8)))
            assert {use.staleness for rank in ranks for use in versions(rank)} == {0}
            assert {peak_versions(rank) for rank in ranks} == {1}


def test_updates_of_all_chunks_are_one() -> None:
    ranks = build("interleaved", "bsp", Setting(2, range(4), chunks=3)) * 2
    assert {use.updated for use in versions([*ranks[0], *ranks[2]])} == {0, 1}


@pytest.mark.parametrize(
    ("name", "mode", "setting", "message"),
    [
        ("zbh1", "bsp", {}, "no schedule is called 'zbh1'; did you mean zb-h1?"),
        ("gpipe", "asp", {}, "schedule gpipe does not run under sync_mode asp"),
        ("1f1b", "bsp", {"chunks": 2}, "schedule 1f1b runs one stage per rank, not 2 chunks"),
        ("interleaved", "bsp", {}, "interleaved needs at least two chunks per rank"),
        ("interleaved", "bsp", {"chunks": 2, "minibatches": range(9)}, "9 minibatches do not fill rounds of 4"),
        ("interleaved", "bsp", {"chunks": 2, "in_flight": 3}, "rounds of 3 minibatches are too short for 4 stages"),
        ("zb-v", "bsp", {"chunks": 3}, "zb-v needs two chunks per rank, not 3"),
        ("zb-v", "bsp", {"chunks": 2, "in_flight": 3}, "zb-v has one depth"),
        ("2bw", "asp", {"per_update": 3}, "3 minibatches per update are fewer than the 4 in flight"),
    ],
)
def test_settings_that_do_not_fit(name: str, mode: str, setting: dict[str, object], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        build(name, mode, Setting(**{"stages": 4, "minibatches": range(8), **setting}))
    assert message in error.value.message


@pytest.mark.parametrize("name", ["stages", "in_flight", "chunks", "per_update"])
def test_counts_start_at_one(name: str) -> None:
    with pytest.raises(ScheduleError, match=f"{name} is 0"):
        Setting(**{"stages": 2, "minibatches": range(2), name: 0})


def test_csv_is_torchs() -> None:
    """Torch reads every cell as what it is, and from_csv reads back all but the updates."""
    ranks = build("zb-h1", "bsp", Setting(3, range(4)))
    text = to_csv(ranks)
    assert [[str(_Action.from_str(cell)) for cell in row.split(",")] for row in text.split()] == computations(ranks)
    assert computations(from_csv(text)) == computations(ranks)


def test_csv_of_torch_is_read() -> None:
    """As torch writes it, with empty cells where a rank waits."""
    ranks = get_schedule_ops("InterleavedZeroBubble", 3, 6, 2)
    text = "\n".join(",".join("" if each is None else str(each) for each in rank) for rank in ranks)
    read = from_csv(text)
    assert computations(read) == orders("InterleavedZeroBubble", 3, 6, 2)
    validate(read)


@pytest.mark.parametrize("cell", ["0SEND_F0", "F0", "0F", "0X0", "(0F1;3B0)OVERLAP_F_B", "٣F0", "0F9999999999"])
def test_csv_with_another_cell_is_refused(cell: str) -> None:
    with pytest.raises(ScheduleError, match="row 2, column 2"):
        from_csv(f"0F0,0B0\n1F0,{cell}")


def test_cluster_yml_knows_the_same_schedules() -> None:
    assert {name: set(modes) for name, modes in SYNC_MODES.items()} == {
        name: set(schedule.sync_modes) for name, schedule in SCHEDULES.items()
    }

"""The simulator against published tables and formulas, and the command around it."""

from __future__ import annotations

import json
from inspect import cleandoc
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from vpipe_cli import timeline
from vpipe_cli.commands import simulate as command
from vpipe_cli.simulation import Request, run
from worker.errors import ScheduleError, UsageError
from worker.planner.simulate import Simulation, simulate
from worker.schedule import SCHEDULES, Setting, Times, build, from_csv, to_csv


def of(
    name: str, stages: int, minibatches: int, times: Times | list[Times], hop: float = 0.0, **more: int
) -> Simulation:
    mode = SCHEDULES[name].sync_modes[0]
    return simulate(build(name, mode, Setting(stages, range(minibatches), **more)), times, hop)


# stages, minibatches; F, I, W, hop in ms; bubble of 1F1B, 1F1B-I, ZB-H1, ZB-H2 (arXiv 2401.10241, tables 5 and 9).
TABLE = [
    (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431, 0.1090, 0.1585, 0.1083),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 0.1985, 0.0847, 0.1242, 0.0837),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 0.1240, 0.0461, 0.0674, 0.0444),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1136, 0.1397, 0.0672),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.0878, 0.1088, 0.0516),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0459, 0.0576, 0.0266),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_bubble_rates_are_the_published_ones(row: tuple[float, ...]) -> None:
    """To four decimals, but for 1F1B-I, where the paper has .1055 .0818 .0443 and .1104 .0852 .0445.

    Its estimator lets a chunk's first stage wait for the chunk before, over the hop from last to first rank, for every
    stages-th minibatch only. All of them wait, which costs about stages x hop more: the numbers here.
    """
    stages, minibatches, times, hop = int(row[0]), int(row[1]), Times(*row[2:5]), row[5]
    names = [("1f1b", 1), ("interleaved", 3), ("zb-h1", 1), ("zb-h2", 1)]
    rates = [of(name, stages, minibatches, times, hop, chunks=chunks).bubble_rate for name, chunks in names]
    assert [round(rate, 4) for rate in rates] == list(row[6:])


@pytest.mark.parametrize(
    ("name", "chunks", "makespan", "cost"),
    [
        ("gpipe", 1, 33, 33),
        ("1f1b", 1, 33, 33),
        ("interleaved", 2, 28.5, 28.5),
        ("interleaved", 4, 26.25, 26.25),
        ("zb-h1", 1, 27, 27),
        ("zb-h2", 1, 27, 24),
        ("zb-v", 2, 25.5, 24),
    ],
)
def test_spans_of_four_equal_stages(name: str, chunks: int, makespan: float, cost: float) -> None:
    """Eight minibatches, F = I = W = 1."""
    simulation = of(name, 4, 8, Times(), chunks=chunks)
    assert (simulation.makespan, simulation.cost) == (makespan, cost)


@pytest.mark.parametrize(
    ("name", "chunks", "peaks"),
    [
        ("gpipe", 1, [8, 8, 8, 8]),
        ("1f1b", 1, [4, 3, 2, 1]),
        ("interleaved", 2, [5.5, 4.5, 3.5, 2.5]),
        ("interleaved", 4, [4.75, 4.25, 3.75, 3.25]),
        ("zb-h1", 1, [4, 4, 4, 4]),
        ("zb-h2", 1, [7, 7, 7, 7]),
        ("zb-v", 2, [4, 4, 4, 4]),
    ],
)
def test_in_flight_of_four_stages(name: str, chunks: int, peaks: list[float]) -> None:
    assert [report.peak_in_flight for report in of(name, 4, 8, Times(), chunks=chunks).ranks] == peaks


@pytest.mark.parametrize("stages", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("rounds", [1, 3])
def test_1f1b_pays_for_every_hop(stages: int, rounds: int) -> None:
    """(m + p - 1)(F + B) + c [2 (p - 1)(m / p + 1) - 2] where p divides m."""
    minibatches, hop = rounds * stages, 0.125
    hops = 2 * (stages - 1) * (rounds + 1) - 2
    assert of("1f1b", stages, minibatches, Times(), hop).makespan == (minibatches + stages - 1) * 3 + hops * hop


@pytest.mark.parametrize(("hop", "shallow", "deep"), [(0.1, 0.932, 0.986), (0.3, 0.840, 0.984), (1.0, 0.623, 0.978)])
def test_more_in_flight_hides_the_hop(hop: float, shallow: float, deep: float) -> None:
    """Utilisation of 8 stages over 512 minibatches, with 8 and with 15 of them in flight."""
    found = [512 * 3 / of("1f1b", 8, 512, Times(), hop, in_flight=depth).makespan for depth in (8, 15)]
    assert [round(each, 3) for each in found] == [shallow, deep]


def test_zb_formulas() -> None:
    """m (F + I + W) + (p - 1)(F + I - W), and - 2 W in place of - W, without hops."""
    times, work, fill = Times(5.0, 4.0, 3.0), 20 * 12.0, 3 * 9.0
    assert of("zb-h1", 4, 20, times).cost == work + fill - 3 * 3.0
    assert of("zb-h2", 4, 20, times).cost == work + fill - 3 * 6.0


def test_no_pipelining_is_all_stages_in_turn() -> None:
    assert of("none", 3, 4, Times(1.0, 1.5, 0.5), 0.25).makespan == 4 * (3 * 3.0 + 4 * 0.25)


def test_unequal_stages_are_held_up_by_the_slowest() -> None:
    """Between the slowest stage with what stands around it, and the sum of the stages and m - 1 times the slowest."""
    simulation = of("1f1b", 3, 10, [Times(1, 1, 1), Times(2, 2, 2), Times(1, 1, 1)])
    assert 1 + 10 * 6 + 2 <= simulation.makespan <= (3 + 6 + 3) + 9 * 6
    assert [report.busy for report in simulation.ranks] == [30, 60, 30]
    assert simulation.bubble_rate == 1 - 60 / simulation.cost


def test_busy_and_idle_fill_the_span() -> None:
    for report in of("zb-h1", 4, 8, Times(1.0, 2.0, 0.5, update=1.0), 0.3).ranks:
        assert report.busy == pytest.approx(8 * 3.5 + 1.0)
        assert report.busy + report.idle == pytest.approx(report.span)


def test_an_update_follows_every_backward_under_asp() -> None:
    ranks = build("1f1b", "asp", Setting(2, range(6)))
    assert [report.busy for report in simulate(ranks, Times(update=0.5)).ranks] == [6 * 3.5] * 2


def test_virtual_stages_may_have_their_own_times() -> None:
    ranks = build("interleaved", "bsp", Setting(2, range(2), chunks=2))
    times = [Times(float(stage), 0.0, 0.0) for stage in range(4)]
    assert [report.busy for report in simulate(ranks, times).ranks] == [2 * (0 + 2), 2 * (1 + 3)]


def test_a_hop_for_each_cut() -> None:
    ranks = build("none", "bsp", Setting(3, range(1)))
    assert simulate(ranks, Times(), [0.5, 2.0]).makespan == 9 + 2 * 2.5


@pytest.mark.parametrize(
    ("times", "hop", "message"),
    [([Times()] * 2, 0.0, "times for 2 stages; the schedule has 3"), (Times(), [1.0], "1 hop times for 2 cuts")],
)
def test_lists_of_another_length(times: Times | list[Times], hop: float | list[float], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        simulate(build("1f1b", "bsp", Setting(3, range(3))), times, hop)


def test_timeline_of_a_few() -> None:
    assert timeline.text(of("1f1b", 3, 3, Times()).spans, 47) == cleandoc("""
        0 F0-F1-F2-............B0----...B1----...B2----
        1 ...F0-F1-......B0----F2-B1----...B2----
        2 ......F0-B0----F1-B1----F2-B2----""")


def test_timeline_of_many_has_letters_only() -> None:
    """At three quarters of a column for a forward, some have none."""
    assert timeline.text(of("1f1b", 2, 8, Times()).spans, 22) == cleandoc("""
        0 F..BFB-B-FBFBFB-B-.B
        1 .B-FBFBFB-B-FBFBFB-""")


def test_timeline_of_chunks_has_small_letters() -> None:
    assert timeline.text(of("interleaved", 2, 2, Times(2.0, 2.0, 2.0), chunks=2).spans, 50) == cleandoc("""
        0 F0-F1-f0--f1-......b0-----...b1----B0-----B1----
        1 ...F0-F1--f0-b0----f1-b1-----B0----B1-----""")


def test_timeline_leaves_out_what_takes_no_time() -> None:
    assert timeline.text(of("none", 2, 1, Times(0.0, 0.0, 0.0)).spans) == "0 \n1 "


app = typer.Typer()
app.command()(command.simulate)


def vpipe(arguments: str) -> Result:
    return CliRunner().invoke(app, arguments.split(), catch_exceptions=True)


def test_json() -> None:
    result = vpipe(
        "--schedule zb-h1 --stages 8 --minibatches 24 --forward 18.522 --input-grad 18.086 "
        "--weight-grad 9.337 --hop 0.601 -o json"
    )
    document = json.loads(result.stdout)
    assert round(document["bubble_rate"], 4) == 0.1585
    assert document["schema"] == 1 and document["schedule"] == "zb-h1" and document["sync_mode"] == "bsp"
    assert document["peak_in_flight"] == [8] * 8
    assert document["makespan"] == pytest.approx(1310.405)
    assert [stage["rank"] for stage in document["stages"]] == list(range(8))
    assert document["stages"][7]["idle"] == pytest.approx(14 * 0.601)


def test_csv_goes_out_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "order.csv"
    path.write_text(vpipe("--schedule interleaved --stages 3 --minibatches 6 -o csv").stdout)
    assert to_csv(from_csv(path.read_text())) == path.read_text()
    document = json.loads(vpipe(f"--schedule {path} -o json").stdout)
    assert document["makespan"] == of("interleaved", 3, 6, Times(), chunks=2).makespan


def test_text_fits_a_terminal() -> None:
    text = vpipe("--schedule 2bw --stages 16 --minibatches 50 --update 0.1").stdout
    assert text.startswith("2bw under asp: 16 stages, 50 minibatches\n")
    assert max(map(len, text.splitlines())) <= 80


def test_stage_times(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps([{"forward": s, "input_grad": 1, "weight_grad": 1, "update": 2} for s in (1, 2, 3)]))
    simulated = run(Request("1f1b", minibatches=4, stage_times=path))
    assert [report.busy for report in simulated.simulation.ranks] == [4 * 3 + 2, 4 * 4 + 2, 4 * 5 + 2]


def test_memory_limit_is_what_zb_auto_fills() -> None:
    costs = [run(Request("zb-auto", stages=4, minibatches=8, memory_limit=limit)).simulation.cost for limit in (4, 7)]
    assert costs == [27, 24]


@pytest.mark.parametrize("form", ["png", "svg"])
def test_picture(form: str, tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    vpipe(f"--schedule zb-h1 --stages 2 --minibatches 3 --{form} {path}")
    assert path.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[form]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--schedule zbh1 --stages 2 --minibatches 2", "no schedule is called 'zbh1'; did you mean zb-h1?"),
        ("--schedule 1f1b", "a schedule by name needs --stages and --minibatches"),
        ("--schedule 1f1b --stages 0 --minibatches 2", "stages is 0"),
        ("--schedule 1f1b --stages 2 --minibatches 0", "--minibatches is 0"),
        ("--schedule 1f1b --stages 99999 --minibatches 99999", "more than this can simulate"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --forward nan", "--forward is nan"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --update inf", "--update is inf"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --hop -1", "--hop is -1.0"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --weight-share 2", "--weight-share is 2"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --in-flight 0", "in_flight is 0"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --chunks 0", "chunks is 0"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --memory-limit 0.5", "not even one minibatch fits"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --memory-limit 1", "rank 0 holds the activations of 2"),
        ("--schedule gpipe --stages 2 --minibatches 2 --sync-mode asp", "gpipe does not run under sync_mode asp"),
        ("--schedule 1f1b --stages 2 --minibatches 2 --png /none/x", "cannot write /none/x"),
        ("--schedule none.csv", "--schedule: cannot read none.csv: No such file or directory"),
        ("--schedule none.csv --stages 2", "--stages means nothing to a schedule read from none.csv"),
        ("--schedule 1f1b --minibatches 2 --stage-times none", "--stage-times: cannot read none"),
        ("--schedule 1f1b --minibatches 2 --stage-times none --hop 1 --update 1", "--update and --stage-times both"),
    ],
)
def test_bad_usage(arguments: str, message: str) -> None:
    error = vpipe(arguments).exception
    assert isinstance(error, UsageError)
    assert message in error.message and error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must be a list of objects"),
        ("[]", "must be a list of objects"),
        ('[{"forward": 1}]', "stage 0 lacks input_grad"),
        ('[{"forward": 1, "input_grad": 1, "weight_grad": 1, "hop": 1}]', "stage 0 has an unknown key 'hop'"),
        ('[{"forward": NaN, "input_grad": 1, "weight_grad": 1}]', "stage 0: forward is nan"),
        ('[{"forward": true, "input_grad": 1, "weight_grad": 1}]', "stage 0: forward is True"),
        ('[{"forward": 1, "input_grad": 1, "weight_grad": 1}]', "has times for 1 stages, but --stages is 2"),
        ("\udcff", "it is not text in UTF-8"),
    ],
)
def test_bad_stage_times(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as error:
        run(Request("1f1b", stages=2, minibatches=2, stage_times=path))
    assert message in error.value.message


def test_help_names_every_schedule() -> None:
    assert f"Schedules: {', '.join(SCHEDULES)}." in (command.simulate.__doc__ or "")

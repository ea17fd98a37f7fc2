"""hostd with real processes: small Python programs stand for ranks."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import HOSTD, READY, SLEEP, Rig, gone, wait_for
from worker.hostd import rank, words
from worker.hostd.cgroup import ControlGroup
from worker.spec.files import append_event, read_events, seal


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "run")
    yield rig
    rig.kill_all()


def test_ranks_that_all_finish_succeed(rig: Rig) -> None:
    rig.start(READY + "print('one')", READY + "print('two')")
    assert rig.end()["state"] == "succeeded"
    assert rig.states() == ["starting", "running", "succeeded"]
    assert [(rig.exit(rank).code, rig.exit(rank).cause) for rank in (0, 1)] == [(0, "finished")] * 2


def test_final_event_comes_after_the_exit_records(rig: Rig) -> None:
    rig.start("pass", "pass")
    rig.end()
    assert rig.files.exit(1, 0).exists() and rig.files.exit(1, 1).exists()


def test_a_bad_exit_ends_the_others_and_is_named(rig: Rig) -> None:
    rig.start(SLEEP, "import sys; print('before'); sys.exit('no such corpus')")
    assert rig.end()["first_failure"] == {
        "rank": 1, "stage": 1, "host": "localhost", "cause": "exit status 1: no such corpus", "step": None,
    }  # fmt: skip
    assert sorted(rig.exit(1).last_lines) == ["before", "no such corpus"]
    assert rig.exit(0).ended_by_us and rig.exit(0).cause == "ended by vpipe because another rank had failed"


def test_a_killed_rank_is_named_with_the_likely_reasons(rig: Rig) -> None:
    rig.start(SLEEP, SLEEP, SLEEP)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.pids()[1], signal.SIGKILL)
    assert rig.end()["first_failure"]["rank"] == 1
    assert rig.exit(1).cause == "killed by SIGKILL (out of memory, or kill -9)"
    assert (rig.exit(1).signal, rig.exit(1).code, rig.exit(1).ended_by_us) == (9, None, False)
    assert all(map(gone, rig.pids())) and not rig.with_token()


def lost(step: int) -> str:
    """A program that lost a peer at a step, says so and ends."""
    words = json.dumps({"message": "lost a peer", "consequence": True, "step": step})
    return f"import os; open(os.environ['ERROR'], 'w').write('{words}'); os._exit(1)"


def after(rank: int, program: str) -> str:
    """The program, once another rank has ended."""
    record = f"attempt-1/rank-{rank}.exit.json"
    return READY + f"while not os.path.exists(os.environ['HERE'] + '/{record}'): time.sleep(0.01)\n" + program


def test_a_consequence_is_not_the_first_failure(rig: Rig) -> None:
    """Rank 0 sees the broken connection and ends before the one that broke it."""
    rig.start(lost(7), after(0, "sys.exit(5)"))
    assert rig.end()["first_failure"]["cause"] == "exit status 5"
    assert rig.exit(0).consequence and rig.exit(0).cause == "exit status 1: lost a peer"
    assert rig.exit(0).ended < rig.exit(1).ended and not rig.exit(1).ended_by_us


def test_the_earliest_is_named_where_all_are_consequences(rig: Rig) -> None:
    rig.start(after(1, lost(8)), lost(7))
    assert rig.end()["first_failure"] == {
        "rank": 1, "stage": 1, "host": "localhost", "cause": "exit status 1: lost a peer", "step": 7,
    }  # fmt: skip


def test_a_torn_error_file_is_no_obstacle(rig: Rig) -> None:
    rig.start("import os; open(os.environ['ERROR'], 'w').write('{\"message\": \"lo'); os._exit(4)")
    assert rig.end()["first_failure"]["cause"] == "exit status 4"


def test_a_program_that_cannot_start_is_a_failure_with_its_name(rig: Rig) -> None:
    rig.write(SLEEP, SLEEP)
    launch = json.loads(rig.files.launch.read_text())
    launch["ranks"][0]["argv"] = ["/no/such/python"]
    rig.files.launch.write_text(json.dumps(launch))
    assert rig.hostd().returncode == 0
    assert rig.end()["first_failure"]["cause"].startswith("cannot start /no/such/python: ")


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(rig: Rig) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    rig.start(deaf, READY + "sys.exit(3)", grace=0.3)
    assert rig.end()["first_failure"]["rank"] == 1
    assert rig.exit(0).signal == signal.SIGKILL and rig.exit(0).ended_by_us


def test_a_rank_may_use_its_grace(rig: Rig) -> None:
    polite = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('tidy')))\n" + SLEEP
    rig.start(polite)
    wait_for(lambda: "running" in rig.states())
    rig.files.stop.touch()
    assert rig.end()["state"] == "stopped"
    assert rig.text(0) == b"tidy\n" and rig.exit(0).code == 0


@pytest.mark.parametrize("leave", ["os.setsid()", "os.setsid(); os.execve(sys.executable, SLEEPER, {})"])
def test_daemons_of_a_rank_do_not_survive(rig: Rig, leave: str) -> None:
    """In a session of its own, holding the rank's pipes, with and without the run's token."""
    rig.start(
        f"""import os, sys, time
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
if os.fork() == 0:
    open(os.environ["HERE"] + "/daemon", "w").write(str(os.getpid()))
    {leave}
    time.sleep(60)
while not os.path.exists(os.environ["HERE"] + "/daemon"): time.sleep(0.01)
print("done")"""
    )
    assert rig.end()["state"] == "succeeded"
    assert gone(int((rig.files.folder / "daemon").read_text())) and not rig.with_token()
    assert rig.exit(0).last_lines == ["done"]


def test_ranks_die_with_hostd(rig: Rig) -> None:
    rig.start(SLEEP, SLEEP)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.events()[0]["hostd"], signal.SIGKILL)
    wait_for(lambda: all(map(gone, rig.pids())))
    assert rig.states() == ["starting", "running"]


def test_stop_file_stops(rig: Rig) -> None:
    rig.start(SLEEP, SLEEP)
    wait_for(lambda: "running" in rig.states())
    rig.files.stop.touch()
    assert rig.end()["state"] == "stopped"
    assert rig.exit(0).cause == "ended by vpipe because a stop was asked for"


def test_sigterm_to_hostd_stops(rig: Rig) -> None:
    rig.start(SLEEP)
    os.kill(rig.events()[0]["hostd"], signal.SIGTERM)
    assert rig.end()["why"] == "because hostd got SIGTERM"


def test_a_frozen_rank_is_ended_too(rig: Rig) -> None:
    rig.start(SLEEP)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.pids()[0], signal.SIGSTOP)
    rig.files.stop.touch()
    rig.end()
    assert rig.exit(0).signal == signal.SIGTERM


def test_a_second_hostd_is_refused_while_the_first_runs(rig: Rig) -> None:
    rig.start(SLEEP)
    second = rig.hostd()
    assert (second.returncode, "already running" in second.stderr) == (1, True)


def test_an_attempt_is_never_started_twice(rig: Rig) -> None:
    rig.start("pass")
    rig.end()
    second = wait_for(lambda: next((done for done in [rig.hostd()] if "already running" not in done.stderr), None))
    assert (second.returncode, "was started before" in second.stderr) == (1, True)
    assert rig.states()[-1] == "succeeded"


def test_a_run_stopped_before_it_began_never_begins(rig: Rig) -> None:
    rig.write("pass")
    rig.files.stop.touch()
    done = rig.hostd()
    assert (done.returncode, "before the run began" in done.stderr, rig.events()) == (1, True, [])


FORKS = """import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(os.environ["HERE"] + "/daemon", "w").write(str(os.getpid()))
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], {})
while not os.path.exists(os.environ["HERE"] + "/daemon"): time.sleep(0.01)
"""
"""Leaves a process in a session of its own that has dropped the run's token."""


def test_the_lock_outlives_hostd_while_a_process_of_a_rank_has_it(rig: Rig) -> None:
    """One that the guard cannot know: it has no token, and somebody has taken it out of the control group."""
    rig.start(FORKS + SLEEP)
    wait_for(lambda: "running" in rig.states())
    daemon = (rig.files.folder / "daemon").read_text()
    if os.path.exists(group := ControlGroup(rig.id, "localhost").folder):
        (Path(group).parent / "cgroup.procs").write_text(daemon)
    os.kill(rig.events()[0]["hostd"], signal.SIGKILL)
    wait_for(lambda: all(map(gone, rig.pids())))
    assert "already running" in rig.hostd().stderr
    os.kill(int(daemon), signal.SIGKILL)


def test_nothing_in_the_control_group_outlives_hostd(rig: Rig) -> None:
    rig.start(FORKS + SLEEP)
    wait_for(lambda: "running" in rig.states())
    group = ControlGroup(rig.id, "localhost").folder
    if not os.path.exists(group):
        pytest.skip("needs a part of the tree of control groups that this user may divide, and Linux 5.14")
    os.kill(rig.events()[0]["hostd"], signal.SIGKILL)
    wait_for(lambda: gone(int((rig.files.folder / "daemon").read_text())))
    wait_for(lambda: not os.path.exists(group))


def test_what_has_the_token_dies_with_hostd_wherever_it_hides(rig: Rig) -> None:
    rig.start("import os, time\nif os.fork() == 0: os.setsid(); time.sleep(60)\n" + SLEEP)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.events()[0]["hostd"], signal.SIGKILL)
    wait_for(lambda: not rig.with_token())


def test_a_burst_of_output_is_whole(rig: Rig) -> None:
    rig.start("import sys\nsys.stdout.write(''.join(f'{n:049}\\n' for n in range(100_000)))")
    rig.end()
    assert rig.text(0) == b"".join(b"%049d\n" % number for number in range(100_000))


def test_bytes_survive_as_they_are(rig: Rig) -> None:
    rig.start("import os; os.write(1, b'\\xff\\xfe\\x00\\r\\x1b[2J\\n\\n'); os.write(2, b'no newline')")
    rig.end()
    by_stream = {letter: [line[30:] for line in rig.log(0) if line[28:29] == letter] for letter in (b"o", b"e")}
    assert by_stream == {b"o": [b"\xff\xfe\x00\r\x1b[2J\n", b"\n"], b"e": [b"no newline\n"]}


def test_log_record_format(rig: Rig) -> None:
    rig.start("print('hello  there ')")
    rig.end()
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z o hello  there \n", b"".join(rig.log(0)))


def test_an_endless_line_is_cut_not_kept(rig: Rig) -> None:
    rig.start("import sys; sys.stdout.write('x' * 300_000)")
    rig.end()
    assert sum(len(line[30:].rstrip()) for line in rig.log(0)) == 300_000
    assert len(rig.log(0)) > 1 and max(map(len, rig.log(0))) < 2 * rank.LINE_LIMIT + 64


def test_ranks_get_their_argv_env_and_folder_and_the_store(rig: Rig) -> None:
    show = """import json, os, socket
names = sorted(name for name in os.environ if name != "LC_CTYPE")
print(json.dumps([names, os.getcwd(), os.environ["VPIPE_NONCE"], os.getpid() == os.getsid(0)]), flush=True)
"""
    serve = show + "print(socket.socket(fileno=int(os.environ['VPIPE_STORE_FD'])).accept()[0].recv(9))"
    call = show + "socket.create_connection(os.environ['VPIPE_STORE'].split(':')).send(b'hello')"
    rig.start(serve, call)
    assert rig.end()["state"] == "succeeded"
    first, second = (json.loads(rig.text(rank).splitlines()[0]) for rank in (0, 1))
    common = ["ERROR", "HERE", "PATH", "READY"]
    common += [f"VPIPE_{name}" for name in ("ATTEMPT", "HOST", "NONCE", "RANK", "RUN", "STORE")]
    assert first == [[*common, "VPIPE_STORE_FD"], str(rig.files.folder), second[2], True]
    assert (second[0], len(second[2]), rig.text(0).splitlines()[1]) == (common, 32, b"b'hello'")


def test_modes_do_not_depend_on_the_umask(rig: Rig) -> None:
    rig.write("open('made-by-rank', 'w').close()")
    before = os.umask(0)
    try:
        rig.hostd()
    finally:
        os.umask(before)
    rig.end()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in rig.files.folder.rglob("*")}
    assert modes.pop("attempt-1") == 0o700
    del modes["launch.json"]  # the rig's own
    assert set(modes.values()) == {0o600}


def test_hostd_leaves_the_terminal(rig: Rig) -> None:
    rig.start(SLEEP)
    supervisor = rig.events()[0]["hostd"]
    assert os.getsid(supervisor) not in (os.getsid(0), supervisor)
    assert [os.readlink(f"/proc/{supervisor}/fd/{fd}") for fd in (0, 1, 2)] == [
        "/dev/null",
        str(rig.files.hostd_log),
        str(rig.files.hostd_log),
    ]


def test_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    """A file size limit tears a line as a full disk does; the next one stands on a line of its own."""
    appender = words.Appender(str(tmp_path / "log"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        appender.write(b"a torn line\n")
        appender.write(b"a lost line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    appender.write(b"after\n")
    assert (tmp_path / "log").read_bytes() == b"a torn lin\nafter\n"


def test_events_are_sealed_as_the_specification_seals_them(tmp_path: Path) -> None:
    record = {"time": 1.25, "event": "state", "why": 'é "quoted" \n', "first_failure": None}
    assert words.seal(record) == seal(record)
    append_event(tmp_path / "events", record)
    assert list(read_events(tmp_path / "events")) == [record]


def test_an_event_after_one_torn_by_a_killed_writer_stands_on_its_own_line(tmp_path: Path) -> None:
    appender = words.Appender(str(tmp_path / "events"))
    for number in range(2):
        with open(tmp_path / "events", "ab") as killed:
            killed.write(seal({"number": "torn"}).encode()[:-9])
        append_event(tmp_path / "events", {"number": 2 * number})
        with open(tmp_path / "events", "ab") as killed:
            killed.write(b'{"number')
        appender.write(words.seal({"number": 2 * number + 1}).encode())
    assert [event["number"] for event in read_events(tmp_path / "events")] == [0, 1, 2, 3]


def test_a_bare_host_can_run_it() -> None:
    for path in HOSTD.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        assert imported - {"hostd", "hostd.start"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "x"}'])
def test_a_broken_launch_file_is_refused(tmp_path: Path, text: str) -> None:
    launch = tmp_path / "launch.json"
    launch.write_text(text)
    done = subprocess.run([sys.executable, str(HOSTD), str(launch)], capture_output=True, text=True, timeout=20)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)

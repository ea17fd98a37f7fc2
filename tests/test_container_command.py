"""The command that runs a rank inside an image: as a value, and what it does with a real Apptainer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import wait_for
from vpipe_cli.container.command import environment, mount, wrap
from vpipe_cli.container.store import Image
from worker import __version__
from worker.errors import UsageError
from worker.spec.container import Bind, ContainerSpec, parse_bind

MACHINE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


def test_the_command_as_a_value() -> None:
    binds = [Bind("/data", "/data"), Bind("/root/.vpipe/runs/r", "/run", True)]
    shared = ["--no-home", "--cleanenv", "--no-eval", "--no-mount"]
    hosts = ["--mount", "type=bind,source=/etc/hosts,destination=/etc/hosts,ro"]
    mounts = ["--mount", "type=bind,source=/data,destination=/data,ro"]
    mounts += ["--mount", "type=bind,source=/root/.vpipe/runs/r,destination=/run"]
    assert wrap(["python3", "-m", "worker"], "/i.sif", binds, workdir="/run") == [
        *["apptainer", "--quiet", "exec", "--pid", "--containall", *shared, "bind-paths", "--pwd", "/run"],
        *[*hosts, *mounts, "/i.sif", "python3", "-m", "worker"],
    ]
    assert wrap(["true"], "/i.sif", nv=True, scratch="/s") == [
        *["apptainer", "--quiet", "exec", "--pid", *shared, "home,tmp,cwd,hostfs,bind-paths", "--nv", "--pwd", "/"],
        *[*hosts, "--mount", "type=bind,source=/s,destination=/tmp", "/i.sif", "true"],
    ]


@pytest.mark.parametrize(
    "text, bind",
    [
        ("/data", Bind("/data", "/data")),
        ("/data:/d", Bind("/data", "/d")),
        ("/data:/d:rw", Bind("/data", "/d", True)),
        ("/da ta/$(id):/d//x/./", Bind("/da ta/$(id)", "/d/x")),
    ],
)
def test_binds(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind


FORMS = ["", ":", "data:/d", "/a:b", "/a:/b:rx", "/a:/b:ro:x", "/a:/b:ro\n"]
PLACES = ["/a:/../etc", "/a/../b", "/a:/", "/a:/proc", "/a:/dev/shm", "/a:/etc/hosts"]
SIGNS = ["/a,dst=/etc:/b", "/a\n:/b", "/a:/b\x00", '/a":/b', "/a\\:/b", "/a\u2028:/b"]


@pytest.mark.parametrize("text", [*FORMS, *PLACES, *SIGNS])
def test_hostile_binds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^has "):
        parse_bind(text)
    with pytest.raises(ValueError):
        ContainerSpec(image="x.sif", binds=[text])


@pytest.mark.parametrize(
    "image", ["-x.sif", "x\n.sif", "docker://a b@sha256:" + "0" * 64, "docker://a@sha256:0", "shub://x"]
)
def test_hostile_images_are_refused(image: str) -> None:
    with pytest.raises(ValueError):
        ContainerSpec(image=image)


def test_a_mount_is_one_line_of_csv() -> None:
    assert mount(Bind("/a,b", '/c"d')) == 'type=bind,"source=/a,b","destination=/c""d",ro'


def test_only_what_is_meant_for_the_inside_gets_there() -> None:
    inside = {"VPIPE_RUN": "r", "PATH": "/opt/host", "LD_LIBRARY_PATH": "/opt", "LANG": "C"}
    given = environment(inside, {"PATH": "/bin", "HOME": "/root", "SECRET": "s"})
    assert given == {"PATH": "/bin", "HOME": "/root", "APPTAINERENV_VPIPE_RUN": "r", "APPTAINERENV_LANG": "C"}
    with pytest.raises(UsageError, match="APPTAINER_BIND would steer"):
        environment({"APPTAINER_BIND": "/:/x"}, {})


def run(
    image: Image, code: str, *, binds: tuple[Bind, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    """Python code inside the image, to its end."""
    argv = wrap(["python3", "-c", code], str(image.path), binds)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, **{"env": MACHINE, **options})


@pytest.mark.parametrize(
    "code, status",
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("import os; os.abort()", 134)],
)
def test_exit_statuses_pass(small_image: Image, code: str, status: int) -> None:
    assert run(small_image, code).returncode == status


def test_the_environment_arrives_byte_for_byte_and_in_no_argv(small_image: Image) -> None:
    values = {"A": "$HOME `id` $(id)", "B": "two\nlines", "C": "q\"u'o\\te", "CANARY": "kept-quiet"}
    code = "import json, os; print(json.dumps(dict(os.environ))); print(open('/proc/self/cmdline').read())"
    ended = run(small_image, code, env={**environment(values, MACHINE), "OUTSIDE": "stays there"})
    seen = json.loads(ended.stdout.splitlines()[0])
    assert {name: seen[name] for name in values} == values and "OUTSIDE" not in seen
    assert "kept-quiet" not in ended.stdout.partition("\n")[2] and ended.stderr == ""


def test_of_the_machine_only_the_binds_are_seen(small_image: Image, tmp_path: Path) -> None:
    for name in ("ro", "r w", "hidden"):
        (tmp_path / name).mkdir()
    binds = (Bind(str(tmp_path / "ro"), "/deep/er/ro"), Bind(str(tmp_path / "r w"), "/work", True))
    code = f"""
import os, pathlib
pathlib.Path("/work/made").write_text("x")
try:
    pathlib.Path("/deep/er/ro/made").write_text("x")
except OSError as error:
    print(error.strerror)
print(os.path.exists({str(tmp_path / "hidden")!r}), os.listdir("/home"), os.getcwd(), os.listdir("/tmp"))
"""
    ended = run(small_image, code, binds=binds, cwd=tmp_path)
    assert ended.stdout == "Read-only file system\nFalse [] / []\n", ended.stderr
    assert (tmp_path / "r w" / "made").exists()


def test_descriptors_are_inherited(small_image: Image) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = wrap(["python3", "-c", ACCEPT, str(server.fileno())], str(small_image.path))
        process = subprocess.Popen(argv, env=MACHINE, pass_fds=[server.fileno()], stdout=subprocess.PIPE)
        with socket.create_connection(server.getsockname(), 30) as client:
            client.sendall(b"hello\n")
            assert process.communicate(timeout=30)[0] == b"hello\n"


ACCEPT = """
import socket, sys
connection, _ = socket.socket(fileno=int(sys.argv[1])).accept()
print(connection.makefile().readline(), end="")
"""
TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGUSR2, lambda *_: os.write(1, b"heard\\n"))  # print may be in the middle of a line
subprocess.Popen(["sleep", "600"], start_new_session=True)
os.write(1, b"up\\n")
while True: time.sleep(60)
"""


def start(image: Image, token: str) -> subprocess.Popen[str]:
    """A rank with a child in a session of its own."""
    env = environment({"VPIPE_RUN": token}, MACHINE)
    argv = wrap(["python3", "-c", TREE], str(image.path))
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


def carriers(token: str) -> list[int]:
    """Processes of this machine that carry the token of a run, as hostd looks for them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"VPIPE_RUN={token}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "end",
    [
        lambda process: os.kill(process.pid, signal.SIGKILL),
        lambda process: os.kill(process.pid, signal.SIGTERM),
        lambda process: os.killpg(process.pid, signal.SIGKILL),
        lambda process: [os.kill(process.pid, signal.SIGSTOP), os.kill(process.pid, signal.SIGKILL)],
    ],
    ids=["kill", "term", "killpg", "stopped"],
)
def test_the_end_of_the_starter_is_the_end_of_the_tree(
    small_image: Image, end: Callable[[subprocess.Popen[str]], object]
) -> None:
    token = f"test-{os.getpid()}-{time.monotonic_ns()}"
    process = start(small_image, token)
    wait_for(lambda: len(carriers(token)) == 2)  # the child has its environment a moment after it has begun
    end(process)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while carriers(token) and time.monotonic() < deadline:
        os.sched_yield()
    assert carriers(token) == []


def test_a_signal_to_the_starter_reaches_the_rank_once(small_image: Image) -> None:
    process = start(small_image, "signals")
    assert process.stdout
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == "heard\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 143


def test_torch_runs_inside(worker_image: Image) -> None:
    """With the worker of this checkout bound in, as at every launch."""
    folder = Path(__file__).parents[1]
    code = "import torch, worker; print(worker.__version__)"
    argv = wrap(["python3", "-c", code], str(worker_image.path), [Bind(str(folder / "worker"), "/code/worker")])
    ended = subprocess.run(
        argv, env=environment({"PYTHONPATH": "/code"}, MACHINE), capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, f"{__version__}\n"), ended.stderr

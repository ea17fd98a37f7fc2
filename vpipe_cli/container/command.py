"""How a rank is started inside an image: its argv and its environment, as values.

What each option is for (all of it tried with Apptainer 1.4, as root and without):

- ``--pid``: the end of the starter, however it comes, is the end of everything inside; signals sent to it reach the
  rank once (to its process group: up to three times).
- ``--containall --no-home --no-mount bind-paths``: of the machine only the declared binds are seen.
- ``--cleanenv --no-eval``: the environment is what ``environment`` says, byte for byte; it is never in an argv.
- Open descriptors are inherited. Exit statuses pass; a rank killed by signal n ends the starter with status 128 + n.

Under ``nv`` the same is spelled out without ``--containall``, because that gives each container a /dev/shm of its own,
and NCCL takes ranks with different ones for ranks that cannot reach each other's memory: no NVLink, no shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.errors import UsageError
from worker.spec.container import Bind

PREFIX = "APPTAINERENV_"
"""Put before the name of a variable that is meant for the inside; Apptainer removes it."""
OUTSIDE = frozenset({"HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "PATH", "TMPDIR", "USER", "VIRTUAL_ENV"})
"""Variables that mean the machine and not the image; Apptainer itself gets them, the rank does not."""
ISOLATED = ("--pid", "--containall", "--no-home", "--cleanenv", "--no-eval", "--no-mount", "bind-paths")
WITH_GPU = ("--pid", "--no-home", "--cleanenv", "--no-eval", "--no-mount", "home,tmp,cwd,hostfs,bind-paths", "--nv")
HOSTS = Bind("/etc/hosts", "/etc/hosts")


def wrap(
    argv: Sequence[str],
    image: str,
    binds: Sequence[Bind] = (),
    *,
    nv: bool = False,
    workdir: str = "/",
    scratch: str | None = None,
    runtime: str = "apptainer",
) -> list[str]:
    """The command that runs ``argv`` inside ``image``.

    Args:
        image: absolute path of the SIF on the machine.
        binds: what the rank sees of the machine, beside /etc/hosts; sources must exist, or the start fails.
        workdir: the folder it starts in, a path inside.
        scratch: a folder of the machine for its /tmp; else that is memory, 64 MB of it without root.
    """
    mounts = [HOSTS, *binds, *([Bind(scratch, "/tmp", True)] if scratch else [])]
    options = [*(WITH_GPU if nv else ISOLATED), "--pwd", workdir]
    for bind in mounts:
        options += ["--mount", mount(bind)]
    return [runtime, "--quiet", "exec", *options, image, *argv]


def mount(bind: Bind) -> str:
    """A bind as the value of ``--mount``, which is one line of CSV."""
    fields = ["type=bind", f"source={bind.source}", f"destination={bind.target}", *([] if bind.writable else ["ro"])]
    return ",".join(_csv(field) for field in fields)


def _csv(field: str) -> str:
    if any(character in field for character in ',"\n\r'):
        return '"' + field.replace('"', '""') + '"'
    return field


def environment(inside: Mapping[str, str], machine: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command of ``wrap``, for a rank that shall see ``inside``.

    Variables that only mean the machine are left out of it; ``PATH``, ``HOME`` and ``TMPDIR`` of ``machine`` are for
    Apptainer itself.

    Raises:
        UsageError: a variable would steer Apptainer.
    """
    if steering := sorted(name for name in inside if name.startswith(("APPTAINER", "SINGULARITY"))):
        raise UsageError(f"the variable {steering[0]} would steer Apptainer and not the job", "say it in `container:`")
    theirs = {PREFIX + name: value for name, value in inside.items() if name not in OUTSIDE}
    return {**{name: machine[name] for name in ("PATH", "HOME", "TMPDIR") if name in machine}, **theirs}

"""`python -m worker.pod`: one rank as a pod of an Indexed Job, without a hostd: Kubernetes starts and restarts all.

The rank is JOB_COMPLETION_INDEX. The attempt follows from VPIPE_RESTART, how often the JobSet was restarted. Rank 0
serves the store, at VPIPE_STORE. The folder of the run is on storage that all pods share.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from pathlib import Path

from worker.spec.files import RunFiles


def prepare(job: Path, folder: Path, environ: dict[str, str]) -> tuple[list[str], dict[str, str], int | None]:
    """Make the folders of the attempt; the rank's argv and environment, and the socket that rank 0 serves.

    Raises OSError: the folder cannot be written, or the port is taken.
    """
    rank, attempt = int(environ["JOB_COMPLETION_INDEX"]), 1 + int(environ.get("VPIPE_RESTART") or 0)
    files = RunFiles(folder)
    for path in (files.attempt(attempt), files.metrics(0).parent):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = folder / f".job.{rank}.{attempt}"
    shutil.copyfile(job, aside)
    aside.replace(files.job)
    run = environ.get("VPIPE_RUN", folder.name)
    env = {**environ, "VPIPE_RANK": str(rank), "VPIPE_ATTEMPT": str(attempt), "VPIPE_NONCE": f"{run}-{attempt}"}
    listener = None
    if rank == 0:
        server = socket.create_server(("", int(environ["VPIPE_STORE"].rpartition(":")[2])), backlog=128)
        server.set_inheritable(True)
        listener = server.detach()
        env["VPIPE_STORE_FD"] = str(listener)
    argv = [sys.executable, "-m", "worker", "--job", str(files.job), "--rank", str(rank), "--attempt", str(attempt)]
    return argv, env, listener


def main() -> None:
    """Become the rank."""
    parser = argparse.ArgumentParser(prog="python -m worker.pod", description="One rank of a vpipe job, in a pod.")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    os.umask(0o077)
    argv, env, _ = prepare(given.job, given.folder, dict(os.environ))
    os.execve(argv[0], argv, env)


if __name__ == "__main__":
    main()

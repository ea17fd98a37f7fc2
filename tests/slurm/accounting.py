"""A real Slurm that keeps accounts: slurmdbd, and a database below the same folder that nobody else can reach."""

from __future__ import annotations

from pathlib import Path

from tests.rig import wait_for
from tests.slurm.cluster import Slurm, free_ports

PROGRAMS = ("mariadbd", "slurmdbd", "sacct")
CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket
"""
DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=accounts
"""


class Accounted(Slurm):
    """One node, and accounts of its jobs."""

    def __init__(self, folder: Path) -> None:
        self._port = free_ports(2)
        super().__init__(folder, 1, CONF.format(port=self._port, folder=folder))

    def _accounting(self) -> None:
        data, socket = self.folder / "data", self.folder / "database.sock"
        data.mkdir()
        places = [f"--datadir={data}", f"--socket={socket}", f"--pid-file={self.folder}/mariadbd.pid"]
        listens = ["--bind-address=127.0.0.1", f"--port={self._port + 1}", "--skip-grant-tables"]
        self._start("mariadbd", "--no-defaults", "--user=root", *places, *listens)
        wait_for(socket.exists, 60)
        conf = self.folder / "slurmdbd.conf"  # beside slurm.conf, where slurmdbd looks
        conf.write_text(DBD.format(port=self._port, database=self._port + 1, folder=self.folder))
        conf.chmod(0o600)
        self._start("slurmdbd", "-D")
        wait_for(lambda: self._ask("sacctmgr", "--noheader", "list", "tres"), 60)

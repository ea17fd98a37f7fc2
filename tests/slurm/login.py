"""A login node for the test Slurm: a host of the testbed from which its commands work, for a machine where none do."""

from __future__ import annotations

from pathlib import Path

from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.testbed.network import NETWORK, Testbed
from vpipe_cli.runs.store import Run
from worker.spec.files import RunFiles


class Login:
    """The host h1, whose $VPIPE_HOME lies below ``shared``; Slurm's nodes see the same folder by the same path."""

    def __init__(self, testbed: Testbed, slurm: Slurm, shared: Path) -> None:
        self.ssh_config, self.home = str(testbed.ssh_config), shared / "there"
        (self.host,) = testbed.take(1)
        conf = shared / "slurm.conf"
        # What listens on this machine has, on the network of the hosts, the address of their client.
        conf.write_text(slurm.conf.read_text().replace("127.0.0.1", f"{NETWORK}.{testbed.number}.1"))
        self.env = {"SLURM_CONF": str(conf), "PATH": slurm.env["PATH"], "VPIPE_HOME": str(self.home)}
        self.host.kill()
        self.start_host()

    def start_host(self) -> None:
        """Begin anew, with the environment that commands need."""
        self.host.start(extra="PermitUserEnvironment yes")
        self.set_environment(self.env)

    def set_environment(self, env: dict[str, str]) -> None:
        """What commands over SSH find there."""
        path = self.host.folder / "root" / ".ssh" / "environment"
        path.write_text("".join(f"{name}={value}\n" for name, value in env.items()))

    def start(self, program: str, slurm: dict[str, object] | None = None, **settings: object) -> Run:
        """A run on two nodes that was queued through it; the arguments are those of ``gang.start``."""
        return gang.start(program, slurm={"login": "h1", **(slurm or {})}, ssh_config=self.ssh_config, **settings)

    def there(self, run: Run) -> RunFiles:
        """Its files on the storage of the cluster."""
        return RunFiles(self.home / "runs" / run.id)

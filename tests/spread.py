"""A run of two ranks on two hosts of a testbed, as a launch leaves it on them and on this machine."""

from __future__ import annotations

from pathlib import Path

from tests import runs
from tests.testbed.network import Testbed
from vpipe_cli.runs.ask import Choice, ask
from vpipe_cli.runs.merge import entries
from vpipe_cli.runs.reading import Query
from vpipe_cli.runs.store import Run
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job

FOLDER = "/var/tmp/vpipe/runs/"


class Spread:
    """A run of two ranks on two hosts, as a launch leaves it here and there."""

    def __init__(self, home: Path, testbed: Testbed) -> None:
        self.hosts = testbed.take(2)
        self.here = runs.make_run(home)
        self.run = Run(self.here.folder.name, self.here.folder, runs.BEGIN, "", "ssh")
        self.there = [RunFiles(host.path(FOLDER + self.run.id)) for host in self.hosts]
        names = [host.name for host in self.hosts]
        spec = ClusterSpec.model_validate(
            {"machines": [f"{name}:cpu" for name in names], "engine": "ssh", "ssh": {"config": str(testbed.ssh_config)}}
        )
        job = runs.job(self.run.id)
        places = [place.model_copy(update={"host": names[place.rank]}) for place in job.ranks]
        write_atomic(self.here.job, Job(run=job.run, spec=spec, plan=job.plan, ranks=places).model_dump_json())
        runs.write_json(self.here.launch, {"ranks": [place.model_dump() for place in places]})
        runs.write_json(self.here.hosts, dict.fromkeys(names, FOLDER + self.run.id))
        for files in self.there:
            files.attempt(1).mkdir(parents=True)

    def log(self, rank: int, at: float, text: str | bytes) -> None:
        """One line in a log on its host."""
        runs.log(self.there[rank], rank, at, text)

    def end(self) -> None:
        """The exit records on the hosts, then the head's last word."""
        for rank, files in enumerate(self.there):
            runs.add_exit(files, rank)
        runs.state(self.there[0], "succeeded")

    def lines(self, query: Query, choice: Choice | None = None) -> list[str]:
        """What the query finds."""
        said: list[str] = []
        with ask(self.run, choice or Choice(), query, lambda: None, said.append) as (_, read):
            return [line[30:].decode() for batch in read(entries) for _, _, line in batch]

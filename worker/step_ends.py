"""What a rank does whenever a step has ended."""

from __future__ import annotations

from worker.evaluate import Evaluator
from worker.executor import Executor
from worker.metrics import MetricsFile
from worker.narrate import Narrator
from worker.recovery.leave import Leave
from worker.recovery.saver import Saver
from worker.rendezvous import Rendezvous
from worker.spec.files import RunFiles
from worker.spec.job import Job
from worker.spec.records import Evaluation, StepMetrics


class StepEnds:
    """Tells what the step was like, saves, evaluates, and leaves where that is asked for."""

    saver: Saver | None = None
    evaluator: Evaluator | None = None

    def __init__(self, job: Job, rank: int, files: RunFiles, attempt: int, start: int) -> None:
        self.metrics = MetricsFile(files.metrics(rank), job.spec.run.steps, start)
        self.measured: list[Evaluation | None] = []
        self._narrator = Narrator(job.spec.run.steps)
        self._spec, self._files, self._attempt = job.spec, files, attempt

    def watch(self, executor: Executor, rendezvous: Rendezvous) -> None:
        """Know what runs; from now on steps may end."""
        self._executor = executor
        self._leave = Leave.from_environment(self._spec, self._files, rendezvous)
        self._narrator.holds(runtime.stage for runtime in executor.stages.values())

    def __call__(self, step: StepMetrics) -> None:
        """Raises CheckpointError, DataError, PeerLost, Left."""
        self.metrics.write(step)
        self._narrator.step(step)
        if self.saver and self.saver.is_due(step.step):
            self.metrics.flush()
            self.saver.save(step.step)
        if self.evaluator and self.evaluator.is_due(step.step):
            self.evaluate(step.step)
        if self.saver and self._leave and self._leave.is_asked(step.step, self._executor):
            self._leave.now(step.step, self.saver)

    def evaluate(self, step: int) -> None:
        """Evaluate together with all other ranks."""
        assert self.evaluator
        self.measured.append(self.evaluator.report(step, self._files, self._attempt))

"""The section ``evaluate`` of cluster.yml: when a run is measured on other data, and on which."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from worker.spec.section import Count, Misfit, PathText, Section


class EvaluateSpec(Section):
    """When a run is evaluated, and on what. Under asp the pipeline drains at every evaluation."""

    every_steps: Count | None = Field(
        None, description="steps between two evaluations; the last step has one too; null: none"
    )
    only: bool = Field(False, description="evaluate the checkpoint that the run begins with, and train nothing")
    minibatches: Count = Field(32, description="minibatches of an evaluation, always the same ones")
    held_out: PathText | None = Field(
        None, description="data of the same kind as data.path, not trained on; default: the training data, reordered"
    )
    bleu: bool = Field(
        False, description="source parallel: translate too, word after word, and score it: `pip install 'vpipe[bleu]'`"
    )
    held_out_target: PathText | None = Field(None, description="source parallel: the other side of held_out")

    def misfits(self) -> Iterator[Misfit]:
        """One side needs the other."""
        if self.held_out_target is not None and self.held_out is None:
            yield Misfit("needs `held_out`: the side to translate from", ("held_out_target", "held_out"))

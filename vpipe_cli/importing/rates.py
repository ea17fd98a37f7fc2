"""Optimizer, course of the learning rate and length of a driver file -> ``optimizer`` and ``run``, counted in steps."""

from __future__ import annotations

from dataclasses import dataclass

from vpipe_cli.importing.models import IMAGENET
from vpipe_cli.importing.old import OldJob
from vpipe_cli.importing.write import Line

EPOCHS = {"image_classification": 90, "translation": 8}
BERT_STEPS, BERT_WARMUP = 36_320, 7_264
TRANSFORMER_WARMUP = 4_000
UNKNOWN_EPOCH = 1000
"""Minibatches of an epoch where nobody said how many there are."""
SAME = ("constant", "linear", "cosine")
"""Policies of forks that are called the same here."""


@dataclass(frozen=True)
class Length:
    """A run in steps of cluster.yml, and those of one epoch, if known; ``why`` says where the numbers are from."""

    steps: int
    epoch: int | None
    why: str


def length(job: OldJob, examples: int | None, known: int | None, minibatch_size: int, per_step: int) -> Length:
    """How many steps the run has.

    Args:
        examples: in an epoch, as the user says; ``known``: as the data is known to have.
        per_step: minibatches between two updates; 1 under asp, where each counts as a step.
    """
    epochs = job.count("epochs", EPOCHS.get(job.text("model_type"), 100))
    if job.text("model_type") == "bert":
        why = f"the course of the rate was fixed to {BERT_STEPS} steps, and no number behind them"
        job.left_out("epochs", f"{epochs}: {why}; so the run is that long")
        return Length(BERT_STEPS, None, why)
    total = examples or known
    minibatches = total // minibatch_size if total else UNKNOWN_EPOCH
    if "num_minibatches" in job.values:
        minibatches = min(minibatches, job.count("num_minibatches", 1)) if total else job.count("num_minibatches", 1)
        job.changed("num_minibatches", "counts the minibatches of an epoch here, whatever rank reads them")
    epoch = max(1, minibatches // per_step)
    if total:
        why = f"{epochs} epochs of {total} examples"
        if not examples and total == IMAGENET:
            job.changed(
                "epochs", f"counted as steps, for ImageNet's {IMAGENET} images; --examples N for another number"
            )
    else:
        why = f"{epochs} epochs of {minibatches} minibatches, which is a guess"
        if "num_minibatches" in job.values:
            why = f"{epochs} epochs of {minibatches} minibatches"
        else:
            told = f"an epoch is taken as {minibatches} minibatches; with --examples N its real length is counted"
            job.left_out("epochs", f"the file does not say how many examples an epoch has: {told}")
    return Length(epochs * epoch, epoch, why)


def optimizer(job: OldJob, run: Length, sizes: list[int]) -> dict[str, Line]:
    """The update rule and the rate."""
    kind = job.text("model_type")
    rate = job.number("learning_rate", 0.1)
    if float(f"{rate:f}") != rate:
        job.changed("learning_rate", f"the driver wrote six digits, so {rate:f} was used; here it is {rate!r} indeed")
    if rate == 0:
        raise job.refuse("learning_rate", "is 0; nothing would be learned")
    decay = job.number("weight_decay", 1e-4)
    if decay:
        job.changed("weight_decay", "biases and norms are spared")
    default = "" if "learning_rate" in job.values else "the old program's default"
    found = {**_rule(job, kind), "lr": Line(rate, default), "weight_decay": Line(decay), **_course(job, kind, run)}
    if kind in EPOCHS and len(set(sizes)) > 1 and job.text("sync_mode") != "bsp":
        found["scale_lr_by_replicas"] = Line(True, "as PipeDream did")
    if job.values.get("grad_clip"):
        job.left_out("grad_clip", "nothing read it; optimizer.clip_grad_norm does what it says")
    return found


def _rule(job: OldJob, kind: str) -> dict[str, Line]:
    if kind == "image_classification":
        return {"name": Line("sgd"), "momentum": Line(job.number("momentum", 0.9))}
    if "momentum" in job.values:
        job.not_needed("momentum", "the optimizer of this program has none")
    if kind == "bert":
        return {"name": Line("lamb")}
    return {"name": Line("adam"), **({} if kind == "translation" else {"betas": Line([0.9, 0.997])})}


def _course(job: OldJob, kind: str, run: Length) -> dict[str, Line]:
    """The rate over time."""
    policy = job.text("learning_rate_policy")
    if kind in ("bert", "transformer", "cpm") and policy:
        job.not_needed("learning_rate_policy", "this program had a course of its own, and ignored it")
    if kind == "bert":
        why = "behind the warmup the rate falls from lr; it fell from 0.89 of it, at once"
        job.changed("learning_rate", why)
        fixed = Line(BERT_WARMUP, "a fifth of the run, as fixed in the old program")
        return {"schedule": Line("polynomial"), "power": Line(0.5), "warmup_steps": fixed}
    if kind == "transformer":
        return {"schedule": Line("inverse_sqrt"), "warmup_steps": Line(TRANSFORMER_WARMUP)}
    return {} if kind == "cpm" else {**_policy(job, policy or "step", run.epoch or 1), **_warmup(job, kind, run)}


def _policy(job: OldJob, policy: str, epoch: int) -> dict[str, Line]:
    if policy == "step":
        every = Line(30 * epoch, f"30 epochs of {epoch} steps")
        return {"schedule": Line("step"), "decay": Line(0.1), "decay_every": every}
    if policy == "polynomial":
        job.changed("learning_rate_policy", "the rate falls with every step; it fell with every epoch")
        return {"schedule": Line("polynomial"), "power": Line(2.0)}
    if policy == "exponential_decay":
        job.changed("learning_rate_policy", "the rate falls with every step; it fell with every epoch")
        return {"schedule": Line("exponential"), "decay": Line(0.97, "over the whole run")}
    if policy in SAME:
        return {"schedule": Line(policy)}
    job.left_out("learning_rate_policy", f"unknown: {policy[:40]!r}; the rate is constant")
    return {"schedule": Line("constant")}


def _warmup(job: OldJob, kind: str, run: Length) -> dict[str, Line]:
    """The first five epochs, in which the rate rises."""
    if not job.flag("lr_warmup"):
        return {}
    if kind != "image_classification":
        job.not_needed("lr_warmup", "this program had none")
        return {}
    job.changed("lr_warmup", "the course of the rate begins behind the warmup; it ran from the first step")
    return {"warmup_steps": Line(min(5 * (run.epoch or 1), run.steps - 1), "5 epochs")}

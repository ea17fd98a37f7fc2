"""Every error vpipe raises on purpose, and the exit code each one ends in.

VpipeError                 100  the job failed
  UsageError                 2  a command line, a value or a file the user gave is wrong
    ConfigError              2  cluster.yml, with every mistake and its place
    ScheduleError            2  a schedule that could deadlock or hold too much
  NotFinished              101  asked for something only a finished run has
  RunNotFound              102  no such run
  RunStopped               103  the run was stopped by the user
  PreflightError           104  a machine cannot run the job
  UnreachableError         105  a host does not answer, or the connection to it broke
    UntrustedHost          105  a host's key is unknown or has changed
  ImageError               106  the image could not be built, or is not what it should be
    TransferError          106  a machine could not take a file
  CheckpointError          107  a checkpoint is missing, damaged, or of another job
  RankError                100  one rank could not go on
    PeerLost               100  another rank went away: a consequence, never the cause
    StallError             100  nothing arrived within ``run.stall_timeout``
    MismatchError          100  ranks disagree about job, plan or code
    DataError              100  the data cannot be read or is too short
    ModelError             100  the model does what a pipeline cannot carry
    NonFiniteLoss          100  the loss, or a gradient, became NaN or infinite

A message says what is wrong and where; ``hint`` says the command or key that mends it.
"""

from __future__ import annotations

from dataclasses import dataclass


class VpipeError(Exception):
    """Base of every error with a message meant for the user."""

    exit_code = 100

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(VpipeError):
    """A command line, a value or a file the user gave is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file.

    ``where`` is ``file:line:column`` (1-based) or the command-line override it came from; ``key`` the dotted path.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ConfigError(UsageError):
    """A configuration with one or more mistakes, all of them in ``problems``."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class ScheduleError(UsageError):
    """A schedule that misses work, deadlocks, or exceeds its memory or version bound."""


class NotFinished(VpipeError):
    """The run has not ended yet."""

    exit_code = 101


class RunNotFound(VpipeError):
    """No run of that name in this home."""

    exit_code = 102


class RunStopped(VpipeError):
    """The run was stopped by the user."""

    exit_code = 103


class PreflightError(VpipeError):
    """A machine cannot run the job as described."""

    exit_code = 104


class UnreachableError(VpipeError):
    """A host does not answer, or the connection to it broke. What runs there is unknown, not failed."""

    exit_code = 105


class UntrustedHost(UnreachableError):
    """A host's key is unknown or has changed; the message carries its fingerprint."""


class ImageError(VpipeError):
    """The image could not be built, or is not what it should be."""

    exit_code = 106


class TransferError(ImageError):
    """A machine could not take a file: disk full, no permission."""


class CheckpointError(VpipeError):
    """A checkpoint is missing, damaged, or of another job."""

    exit_code = 107


class RankError(VpipeError):
    """One rank could not go on."""


class PeerLost(RankError):
    """A connection to another rank broke: a consequence of that rank's end, never the cause."""


class StallError(RankError):
    """Nothing arrived within the stall limit."""


class MismatchError(RankError):
    """Ranks disagree about the job, the plan or the code they run."""


class DataError(RankError):
    """The data cannot be read, or there is too little of it."""


class ModelError(RankError):
    """The model does something a pipeline cannot carry."""


class NonFiniteLoss(RankError):
    """The loss became NaN or infinite."""

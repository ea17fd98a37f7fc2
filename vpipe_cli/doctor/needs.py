"""What a job asks of each of its machines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What one host must have.

    Attributes:
        ranks: processes that will run there.
        gpus: the numbers of the GPUs they use.
        container: whether they run in a container.
        image_bytes: size of that container's image, where it is known.
        image_cuda: version of CUDA in the image, where it is known.
        python: the interpreter that ranks run with where there is no container; None leaves it unchecked.
        reads: files and folders that its ranks read, each as the key that names it and its path.
        root: where vpipe keeps everything on that host; None: $VPIPE_HOME or ~/.vpipe there.
    """

    ranks: int
    gpus: tuple[int, ...] = ()
    container: bool = False
    image_bytes: int | None = None
    image_cuda: str | None = None
    python: str | None = None
    reads: tuple[tuple[str, str], ...] = ()
    root: str | None = None

    def request(self) -> dict[str, object]:
        """What ``vpipe_cli.onhost.facts`` is asked."""
        paths = [path for _, path in self.reads]
        return {"container": self.container, "python": self.python, "paths": paths, "root": self.root}

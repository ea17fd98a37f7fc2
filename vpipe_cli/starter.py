"""The starter cluster.yml: its text, and how it is written without losing a file of the user's."""

from __future__ import annotations

from pathlib import Path

from worker.errors import UsageError


def text() -> str:
    """The commented starter file that comes with vpipe."""
    return Path(__file__).with_name("starter.yml").read_text(encoding="utf-8")


def write(path: Path, force: bool = False) -> None:
    """Write the starter file.

    Raises:
        UsageError: the file exists and ``force`` is not given, or it cannot be written.
    """
    content = text()
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "name another file, or overwrite it with --force") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None

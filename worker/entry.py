"""The user's own code: ``package.module:function``, imported and called, with errors that name the user's line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.errors import VpipeError

FOLDER_VARIABLE = "VPIPE_CODE"
"""Names the folder that the user's code was shipped to: searched after PYTHONPATH."""


def call(
    entry: str,
    arguments: Mapping[str, Any],
    error: type[VpipeError],
    offered: Mapping[str, Any],
    folder: str | None,
) -> Any:
    """What the function returns for ``arguments`` by name.

    Args:
        offered: further arguments, of which it gets those that it has a parameter for.
        folder: where to look for the module after PYTHONPATH.
    Raises:
        error: the module or function is not there, or it raises: with the file and line of the user's code.
    """
    module, _, name = entry.partition(":")
    for place in (os.environ.get(FOLDER_VARIABLE), folder):
        if place and place not in sys.path:
            sys.path.append(place)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or not (module == missing.name or module.startswith(f"{missing.name}.")):
            raise error(f"entry {entry}: {_told(missing)}", "install it where the ranks run") from missing
        hint = "put it beside cluster.yml, or its folder on PYTHONPATH"
        raise error(f"entry {entry}: there is no module {missing.name}", hint) from None
    except Exception as raised:
        raise error(f"entry {entry}: importing {module} fails: {_told(raised)}") from raised
    for part in name.split("."):
        if not hasattr(found, part):
            raise error(f"entry {entry}: {module} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise error(f"entry {entry}: {name} is a {type(found).__name__}, not a function")
    try:
        parameters = inspect.signature(found).parameters
        wanted = {name: value for name, value in offered.items() if name in parameters and name not in arguments}
        return found(**wanted, **arguments)
    except VpipeError:
        raise
    except Exception as raised:
        raise error(f"entry {entry} raises {_told(raised)}") from raised


def _told(error: Exception) -> str:
    """The error in one line, with the last place in code that is not vpipe's or a library's."""
    here = Path(__file__).parent
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if here not in Path(frame.filename).parents
        and "site-packages" not in frame.filename
        and not frame.filename.startswith(("<", sys.base_prefix))
    ]
    where = f" ({places[-1].filename}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}".splitlines()[0] + where

"""Where vpipe keeps its things on this machine: refused where others could change them. Python 3.8, standard library.

It looks where ``facts`` looks too, but at nothing else: for machines whose ranks run elsewhere.
"""

from __future__ import annotations

import os
from typing import Any, Dict

from vpipe_cli.onhost.exposed import exposed
from vpipe_cli.onhost.program import Answer, Refused, act

KEPT = ("runs", "images", "code", "cache")


def main(request: Dict[str, Any]) -> None:
    """Answer with ``root``, where they are kept."""
    act({"look": look}, {**request, "do": "look"})


def look(root: str, request: Dict[str, Any]) -> Answer:
    """Where they are kept, which nobody else can change."""
    for place in (os.path.join(root, name) for name in KEPT):
        if problem := exposed(place):
            raise Refused("others could change %s: %s" % (place, problem))
    return {"root": root}

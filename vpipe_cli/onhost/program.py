"""What the programs that change a machine share: requests and answers, refusals, where vpipe's folder is.

Requests and answers are JSON, one line each; a failure is a last line ``{"error": text}``. Python 3.8, standard
library only.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any, Callable, Dict, Mapping, Optional

from vpipe_cli.onhost.exposed import exposed

Answer = Dict[str, Any]
Action = Callable[[str, Dict[str, Any]], Answer]
"""Given vpipe's folder and the request."""


class Refused(Exception):
    """It cannot be done here; the message says why."""


def act(actions: Mapping[str, Action], request: Dict[str, Any]) -> None:
    """Do ``request["do"]`` and say how it went."""
    os.umask(0o077)
    try:
        root = vpipe_root(request.get("root"))
        if problem := exposed(root):
            raise Refused("others could change %s: %s" % (root, problem))
        say(actions[request["do"]](root, request))
    except Refused as error:
        say({"error": str(error)})
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        say({"error": reason, "full": error.errno in (errno.ENOSPC, errno.EDQUOT)})
    except (KeyError, TypeError, ValueError) as error:
        say({"error": "%s: %s" % (type(error).__name__, error)})


def say(answer: Answer) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def vpipe_root(given: Optional[str]) -> str:
    """Where vpipe keeps everything on this machine."""
    return os.path.abspath(os.path.expanduser(given or os.environ.get("VPIPE_HOME") or "~/.vpipe"))

"""Whether others could put something of theirs in the place of what vpipe keeps. Python 3.8, standard library only.

The rule is the one that ssh has for ~/.ssh, except that a group may write: that is how labs share folders.
"""

from __future__ import annotations

import os
import pwd
import stat
from typing import List

MOST_LINKS = 40
MEND = "`chmod o-w` closes a folder, `chmod +t` lets all keep only their own in it; or VPIPE_HOME names another place"


def exposed(path: str) -> str:
    """Why others could replace what is at ``path``, or will be; empty if none could but root.

    No folder on the way may be open to everyone, unless it is sticky, as /tmp is; and what is in such a one must be
    this user's or root's, because anybody could have made it. Links on the way are followed under the same rule.
    """
    place, left, links, shared = "/", _parts(os.path.abspath(path)), 0, False
    while True:
        try:
            found = os.lstat(place)
        except OSError:  # not there: whoever makes it makes it private; or out of reach, which is told elsewhere
            return ""
        if shared and found.st_uid not in (0, os.geteuid()):
            return "%s belongs to %s, in a folder where everyone may make one" % (place, _name(found.st_uid))
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MOST_LINKS:
                return "%s leads in circles" % path
            target = os.readlink(place)
            left = _parts(target) + left
            place, shared = ("/", False) if target.startswith("/") else (os.path.dirname(place), shared)
            continue
        shared = bool(found.st_mode & stat.S_IWOTH)
        if shared and not found.st_mode & stat.S_ISVTX:
            return "everyone may write in %s" % place
        if not left:
            return ""
        part = left.pop(0)
        place, shared = (os.path.dirname(place), False) if part == ".." else (os.path.join(place, part), shared)


def _parts(path: str) -> List[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return "user %d" % user

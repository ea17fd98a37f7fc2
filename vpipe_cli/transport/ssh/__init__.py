"""Machines reached by SSH. The only package that knows paramiko.

One connection per machine, one per jump host for all machines behind it; each is made when needed and again after it
broke. A peer that does not answer for about SILENCE seconds is given up, whatever TCP thinks. What a broken
connection was carrying is reported as UnreachableError and never repeated by itself: nobody knows how far it came.
"""

from __future__ import annotations

import logging

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its errors reach the user as ours

"""Programs for hosts, sent over standard input: Python 3.8, standard library only, nothing installed before.

A program is a module whose ``main(request)`` takes one JSON value and writes its answer to standard output. It may
import other modules of this package, by ``from vpipe_cli.onhost.NAME import ...``: they are sent with it. ``send``
stays here.
"""

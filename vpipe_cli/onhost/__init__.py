"""Programs for hosts, sent over standard input: Python 3.8, standard library only, nothing installed before.

Each module but ``send`` and ``shelf`` is one such program. Its ``main(request)`` takes one JSON value and writes its
answer to standard output.
"""

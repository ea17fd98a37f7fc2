"""Proof by injury: real runs are hurt in every way that machines and people hurt them; what they leave is checked.

``python -m tests.faults`` runs the battery: each case says what is done to a run (``injection``) and what must become
of it (``expected``); afterwards every invariant in ``checkers`` is checked on what the run left behind: events, exit
records, logs, checkpoints, what the commands said, which processes live. ``soak`` hurts one run at random for as long
as it is told. ``tests/test_faults.py`` holds the part that runs in every test run.
"""

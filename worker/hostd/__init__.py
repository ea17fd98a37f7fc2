"""hostd, one per machine: starts its ranks, keeps their logs and exit records, ends them together.

Standard library only, Python 3.8: it must run on a bare host, as ``python3 -I -S .../worker/hostd LAUNCH_JSON``.

start.py      the command: locks the run, detaches, becomes the head or a member
head.py       decides for all machines: starts, readiness, hangs, the verdict, restarts; writes events.jsonl
member.py     every other machine: obeys the head and tells it everything; ends its ranks when the head is gone
crew.py       the ranks of this machine during one attempt
rank.py       one worker process: its argv, its log, its exit record
log.py        a rank's log, within its limit
link.py       authenticated messages between head and member
loop.py       one thread: pipes, signals, children
address.py    which local address and interface lead to a peer
cgroup.py     a control group of the ranks, where there can be one
processes.py  what /proc knows: strays, stopped processes, stacks
words.py      time stamps, events, files written whole
"""

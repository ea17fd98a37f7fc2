"""Hosts to test with: each its own network, processes, mounts and name on this machine, with a real sshd.

``Testbed`` holds them, ``fixtures`` hands them to tests, ``python -m tests.testbed up 4`` leaves them up for trying
things by hand. What a host shares with this machine is the root filesystem, read as it is: so the Python that runs the
tests runs there too, under the same path (``sys.executable``), with the same packages. Its own are ``/root``,
``/home``, ``/var/tmp`` (which is its TMPDIR), ``/run`` and ``/dev/shm``; ``/tmp`` it shares.

Everything lives in the processes alone. When they end, however they end, no interface, bridge, mount or namespace
stays.
"""

"""`python -m worker.profiler.pair RANK ADDRESS [PEER PORT]`: one end of a link between two machines.

Rank 0 listens on its ADDRESS and prints the port; rank 1 is told where. Rank 0 then prints the link as JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta

from worker.hostd.address import socket_environment

LIMIT = timedelta(seconds=60)


def main(arguments: Sequence[str]) -> int:
    """Measure, from this end."""
    rank, address = int(arguments[0]), arguments[1]
    peer, port = (arguments[2], int(arguments[3])) if rank else (address, 0)
    os.environ.update(socket_environment(address))
    import torch
    import torch.distributed as dist

    from worker.profiler.links import measure_link

    torch.set_num_threads(1)
    store = dist.TCPStore(peer, port, is_master=rank == 0, wait_for_workers=False, timeout=LIMIT)  # type: ignore[attr-defined]
    if rank == 0:
        print(store.port, flush=True)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    link = measure_link(rank)
    if link:
        print(link.model_dump_json(), flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # not through the process group's destructor, which may wait for a process that is gone


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

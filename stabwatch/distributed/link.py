"""One connection between two ranks: frames over a TCP socket that never blocks."""

from __future__ import annotations

import os
import socket
from collections import deque

import psutil

from stabwatch.distributed.frames import Decoder, Message, encode

MOST_QUEUED = 64 << 20
"""Bytes that wait for a peer that does not read; what comes on top is dropped."""


class Link:
    """heard: when the last byte came, by the caller's clock. greeted: the other end has said who it is.

    events: what the owner's selector waits for. dropped: frames that were not queued. ended: the other end is gone, and
    everything that it sent has been read. goodbye: it has said so.
    """

    def __init__(self, sock: socket.socket, now: float, rank: int = -1) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.rank = rank
        self.opened = self.heard = now
        self.greeted = False
        self.ended = self.goodbye = False
        self.dropped = 0
        self.events = 0
        self._decoder = Decoder()
        self._queue: deque[memoryview] = deque()
        self._queued = 0

    @classmethod
    def connect(cls, address: str, port: int, now: float, rank: int) -> Link:
        """A connection that is being made. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((address, port))
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        return cls(sock, now, rank)

    def send(self, message: Message, block: bytes = b"") -> bool:
        """Queue a frame. False if it was dropped, because too much waits already."""
        frame = encode(message, block)
        if self._queued + len(frame) > MOST_QUEUED:
            self.dropped += 1
            return False
        self._queue.append(memoryview(frame))
        self._queued += len(frame)
        return True

    @property
    def queued(self) -> int:
        """Bytes that are not yet with the operating system."""
        return self._queued

    def write(self) -> None:
        """Hand over what the socket takes now. Raises OSError."""
        while self._queue:
            try:
                sent = self.socket.send(self._queue[0])
            except (BlockingIOError, InterruptedError):
                return
            self._queued -= sent
            rest = self._queue.popleft()[sent:]
            if rest:
                self._queue.appendleft(rest)

    def read(self, now: float) -> list[tuple[Message, bytes]]:
        """The frames that have come, also those that came just before the end. Raises FrameError."""
        out: list[tuple[Message, bytes]] = []
        for _ in range(64):  # then others have their turn
            try:
                data = self.socket.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
                break
            self.heard = now
            out += self._decoder.feed(data)
        return out

    def finish(self, timeout: float) -> None:
        """Say that nothing follows, and wait until the other end has closed, `timeout` seconds at the most.

        A socket that is closed with bytes unread resets the connection, and what was sent last may be lost.
        """
        try:
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.settimeout(timeout)
            while self.socket.recv(1 << 16):
                continue
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def listen(address: str) -> socket.socket:
    """A socket that takes connections on an address, at a free port. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((address, 0))
        sock.listen(1024)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def own_address(toward: str | None) -> str:
    """The address under which other ranks reach this one.

    That of the interface that the job names for its own traffic (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), else the one
    from which the store's host is reached, else the host name's.
    """
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        for found in psutil.net_if_addrs().get(os.environ.get(name, ""), ()):
            if found.family == socket.AF_INET:
                return found.address
    for host in (toward, socket.gethostname()):
        try:
            family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)  # sends nothing
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"

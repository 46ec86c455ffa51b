"""One connection to a keeper (keeper.py): frames over a TCP socket that blocks, a bounded time."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Mapping
from typing import Any

from stabwatch.distributed.frames import HEAD, MOST_TEXT, FrameError, Message, message_of, opening

PART = 1 << 20
"""Most bytes of a block."""
SECONDS = 10.0
"""Seconds without a frame after which the other end is given up."""


class Wire:
    """Every method raises OSError if the other end is gone or silent, and FrameError where what comes is no frame."""

    def __init__(self, sock: socket.socket, seconds: float | None) -> None:
        sock.settimeout(seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._block = memoryview(bytearray(PART))

    @classmethod
    def connect(cls, place: Mapping[str, Any], seconds: float | None = None) -> Wire:
        """A connection to a keeper. place: its `address`, `port` and `token`."""
        seconds = SECONDS if seconds is None else seconds
        wire = cls(socket.create_connection((place["address"], place["port"]), seconds), seconds)
        wire.send({"kind": "hello", "token": place["token"]})
        return wire

    def greeted(self, token: str) -> bool:
        """Whether the other end says the token first: then it is of this job."""
        message, _ = self.receive()
        return message["kind"] == "hello" and hmac.compare_digest(str(message.get("token")), token)

    def send(self, message: Message, block: memoryview | bytes = b"") -> None:
        """Send a frame."""
        self._socket.sendall(opening(message, len(block)))
        self._socket.sendall(block)

    def receive(self) -> tuple[Message, memoryview]:
        """The next frame; its block holds until the one after it."""
        head = memoryview(bytearray(HEAD.size))
        self._fill(head)
        text, block = HEAD.unpack(head)
        if text > MOST_TEXT or block > PART:
            raise FrameError(f"a frame of {text} and {block} bytes")
        words, part = memoryview(bytearray(text)), self._block[:block]
        self._fill(words)
        self._fill(part)
        return message_of(bytes(words)), part

    def ask(self, message: Message) -> Message:
        """Send a message and wait for the answer. Raises OSError also where it is no."""
        self.send(message)
        answer, _ = self.receive()
        if answer["kind"] == "no":
            raise OSError(str(answer["why"]))
        return answer

    def _fill(self, into: memoryview) -> None:
        while len(into):
            count = self._socket.recv_into(into)
            if not count:
                raise ConnectionResetError("the other end is gone")
            into = into[count:]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

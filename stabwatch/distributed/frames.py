"""Messages between two ranks, as bytes: a JSON object and an optional block of numbers.

A frame is two big-endian uint32 (bytes of the JSON text, bytes of the block), the text, the block. Nothing that comes
in is ever run or unpickled.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEAD = struct.Struct(">II")
MOST_TEXT, MOST_BLOCK = 8 << 20, 256 << 20
"""Bytes. A frame that says it is longer is no frame of ours."""

Message = dict[str, Any]


class FrameError(ValueError):
    """What came in is no frame of this protocol."""


def encode(message: Message, block: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return opening(message, len(block)) + block


def opening(message: Message, block: int) -> bytes:
    """The bytes of a frame before its block of so many bytes."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return HEAD.pack(len(text), block) + text


def message_of(text: bytes) -> Message:
    """The message of a frame. Raises FrameError."""
    try:
        message = json.loads(text)
    except ValueError as error:
        raise FrameError("its text is no JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise FrameError("its text is no message")
    return message


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Message, bytes]]:
        """The frames that are complete now. Raises FrameError."""
        self._buffer += data
        out = []
        at = 0
        while len(self._buffer) - at >= HEAD.size:
            text, block = HEAD.unpack_from(self._buffer, at)
            if text > MOST_TEXT or block > MOST_BLOCK:
                raise FrameError(f"a frame of {text} and {block} bytes")
            start = at + HEAD.size
            if len(self._buffer) < start + text + block:
                break
            message = message_of(bytes(self._buffer[start : start + text]))
            at = start + text + block
            out.append((message, bytes(self._buffer[start + text : at])))
        del self._buffer[:at]
        return out

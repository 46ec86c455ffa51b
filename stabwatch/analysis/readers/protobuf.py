"""The part of protobuf's wire format that logs need: field numbers and raw values."""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer, or bytes. Raises ValueError and IndexError."""
    at, size = 0, len(data)
    while at < size:
        key = data[at]
        at += 1
        if key > 127:
            key, at = _varint(data, at - 1)
        wire = key & 7
        if wire == 2:
            length = data[at]
            at += 1
            if length > 127:
                length, at = _varint(data, at - 1)
        elif wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        elif wire == 1 or wire == 5:
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > size:
            raise ValueError("a field ends outside its message")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

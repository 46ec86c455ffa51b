"""Log files: compressed or not, with any bytes, very long lines, and sizes beyond the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from stabwatch.analysis.readers.prefixes import find_prefix
from stabwatch.analysis.readers.wrapping import joined, last_record, width_of
from stabwatch.errors import LogError, MissingExtraError

HEAD = 1 << 16
LONGEST_LINE = 1 << 20
"""Most characters of a line that are read; longer lines are not records."""
MOST_UNPACKED = 64 << 30
MOST_RATIO = 1000
"""A file with a higher compression ratio is a decompression bomb; logs have 5 to 50."""
_CHUNK = 1 << 20
_LONGEST_HOLE = 1 << 30
_BAR = re.compile(rb"%\|(?:[ \xe2\x96\x80-\x8f]+|[ #]+|#*[1-9] *)\|")
"""The drawing of a progress bar, which says what the number before it says."""
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


Progress = Callable[[int, int], None]
"""A callback that takes the bytes read of the file, and its size."""


class LogFile:
    """One file. head: its first 64 KiB, unpacked. progress: called with the progress of reading."""

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.progress = progress or (lambda position, size: None)
        try:
            self.size = path.stat().st_size
            with self.open() as stream:
                head = _head(stream)
        except OSError as error:
            raise LogError(f"{path} cannot be read: {error}.") from error
        self._prefix = find_prefix(without_colours(head))
        self.head = self._without_prefix(head)
        self._width = width_of(self.head.decode("utf-8", "replace").replace("\r\n", "\n"))
        if self._width is not None:
            self.head = b"\n".join(joined(self.head.replace(b"\r\n", b"\n").split(b"\n"), self._width))
        self.text = self.head.decode("utf-8", "replace").lstrip("\ufeff")

    def open(self) -> IO[bytes]:
        """The bytes, unpacked."""
        return self._open()[0]

    def _open(self) -> tuple[IO[bytes], IO[bytes]]:
        """The unpacked bytes, and the underlying file."""
        raw = self.path.open("rb")
        try:
            magic = raw.read(6)
            raw.seek(0)
            unpack = next((unpack for start, unpack in _PACKINGS if magic.startswith(start)), None)
            if unpack is not None:
                return cast("IO[bytes]", _Bounded(unpack(raw, self.path), raw, self.path)), raw
            if magic[:2] in _UTF16:
                return cast("IO[bytes]", _Utf8(raw)), raw
        except BaseException:
            raw.close()
            raise
        return raw, raw

    def lines(self, wanted: Callable[[bytes], bool] = bool) -> Iterator[tuple[int, str]]:
        """The `wanted` lines with their numbers, from 1; a carriage return begins a new piece of the same line."""
        for first, block in self.blocks():
            for number, raw in enumerate(block.split(b"\n"), first):
                if wanted(raw):
                    for piece in pieces(raw):
                        yield number, piece

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Consecutive lines without the last newline; the number of the first, from 1.

        Removes the prefix that a launcher or a log collector wrote before each line, and the drawings of progress
        bars, and joins lines that a terminal broke at its width.
        """
        blocks = ((first, _without_bars(self._without_prefix(block))) for first, block in self.raw_blocks())
        yield from blocks if self._width is None else _unwrapped(blocks, self._width)

    def raw_blocks(self) -> Iterator[tuple[int, bytes]]:
        """The same, with the prefixes of the file."""
        first = 1
        for block in self._blocks():
            yield first, block
            first += block.count(b"\n") + 1

    def _without_prefix(self, text: bytes) -> bytes:
        return text if self._prefix is None else self._prefix.strip(without_colours(text))

    def _blocks(self) -> Iterator[bytes]:
        """Whole lines, about a megabyte at a time, without the last newline."""
        kept = b""
        try:
            stream, raw = self._open()
            with stream:
                begun = False
                while chunk := stream.read(_CHUNK):
                    chunk, begun = (chunk if begun else chunk.removeprefix(_BOM)), True
                    self.progress(raw.tell(), self.size)
                    cut = chunk.rfind(b"\n")
                    if cut < 0:
                        if len(kept) < 2 * LONGEST_LINE:
                            kept += chunk
                        continue
                    yield kept + chunk[:cut]
                    kept = chunk[cut + 1 :]
        except OSError as error:
            if not kept:
                raise LogError(f"{self.path} cannot be unpacked: {error}. Is it complete?") from error
        if kept:
            yield kept

    def read(self, most: int) -> bytes:
        """The whole file, if it has at most `most` bytes."""
        try:
            with self.open() as stream:
                found = stream.read(most + 1)
        except OSError as error:
            raise LogError(f"{self.path} cannot be unpacked: {error}. Is it complete?") from error
        if len(found) > most:
            raise LogError(f"{self.path} is a single document of more than {most >> 20} MiB; split it, or export CSV.")
        return self._without_prefix(found)


class _Utf8(io.RawIOBase):
    """A file of 16-bit characters, as PowerShell's `>` writes it, in UTF-8."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._inner = io.TextIOWrapper(raw, encoding="utf-16", errors="replace", newline="")

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(max(size // 4, 1) if size >= 0 else -1).encode("utf-8", "replace")

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Bounded(io.RawIOBase):
    """An unpacked stream that raises LogError on a decompression bomb."""

    def __init__(self, inner: IO[bytes], raw: IO[bytes], path: Path) -> None:
        self._inner, self._raw, self._path = inner, raw, path
        self._most = min(MOST_UNPACKED, max(path.stat().st_size * MOST_RATIO, 64 << 20))
        self._seen = 0

    def read(self, size: int = -1) -> bytes:
        try:
            found = self._inner.read(min(size, self._most + 1) if size >= 0 else self._most + 1)
        except Exception as error:  # each compression library has its errors
            raise OSError(str(error)) from error
        self._seen += len(found)
        if self._seen > self._most:
            raise LogError(f"{self._path} unpacks to more than {MOST_RATIO} times its size. Unpack it yourself first.")
        return found

    def close(self) -> None:
        self._inner.close()
        self._raw.close()
        super().close()


def _zstd(raw: IO[bytes], path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is compressed with zstd: pip install 'stabwatch[zstd]', or unpack it first."
        ) from error
    return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))


_PACKINGS: tuple[tuple[bytes, Callable[[IO[bytes], Path], IO[bytes]]], ...] = (
    (b"\x1f\x8b", lambda raw, _: cast("IO[bytes]", gzip.GzipFile(fileobj=raw))),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"BZh", lambda raw, _: cast("IO[bytes]", bz2.BZ2File(raw))),
    (b"\xfd7zXZ\x00", lambda raw, _: cast("IO[bytes]", lzma.LZMAFile(raw))),  # noqa: SIM115 -- `_Bounded` closes it
)


def _unwrapped(blocks: Iterable[tuple[int, bytes]], width: int) -> Iterator[tuple[int, bytes]]:
    """Blocks with joined lines. A record that goes on in the next block is given there."""
    kept: list[bytes] = []
    first = 1
    for at, block in blocks:
        first = at - len(kept)
        lines = [*kept, *block.replace(b"\r\n", b"\n").rstrip(b"\r").split(b"\n")]
        cut = last_record(lines, width)
        kept = lines[cut:]
        if cut:
            yield first, b"\n".join(joined(lines[:cut], width))
            first += cut
    if kept:
        yield first, b"\n".join(joined(kept, width))


def _without_bars(block: bytes) -> bytes:
    """A block in which all states of a progress bar are drawn as an empty one."""
    return _BAR.sub(b"%||", block) if b"%|" in block else block


def without_colours(block: bytes) -> bytes:
    """A block of bytes without colour escape sequences."""
    return _COLOUR.sub(b"", block) if b"\x1b" in block else block


def pieces(raw: bytes) -> list[str]:
    """A line as text; a carriage return begins a new piece of the same line."""
    return [_decoded(piece) for piece in raw.split(b"\r") if piece] if b"\r" in raw else [_decoded(raw)]


def _head(stream: IO[bytes]) -> bytes:
    """The first bytes, without the NULs at the start of a log that was truncated while its writer continued."""
    for _ in range(_LONGEST_HOLE // HEAD):
        chunk = stream.read(HEAD)
        head = chunk.lstrip(b"\0")
        if head or not chunk:
            return head
    return b""


def _decoded(raw: bytes) -> str:
    text = raw.lstrip(b"\0")[:LONGEST_LINE].decode("utf-8", "replace")
    return _ANSI.sub("", text) if "\x1b" in text else text

"""Keepers (keeper.py) as a rank uses them: to start one, to find those that are there, to send and to fetch states."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.frames import FrameError
from stabwatch.distributed.link import listen, own_address
from stabwatch.distributed.parity import mix, stripe
from stabwatch.distributed.wire import Wire

Place = dict[str, Any]
"""Where a keeper is: address, port, token; and what it says of itself (`list`)."""


class State(Protocol):
    """The state of a rank, as bytes."""

    size: int

    def parts(self, begin: int, end: int) -> Iterator[memoryview]:
        """These bytes, in pieces that fit a frame."""


def folder() -> Path:
    """Where the keepers of this user on this host leave their addresses. Raises OSError."""
    path = Path(tempfile.gettempdir()) / f"stabwatch-keepers-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{path} is open to others")
    return path


def host() -> str:
    """What tells one host's memory from another's."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


def start(facts: Mapping[str, Any], toward: str | None) -> tuple[subprocess.Popen[bytes], Place]:
    """A keeper of its own for this rank. toward: the host of the job's store. Raises OSError."""
    address = own_address(toward) if toward is not None else "127.0.0.1"
    with listen(address) as listener:
        listener.setblocking(True)
        token = os.urandom(16).hex()
        place = {**facts, "address": address, "port": listener.getsockname()[1], "token": token, "host": host()}
        words = [sys.executable, "-m", "stabwatch.distributed.keeper", str(listener.fileno())]
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()], start_new_session=True,  # a launcher ends the session of a worker
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    assert child.stdin is not None
    with child.stdin as pipe:
        pipe.write(json.dumps({**place, "file": str(folder() / f"{token}.json")}).encode())
    return child, place


def find(job: str) -> list[Place]:
    """The keepers on this host of an earlier attempt of this job, with what they hold: their ranks are gone."""
    found = []
    for file in sorted(folder().glob("*.json")):
        try:
            place = json.loads(file.read_text())
            if place["job"] != job:
                continue
            with Wire.connect(place) as wire:
                told = wire.ask({"kind": "list"})
        except ConnectionRefusedError:
            file.unlink(missing_ok=True)  # it was killed
        except (OSError, ValueError, KeyError):
            continue
        else:
            if not told["alive"] or told["owner"] == os.getpid():
                found.append(told)
    return found


def tell(place: Place, message: dict[str, Any]) -> None:
    """Say something to a keeper; nothing is raised where it is gone."""
    with suppress(OSError, FrameError), Wire.connect(place, 1.0) as wire:
        wire.ask(message)


def put(wire: Wire, state: State, span: tuple[int, int], facts: Mapping[str, Any]) -> None:
    """Send the bytes of a span of a state. Raises OSError, with the reason where the keeper has not taken it."""
    wire.send({"kind": "put", "size": state.size, "begin": span[0], "end": span[1], **facts})
    crc = 0
    for part in state.parts(*span):
        crc = zlib.crc32(part, crc)
        wire.send({"kind": "part"}, part)
    wire.ask({"kind": "end", "crc": crc})


def checksum(state: State) -> int:
    """That of the whole state."""
    crc = 0
    for part in state.parts(0, state.size):
        crc = zlib.crc32(part, crc)
    return crc


def fetch(sources: Sequence[dict[str, Any]], rank: int, step: int) -> tuple[memoryview | None, str]:
    """The state of a rank and the first of several sources that has it whole, or None and the reasons why none has.

    A source is a copy (`place`), or a parity: `members`, the `places` of their keepers, the `sizes` of their states.
    """
    reasons = []
    for source in sources:
        data = np.zeros(source["size"], np.uint8)
        try:
            if source["what"] == "copy":
                _get(source["place"], "copy", step, rank, (0, source["size"]), data)
            else:
                _rebuild(source, rank, step, data)
        except (OSError, ValueError, KeyError) as error:
            reasons.append(f"{source['named']}: {error}")
            continue
        if zlib.crc32(data.data) == source["crc"]:
            return data.data, source["named"]
        reasons.append(f"{source['named']}: its checksum does not match")
    return None, "; ".join(reasons)


def _rebuild(source: dict[str, Any], rank: int, step: int, data: NDArray[np.uint8]) -> None:
    members, places, sizes = source["members"], source["places"], source["sizes"]
    for keeper in (m for m in members if m != rank):
        begin, end = stripe(len(data), members, rank, keeper)
        into = data[begin:end]
        _get(places[str(keeper)], "parity", step, -1, (0, len(into)), into)
        for other in (m for m in members if m not in (rank, keeper)):
            first, last = stripe(sizes[str(other)], members, other, keeper)
            _get(places[str(other)], "copy", step, other, (first, min(last, first + len(into))), into)


def _get(place: Place, what: str, step: int, rank: int, span: tuple[int, int], into: NDArray[np.uint8]) -> None:
    """Mix what a keeper holds into some bytes."""
    at = 0
    with Wire.connect(place) as wire:
        wire.ask({"kind": "get", "what": what, "step": step, "rank": rank, "begin": span[0], "end": span[1]})
        while (frame := wire.receive())[0]["kind"] == "part":
            mix(into, at, frame[1])
            at += len(frame[1])
    if at != span[1] - span[0]:
        raise OSError("it holds less than it said")

"""A process beside a rank that holds states in host memory, and outlives the rank: its own state, and that of others.

`python -m stabwatch.distributed.keeper SOCKET`, with a JSON object on standard input (see `start` in keepers.py). A
launcher ends all training processes when one dies, and what is in their memory with them: so the copies are not there.
It writes a file by which a process that is started later on the same host finds it. It ends when its rank says so, or
some time after its rank has gone.

A connection begins with a hello (see Wire), and then asks, one after the other:

    own                               this connection is that of the rank: it is alive
    put   what, step, rank, size, crc, begin, end, whole
                                      then `part` frames with the bytes [begin, end) of the rank's state, and `end` with
                                      their `crc`; size, crc: of the state. what: 'copy', or 'parity', which is mixed
                                      with what the others have sent. whole: the last step that all ranks hold
    get   what, step, rank, begin, end   the bytes, in `part` frames; rank: of a copy
    list                              what is held, and whether the rank is alive
    keep  first, last                 forget all other steps
    leave                             end the process
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.frames import FrameError, Message
from stabwatch.distributed.parity import mix
from stabwatch.distributed.wire import PART, Wire

LINGER = 1800.0
"""Seconds for which states are held after their rank has gone."""
START = 60.0
"""The same, where the rank has not come yet."""
Key = tuple[str, int, int]
"""(what, step, rank of a copy or -1)"""


@dataclass
class Held:
    """data: the bytes. of: size and crc of the states that are in it, by rank. Those that are under way are not."""

    data: NDArray[np.uint8]
    of: dict[int, dict[str, int]] = field(default_factory=dict)


class Keeper:
    """What a keeper holds. rank: its own. At most two steps: the last that all ranks hold, and the newest."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self._held: dict[Key, Held] = {}
        self._lock = threading.Lock()
        self._whole = -1
        self._alive = 0
        self._left = False
        self.ends = time.monotonic() + START
        """When the process ends by itself."""

    @property
    def over(self) -> bool:
        """Nobody needs this process any more."""
        return self._left or (not self._alive and time.monotonic() > self.ends)

    def serve(self, sock: socket.socket) -> None:
        """Answer one connection until it ends."""
        wire, owner = Wire(sock, None), False
        try:
            if not wire.greeted(self._facts["token"]):
                return
            while True:
                message, _ = wire.receive()
                if message["kind"] == "own" and not owner:
                    owner, self._alive = True, self._alive + 1
                self._answer(wire, message)
        except (OSError, FrameError, KeyError, TypeError):
            return  # it is gone, or not of this version
        finally:
            wire.close()
            if owner:
                self.ends = max(self.ends, time.monotonic() + LINGER)
                self._alive -= 1

    def _answer(self, wire: Wire, message: Message) -> None:
        kind = message["kind"]
        if kind == "put":
            why = self._put(wire, message)
            wire.send({"kind": "no", "why": why} if why else {"kind": "yes"})
        elif kind == "get":
            self._get(wire, message)
        elif kind == "list":
            wire.send({"kind": "list", **self._facts, "alive": self._alive > 0, "held": self._list()})
        elif kind == "keep":
            self._keep(message["first"], message["last"])
            wire.send({"kind": "yes"})
        elif kind == "leave":
            self._left = True
            wire.send({"kind": "yes"})
        else:
            wire.send({"kind": "yes"})

    def _put(self, wire: Wire, m: Message) -> str:
        """Take a state, or a stripe of one; why it was not taken, if it was not."""
        key: Key = (m["what"], m["step"], m["rank"] if m["what"] == "copy" else -1)
        at = 0 if m["what"] == "parity" else m["begin"]
        try:
            held = self._place(key, m["rank"], at + m["end"] - m["begin"], m["whole"])
        except MemoryError:
            held = Held(np.empty(0, np.uint8))
        crc, first, good = 0, at, False
        try:
            while (frame := wire.receive())[0]["kind"] == "part":
                crc = zlib.crc32(frame[1], crc)
                with self._lock:
                    if at + len(frame[1]) <= len(held.data):
                        mix(held.data, at, frame[1])
                at += len(frame[1])
            good = frame[0]["crc"] == crc and at - first == m["end"] - m["begin"]
        finally:
            with self._lock:
                current = self._held.get(key) is held
                if good and current:
                    held.of[m["rank"]] = {"size": m["size"], "crc": m["crc"]}
                elif current:
                    del self._held[key]  # what has come of it is in there
        if not good:
            return "its checksum does not match what came"
        return "" if current else "there is no memory for it, or a later one has taken its place"

    def _place(self, key: Key, rank: int, size: int, whole: int) -> Held:
        """The bytes that a state, or a stripe, goes to."""
        with self._lock:
            self._whole = max(self._whole, whole)
            for other, held in list(self._held.items()):
                again = other == key and (key[0] == "copy" or rank in held.of)
                if again or other[1] not in (key[1], self._whole):
                    del self._held[other]
            found = self._held.setdefault(key, Held(np.zeros(0, np.uint8)))
            if len(found.data) < size:
                found.data = np.concatenate([found.data, np.zeros(size - len(found.data), np.uint8)])
            return found

    def _get(self, wire: Wire, m: Message) -> None:
        held = self._held.get((m["what"], m["step"], m["rank"]))
        if held is None:
            wire.send({"kind": "no", "why": "it is not held any more"})
            return
        wire.send({"kind": "yes"})
        for at in range(m["begin"], min(m["end"], len(held.data)), PART):
            wire.send({"kind": "part"}, held.data.data[at : min(at + PART, m["end"])])
        wire.send({"kind": "end"})

    def _list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {"what": what, "step": step, "bytes": len(held.data), "of": {str(r): f for r, f in held.of.items()}}
                for (what, step, _), held in self._held.items()
            ]

    def _keep(self, first: int, last: int) -> None:
        with self._lock:
            self._held = {key: held for key, held in self._held.items() if first <= key[1] <= last}


def main() -> None:
    """Serve until nobody needs it. Ctrl-C and SIGTERM end it at once."""
    facts = json.load(sys.stdin)
    place = Path(facts.pop("file"))
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.settimeout(1.0)
    keeper = Keeper(facts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    made = place.with_suffix(f".{os.getpid()}")
    made.write_text(json.dumps(facts | {"pid": os.getpid()}))
    made.replace(place)
    try:
        while not keeper.over:
            with suppress(TimeoutError):
                sock, _ = listener.accept()
                threading.Thread(target=keeper.serve, args=(sock,), daemon=True).start()
    finally:
        place.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

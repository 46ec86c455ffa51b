"""Where ranks find each other: a few keys in the store of the job's process group, and nothing in its groups.

Keys, below `stabwatch/<world>/exchange/<number of the watch on its rank>/` (the number is counted in the store, so
that processes which live on meet new ones in a new store):

    order        a counter: the ranks that have attached
    at/<rank>    JSON, once a rank has ended its first step: address, port, token, version, digest of its layout,
                 `order`, `cutoff`, `begins`, `state` ('here', or why it left)
    layout/<digest>   the description of a layout, once
    stage/<n>    what the rank n of a pipeline measures
    folder       the run folder, as rank 0 names it; `stands`, `stands/<rank>`: see runtime/overdue.py

Steps are counted by each rank from its own first one. Two ranks count from the same step of the training if each was
attached before the other ended its first step, as a step of a parallel training ends on no rank before it began on
all. So each rank takes a number from the counter when it attaches (`order`), and reads the counter when its first step
ends (`cutoff`): ranks a and b are aligned if a.order <= b.cutoff and b.order <= a.cutoff. Where nothing makes ranks
wait for each other (their gradients are not averaged), that may not hold. So ranks are aligned as well if both have
attached before their first backward pass, to parameters that were written equally often (`begins`).

`enter` and `first_step` are called by the training thread and cost one look into the store each. Everything else is
done by a thread of its own, as a store whose process has stopped answers late or never.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PROTOCOL = 1
TIMEOUT = timedelta(seconds=5)

Info = dict[str, Any]


def aligned(a: Info, b: Info) -> bool:
    """Do two ranks count their steps from the same one?"""
    begins = a.get("begins")
    return bool((a["order"] <= b["cutoff"] and b["order"] <= a["cutoff"]) or (begins and begins == b.get("begins")))


class Directory:
    """Announcements of all ranks.

    found: called in the directory's thread, with what was asked for and its value (None: not there, or the store does
    not answer).
    """

    def __init__(self, key: str, rank: int) -> None:
        store = dist.distributed_c10d._get_default_store()
        if hasattr(store, "clone"):  # its own connection, so that torch's look-ups do not wait for these
            store = store.clone()
            store.set_timeout(TIMEOUT)
        self.host = _host_of(store)
        number = dist.PrefixStore(key, store).add(f"watches/{rank}", 1)
        self._store: Any = dist.PrefixStore(f"{key}/{number}", store)
        self._rank = rank
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.order = self._store.add("order", 1)
        self.cutoff = 0
        self.begins = ""
        """Set by the owner, if no backward pass has reached the model so far: how often its parameters were written."""

    def first_step(self) -> None:
        """The first step of this rank has ended."""
        self.cutoff = self._store.add("order", 0)

    def announce(self, info: Info, description: str) -> None:
        """Publish this rank; `description`: of its layout."""

        def publish() -> None:
            place = f"layout/{info['digest']}"
            if not self._store.check([place]):
                self._store.set(place, description)
            self._store.set(f"at/{self._rank}", json.dumps(info))

        self._do(publish)

    def look_up(self, rank: int, found: Callable[[int, Info | None], None]) -> None:
        """Ask for the announcement of a rank."""

        def ask() -> None:
            info: Info | None = None
            try:
                if self._store.check([f"at/{rank}"]):
                    info = json.loads(self._store.get(f"at/{rank}"))
            finally:
                found(rank, info)

        self._do(ask)

    def layout(self, digest: str, found: Callable[[str, str | None], None]) -> None:
        """Ask for the description of a layout."""

        def ask() -> None:
            text: str | None = None
            try:
                if self._store.check([f"layout/{digest}"]):
                    text = self._store.get(f"layout/{digest}").decode()
            finally:
                found(digest, text)

        self._do(ask)

    def put(self, name: str, value: str) -> None:
        """Write a key."""
        self._do(lambda: self._store.set(name, value))

    def put_once(self, name: str, value: str) -> None:
        """Write a key that is not there yet."""
        self._do(lambda: None if self._store.check([name]) else self._store.set(name, value))

    def add(self, name: str) -> None:
        """Count a key up by one."""
        self._do(lambda: self._store.add(name, 1))

    def get(self, names: Sequence[str], found: Callable[[dict[str, str | None]], None]) -> None:
        """Ask for keys; found: called with their values, None for one that is not there."""

        def ask() -> None:
            there = {name: self._store.check([name]) for name in names}
            found({name: self._store.get(name).decode() if here else None for name, here in there.items()})

        self._do(ask)

    def flush(self, timeout: float) -> None:
        """Wait until everything asked for so far is done, at most `timeout` seconds."""
        done = threading.Event()
        self._do(done.set)
        done.wait(timeout)

    def close(self, timeout: float) -> None:
        """End the thread when it has done everything asked for; waits at most `timeout` seconds."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout)

    def set_now(self, name: str, value: str) -> None:
        """Write a key in the calling thread."""
        self._store.set(name, value)

    def read_now(self, name: str) -> str | None:
        """Read a key in the calling thread; None if it is not there."""
        return self._store.get(name).decode() if self._store.check([name]) else None

    def _do(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stabwatch-directory", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # the store does not answer; the caller got None, or asks again
                continue


def _host_of(store: Any) -> str | None:
    """The host that the store is served from, where it is served over the network."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return getattr(store, "host", None)

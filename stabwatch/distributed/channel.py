"""Connections of one rank to its parent and its children in the tree, run by one thread, separate from torch's.

A rank that has children in the tree listens on a free port and publishes it in the directory. A child looks up its
parent there and connects. Where the parent is absent, does not fit, does not answer or is lost, it takes the next
ancestor, up to rank 0. Sockets do not block, and a connection that is silent for `SILENT` seconds is dropped.

Frames (see frames.py), by `kind`:

    hello      child -> parent  rank, token (the parent's, from the directory: it proves that the child is of this job)
    welcome    parent -> child  it is accepted
    row        child -> parent  step, ranks; the block is a packed Partial (layout.py)
    copy       child -> parent  step, rank, group; the block is a packed Partial: see copies.py, passed on upwards
    broadcast  parent -> child  topic, data: from rank 0 to all ranks, passed on downwards
    reply      child -> parent  topic, data: from one rank to rank 0, passed on upwards
    beat       both ways        once a second
    bye        both ways        the sender leaves
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import selectors
import socket
import time
from collections import deque
from typing import Any, Protocol

from stabwatch.distributed.directory import PROTOCOL, Directory, Info, aligned
from stabwatch.distributed.frames import FrameError, Message
from stabwatch.distributed.link import Link, listen, own_address
from stabwatch.distributed.tree import ancestors, children

BEAT = 1.0
GOODBYE = 0.5
"""Seconds that a rank which leaves waits for its parent to have read everything."""
SILENT = 10.0
"""Seconds without a byte after which the other end is given up."""
GREETING = 3.0
"""Seconds for a connection to be made and greeted."""
START = 10.0
"""Seconds for which an ancestor that has not announced itself is asked for again before the next one is."""
LONGEST_RETRY = 30.0
MOST_UNSENT = 64 << 20
"""Bytes that are kept while there is no parent."""


class Handler(Protocol):
    """Who uses the channel; called in its thread."""

    def child_joined(self, rank: int) -> None:
        """A rank sends to this one from now on."""

    def child_left(self, rank: int, lost: bool) -> None:
        """It sends no more; lost: its end of the connection was closed, and it has not said that it leaves."""

    def from_child(self, rank: int, message: Message, block: bytes) -> None:
        """A 'row', 'copy' or 'reply' came up."""

    def from_parent(self, message: Message) -> None:
        """A 'broadcast' came down."""


NO_ROOT = "the first rank, which writes the log, is not watched, or has ended no step"
UNREACHED = "the first rank, which writes the log, could not be reached"
APART = {
    "version": "it runs another version of stabwatch than the first rank, which writes the log",
    "layout": "it measures other things than the first rank, which writes the log",
    "start": "it was attached at another step of the training than the first rank, which writes the log",
}


def unfit(a: Info, b: Info) -> str | None:
    """Why two ranks do not merge, in a word; None if they do."""
    if a["version"] != b["version"]:
        return "version"
    if a["digest"] != b["digest"]:
        return "layout"
    return None if aligned(a, b) else "start"


class Channel:
    """All connections of one rank. Every method but `wake` is called in one thread."""

    def __init__(
        self, rank: int, world: int, version: str, digest: str, directory: Directory, handler: Handler
    ) -> None:
        self._directory = directory
        self._handler = handler
        self._path = ancestors(rank, world)
        self._selector = selectors.DefaultSelector()
        self._awake, self._waker = socket.socketpair()
        for end in (self._awake, self._waker):
            end.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        address = ""
        if children(rank, world):
            address = own_address(directory.host)
            self._listener = listen(address)
            self._selector.register(self._listener, selectors.EVENT_READ)
        self.info: Info = {
            "rank": rank, "version": f"{PROTOCOL} {version}", "digest": digest, "token": secrets.token_hex(16),
            "order": directory.order, "cutoff": directory.cutoff, "begins": directory.begins, "state": "here",
            "address": address, "port": self._listener.getsockname()[1] if self._listener else 0,
        }  # fmt: skip
        self._children: dict[int, Link] = {}
        self._strangers: list[Link] = []
        self._parent: Link | None = None
        self._began = self._beaten = self._retry_at = time.monotonic()
        self._retry = BEAT
        self._delay = 0.02
        self._at = 0
        self._asked = False
        self._answers: deque[tuple[int, Info | None]] = deque()
        self._root: Info | None = None
        self._unsent: deque[tuple[Message, bytes]] = deque()
        self._unsent_bytes = 0
        self._welcome = False
        self.apart: str | None = None
        """Why this rank merges with nobody, if rank 0 does not fit it."""
        self.over = False
        """Rank 0 has said that it leaves: nobody writes a log any more, and the job's store may end with it."""

    # -- from any thread ----------------------------------------------------------------------------

    def wake(self) -> None:
        """End the wait of `poll`."""
        try:
            self._waker.send(b".")
        except OSError:
            return  # it is awake, or closed

    # -- sending ------------------------------------------------------------------------------------

    def up(self, message: Message, block: bytes = b"") -> None:
        """To the parent; kept while there is none, and the oldest let go when it is too much."""
        if self._parent is not None and self._parent.greeted:
            self._parent.send(message, block)
            return
        if self.apart is None and not self.over:
            self._unsent.append((message, block))
            self._unsent_bytes += len(block)
            while self._unsent_bytes > MOST_UNSENT:
                self._unsent_bytes -= len(self._unsent.popleft()[1])

    def down(self, message: Message) -> None:
        """To all children."""
        for link in self._children.values():
            link.send(message)

    @property
    def connected(self) -> bool:
        """There is a parent that has taken this rank."""
        return self._parent is not None and self._parent.greeted

    @property
    def unheard(self) -> str | None:
        """Why no other rank has taken what this one measured; None if one has."""
        if self._welcome:
            return None
        if self._root is None:
            return NO_ROOT
        return UNREACHED if self.apart is None else APART[self.apart]

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent."""
        links = [self._parent] if self._parent is not None else []
        return not self._unsent and not any(link.queued for link in (*links, *self._children.values()))

    # -- the loop -----------------------------------------------------------------------------------

    def poll(self, timeout: float) -> None:
        """Wait for something to happen, `timeout` seconds at the most, and deal with it."""
        self._write_all()
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._awake:
                self._drain()
            elif key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Link):
                self._read(key.data)
        now = time.monotonic()
        self._take_answers(now)
        self._keep_time(now)
        self._seek(now)
        self._write_all()

    def close(self) -> None:
        """Say goodbye and close everything."""
        for link in self._links():
            link.send({"kind": "bye"})
        self._write_all()
        if self._parent is not None:
            self._parent.finish(GOODBYE)
        for link in self._links():
            self._forget(link)
        for sock in (self._listener, self._awake, self._waker):
            if sock is not None:
                sock.close()
        self._selector.close()

    def _links(self) -> list[Link]:
        parent = [self._parent] if self._parent is not None else []
        return [*parent, *self._children.values(), *self._strangers]

    def _drain(self) -> None:
        try:
            while self._awake.recv(4096):
                pass
        except BlockingIOError:
            return

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return
        link = Link(sock, time.monotonic())
        self._strangers.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _read(self, link: Link) -> None:
        try:
            for message, block in link.read(time.monotonic()):
                if link in self._strangers:
                    self._greet(link, message)
                elif link is self._parent:
                    self._from_parent(link, message)
                elif self._children.get(link.rank) is link:
                    self._from_child(link, message, block)
        except FrameError:
            self._lose(link)
        if link.ended and link in self._links():
            self._lose(link)

    def _write_all(self) -> None:
        for link in self._links():
            try:
                link.write()
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.queued else 0)
                if events != link.events:
                    link.events = events
                    self._selector.modify(link.socket, events, link)
            except OSError:
                self._read(link)  # what it sent before it went
                if link in self._links():
                    self._lose(link)

    # -- frames -------------------------------------------------------------------------------------

    def _greet(self, link: Link, message: Message) -> None:
        if message["kind"] != "hello" or not hmac.compare_digest(str(message.get("token")), self.info["token"]):
            self._lose(link)
            return
        self._strangers.remove(link)
        link.rank = int(message["rank"])
        old = self._children.get(link.rank)
        if old is not None:
            self._lose(old)
        self._children[link.rank] = link
        link.greeted = True
        link.send({"kind": "welcome"})
        self._handler.child_joined(link.rank)

    def _from_parent(self, link: Link, message: Message) -> None:
        if message["kind"] == "welcome":
            link.greeted = self._welcome = True
            self._retry = BEAT
            for unsent in self._unsent:
                link.send(*unsent)
            self._unsent.clear()
            self._unsent_bytes = 0
        elif message["kind"] == "bye":
            self.over = link.rank == 0
            self._lose(link)
        elif message["kind"] == "broadcast":
            self.down(message)
            self._handler.from_parent(message)

    def _from_child(self, link: Link, message: Message, block: bytes) -> None:
        if message["kind"] == "bye":
            link.goodbye = True
            self._lose(link)
        elif message["kind"] in ("row", "copy", "reply"):
            self._handler.from_child(link.rank, message, block)

    def _lose(self, link: Link) -> None:
        self._forget(link)
        if link in self._strangers:
            self._strangers.remove(link)
        elif link is self._parent:
            self._parent = None
            self._next_ancestor(time.monotonic())
        elif self._children.get(link.rank) is link:
            del self._children[link.rank]
            self._handler.child_left(link.rank, link.ended and not link.goodbye)

    def _forget(self, link: Link) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.socket)
        link.close()

    # -- time ---------------------------------------------------------------------------------------

    def _keep_time(self, now: float) -> None:
        for link in self._links():
            late = now - link.heard > SILENT if link.greeted else now - link.opened > GREETING
            if late:
                self._lose(link)
        if now - self._beaten > BEAT:
            self._beaten = now
            for link in self._links():
                if link.greeted and not link.queued:
                    link.send({"kind": "beat"})

    # -- finding a parent ---------------------------------------------------------------------------

    def _seek(self, now: float) -> None:
        """Ask for rank 0 until it is known, then for one ancestor after the other."""
        if not self._path or self._parent or self.apart or self.over or self._asked or now < self._retry_at:
            return
        self._asked = True
        self._directory.look_up(0 if self._root is None else self._path[self._at], self._found)

    def _found(self, rank: int, info: Info | None) -> None:
        self._answers.append((rank, info))
        self.wake()

    def _take_answers(self, now: float) -> None:
        while self._answers:
            rank, info = self._answers.popleft()
            self._asked = False
            if self._root is None:
                self._meet_root(info, now)
            elif info is None and rank and now - self._began < START:
                self._ask_later(now)
            elif info is None or info["state"] != "here" or unfit(info, self._root) is not None:
                self._next_ancestor(now)
            else:
                self._connect(rank, info, now)

    def _meet_root(self, info: Info | None, now: float) -> None:
        if info is None:
            self._ask_later(now)
            return
        self._root, self.apart = info, unfit(info, self.info)
        if self.apart is not None:
            self._unsent.clear()

    def _ask_later(self, now: float) -> None:
        self._retry_at = now + self._delay
        self._delay = min(1.0, self._delay * 1.5)

    def _next_ancestor(self, now: float) -> None:
        self._at += 1
        if self._at == len(self._path):
            self._at = 0
            self._retry_at = now + self._retry
            self._retry = min(LONGEST_RETRY, 2 * self._retry)

    def _connect(self, rank: int, info: Info, now: float) -> None:
        try:
            link = Link.connect(info["address"], info["port"], now, rank)
        except OSError:
            self._next_ancestor(now)
            return
        hello: dict[str, Any] = {"kind": "hello", "rank": self.info["rank"], "token": info["token"]}
        link.send(hello)
        self._parent = link
        self._selector.register(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)

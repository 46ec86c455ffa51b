"""What all ranks measured in a step becomes one row on rank 0, beside the training.

The training thread hands over what it measured (`submit`: an append to a queue) and goes on. A thread of this module
waits for the copy from the device, merges it with what the children in the tree sent (merger.py), and passes the result
to the parent (channel.py). Rank 0 gives it to its owner. This uses no collective, no process group of the training, and
nothing on the device. For a rank that is late, stopped, killed, detached or different, only this thread waits, and only
for a bounded time. Each row says which ranks it covers.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.channel import Channel
from stabwatch.distributed.copies import Copies
from stabwatch.distributed.coverage import CoverageNews, RankCoverage
from stabwatch.distributed.directory import Directory
from stabwatch.distributed.frames import Message
from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.layout import MergeLayout, Partial
from stabwatch.distributed.merger import OWN, Merger
from stabwatch.distributed.stages import MEET_SECONDS, Measured, Stage, StagedLayout
from stabwatch.distributed.summands import Summands, Transfer
from stabwatch.distributed.tree import children, height, size
from stabwatch.runlog import Accumulator

PATIENCE = 2.0
"""Seconds that a node waits for a source, for each level of the tree below it."""
IDLE = 0.5
POLL = 0.002
"""Seconds between two looks at copies that are on their way from the device."""
FAREWELL = 0.5
"""Seconds that a rank which leaves waits for the job's store to have its reason."""
MOST_TOPIC = 1024
"""Messages of one topic that wait for their reader."""


@dataclass(frozen=True)
class Merged:
    """A step over ranks, on rank 0. row: fields on the device, NaN where not measured. health: fields of
    `RankHealth.accumulators`."""

    step: int
    row: NDArray[np.float64]
    health: NDArray[np.float64]
    covered: int
    extra: Any


class _Own(NamedTuple):
    """What this rank has submitted of a step."""

    step: int
    transfer: Transfer | None
    extra: Any
    failed: frozenset[Accumulator]
    summands: Summands | None

    def arrived(self) -> bool:
        """All of it is in the host's memory."""
        row = self.transfer is None or self.transfer.arrived()
        return row and (self.summands is None or self.summands.arrived())


class Exchange:
    """One rank's end of the exchange.

    layout: makes the layout, in the training thread, when the first step ends.
    merged: on rank 0, called with each step in order, in the exchange's thread. changed: on rank 0, called when the
    ranks that records cover have changed, there too. failed: called with the exception that ends the exchange.
    stage: the place of this rank in a pipeline, asked when the first step ends. widened: called with the layout of all
    stages, before the first row, there too. number: what the job calls this rank, if that is not `rank`. lost: called
    when the connection to a rank below has ended without a word, and when it is there again.
    """

    def __init__(
        self,
        key: str,
        rank: int,
        world: int,
        version: str,
        health: RankHealth,
        layout: Callable[[], MergeLayout],
        merged: Callable[[Merged], None],
        changed: Callable[[CoverageNews], None],
        failed: Callable[[Exception], None],
        stage: Callable[[], Stage | None],
        widened: Callable[[StagedLayout], None],
        number: int | None = None,
        lost: Callable[[int, bool], None] = lambda rank, lost: None,
    ) -> None:
        self.rank, self.world = rank, world
        self.number = rank if number is None else number
        self.directory = Directory(key, rank)
        self._version = version
        self._health = health
        self._make_layout = layout
        self._merged, self._changed, self._failed, self._lost = merged, changed, failed, lost
        self._stage, self._widened = stage, widened
        self._compares = health
        self._stages: dict[str, str | None] = {}
        self._submitted: deque[_Own] = deque()
        self._outgoing: deque[Message] = deque()
        self._topics: dict[str, deque[Any]] = {}
        self._thread: threading.Thread | None = None
        self._channel: Channel | None = None
        self._closing: float | None = None
        self._reason = "failed"
        self._pid = os.getpid()
        self.broken = False
        self.measured: set[int] = set()
        """Numbers of the accumulators that this rank has measured."""
        self.covered = 1
        """Ranks in the last row, on rank 0."""

    # -- in the training thread ---------------------------------------------------------------------

    def submit(
        self,
        step: int,
        transfer: Transfer | None,
        extra: Any = None,
        failed: frozenset[Accumulator] = frozenset(),
        summands: Summands | None = None,
    ) -> None:
        """This rank has ended a step. Never waits.

        step: how many steps came before it on this rank. transfer: (fields on the device,), None if not measured.
        failed: what this rank should have measured and could not: a value of the other ranks would be another one.
        summands: what it has of gradients that are sums over ranks.
        """
        if self.broken or os.getpid() != self._pid:
            return
        if self._thread is None:
            try:
                self._start()
            except Exception as error:
                self.broken = True
                self._failed(error)
                return
        self._submitted.append(_Own(step, transfer, extra, failed, summands))
        self._wake()

    @property
    def started(self) -> bool:
        """Whether a step was submitted: the layout is fixed from then on."""
        return self._thread is not None

    def use(
        self,
        health: RankHealth,
        layout: Callable[[], MergeLayout],
        merged: Callable[[Merged], None],
        widened: Callable[[StagedLayout], None],
    ) -> None:
        """Take another layout, and another owner of its rows; only before the first step is submitted."""
        self._health = self._compares = health
        self._make_layout, self._merged, self._widened = layout, merged, widened

    @property
    def unheard(self) -> str | None:
        """Why nothing of this rank has been taken so far; None where it was, on rank 0, and before the first step."""
        if self._channel is None or self.rank == 0:
            return None
        return self._channel.unheard

    def broadcast(self, topic: str, data: Any) -> None:
        """On rank 0, from any thread: `received(topic)` gives data on all other ranks, as soon as it gets there."""
        self._outgoing.append({"kind": "broadcast", "topic": topic, "data": data})
        self._wake()

    def reply(self, topic: str, data: Any) -> None:
        """On another rank, from any thread: `received(topic)` gives data on rank 0."""
        self._outgoing.append({"kind": "reply", "topic": topic, "data": data})
        self._wake()

    def received(self, topic: str) -> list[Any]:
        """What came on a topic since the last call. Never waits."""
        waiting = self._topics.get(topic)
        return [waiting.popleft() for _ in range(len(waiting))] if waiting else []

    def close(self, reason: str) -> None:
        """Pass on what is under way, a bounded time, and leave. reason: why, for the other ranks."""
        if self._thread is None or os.getpid() != self._pid:
            return
        self._reason = reason
        levels = max(1, height(self.rank, self.world))
        self._closing = time.monotonic() + PATIENCE * levels
        self._wake()
        self._thread.join(PATIENCE * levels + 2.0)
        self.directory.close(0.5)

    def _start(self) -> None:
        self._layout = self._local = self._make_layout()
        self.directory.first_step()
        if self._stage() is None:
            self._open()
        self._thread = threading.Thread(target=self._run, name="stabwatch-exchange", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        levels = height(self.rank, self.world)
        self._merger = Merger(self._layout, self.rank == 0, PATIENCE * max(1, levels))
        self._copies = Copies(self._layout, self._layout.group)
        for first, _ in children(self.rank, self.world):
            self._merger.add(first)
        self._channel = Channel(self.rank, self.world, self._version, self._layout.digest, self.directory, self)
        self._coverage = RankCoverage(self.world, self._channel.info, self._layout.description, self.directory)
        self.directory.announce(self._channel.info, self._layout.description)

    def _wake(self) -> None:
        if self._channel is not None:
            self._channel.wake()

    # -- in the exchange's thread -------------------------------------------------------------------

    def _meet(self, stage: Stage) -> None:
        """Wait until all ranks of the pipeline have published what they measure, and take the union."""
        mine = Measured(stage.parts, self._local.device_entries)
        names = [f"stage/{i}" for i in range(len(stage.ranks))]
        self.directory.put_once(names[stage.index], mine.describe())
        end = time.monotonic() + MEET_SECONDS
        while len(self._stages) < len(names) and time.monotonic() < end and self._closing is None:
            self.directory.get(names, self._met)
            time.sleep(0.05)
        known = [Measured.of(text) for name in names if (text := self._stages.get(name))]
        if len(known) == len(names) and known[stage.index] == mine:
            local = self._local
            self._layout = staged = StagedLayout(local.layout, local.holds, stage, known, local.group)
            staged.health.coupled, staged.health.collectives = self._health.coupled, self._health.collectives
            self._compares = staged.health
            self._widened(staged)

    def _met(self, found: dict[str, str | None]) -> None:
        self._stages.update({name: text for name, text in found.items() if text})

    def _run(self) -> None:
        np.seterr(all="ignore")  # of this thread: what ranks measure may be any number, and warnings may be errors
        reason = "failed"
        try:
            stage = self._stage()
            if stage is not None:
                self._meet(stage)
                self._open()
            assert self._channel is not None
            while not self._done():
                busy = bool(self._submitted)
                self._channel.poll(POLL if busy else 0.05 if self._merger.waits or self._closing else IDLE)
                self._step()
            self._last()
            reason = self._reason
        except Exception as error:
            self.broken = True
            self._failed(error)
        finally:
            if self._channel is not None:
                self._channel.info["state"] = reason
                if not self._channel.over:
                    self.directory.announce(self._channel.info, self._layout.description)
                    self.directory.flush(FAREWELL)  # rank 0 looks the reason up as soon as this rank has left
                self._channel.close()

    def _done(self) -> bool:
        if self._closing is None:
            return False
        assert self._channel is not None
        passed = not self._submitted and not self._outgoing and not self._merger.waits and self._channel.idle
        alone = self._channel.apart is not None or self._channel.over
        return (passed and (self.rank == 0 or self._channel.connected)) or alone or time.monotonic() > self._closing

    def _step(self) -> None:
        """One round: what this rank measured, what is complete, what is to be said."""
        now = time.monotonic()
        while self._submitted:
            own = self._submitted[0]
            if not own.arrived():
                break
            partial = self._own(own)
            self._report(own.step, partial)
            self._merger.put(OWN, own.step, partial, now, own.extra)
            self._submitted.popleft()
        for step, entry in self._merger.take(now):
            self._pass_on(step, entry.partial, entry.extra, entry.own)
        self._send()
        if self.rank == 0:
            for news in self._coverage.news(now):
                self._changed(news)

    def _own(self, own: _Own) -> Partial:
        if own.transfer is None:
            return self._layout.partial(self.rank, None)
        row = own.transfer.wait()
        starts = self._local.layout.starts
        self.measured.update(
            i for i, start in enumerate(starts) if start < len(row) and i not in self.measured and row[start] > 0
        )
        if own.summands is not None:
            self.measured.update(self._local.numbers[a] for a in own.summands.layers)
        whole = np.concatenate([row, self._health.own(self.number, row)])
        whole[self._health.spent] = 0.0
        return self._layout.partial(self.rank, whole, own.failed, own.summands)

    def _report(self, step: int, partial: Partial) -> None:
        """To rank 0, what it compares with that of other ranks which are given the same data."""
        due, group = self._copies.report(partial), self._copies.group
        if due is None:
            return
        if self.rank == 0:
            self._copies.take(step, group, due)
        else:
            assert self._channel is not None
            message = {"kind": "copy", "step": step, "rank": self.rank, "group": group}
            self._channel.up(message, self._layout.pack(due))

    def _pass_on(self, step: int, partial: Partial | None, extra: Any, own: bool) -> None:
        assert self._channel is not None
        if partial is None:
            return
        if self.rank:
            message = {"kind": "row", "step": step, "ranks": partial.ranks}
            self._channel.up(message, self._layout.pack(partial))
            return
        if own:  # else rank 0 has left, and there is no record
            self.covered = size(partial.ranks)
            self._coverage.observe(step, partial.ranks)
            times = self._copies.times(partial.ranks, self.world)
            row = self._layout.row(partial, self.covered == self.world, times)
            width = len(row) - self._compares.width
            self._merged(Merged(step, row[:width], self._compares.compare(row[width:], step), self.covered, extra))

    def _send(self) -> None:
        assert self._channel is not None
        while self._outgoing:
            message = self._outgoing.popleft()
            if message["kind"] == "broadcast":
                self._channel.down(message)
            else:
                self._channel.up(message)

    def _last(self) -> None:
        """What was not complete in time goes out as it is."""
        for step, entry in self._merger.flush():
            self._pass_on(step, entry.partial, entry.extra, entry.own)
        assert self._channel is not None
        if self.rank:
            self._channel.poll(0.0)
        else:
            for news in self._coverage.last():
                self._changed(news)

    # -- called by the channel ----------------------------------------------------------------------

    def child_joined(self, rank: int) -> None:
        """See Handler."""
        self._merger.add(rank)
        self._lost(rank, False)

    def child_left(self, rank: int, lost: bool) -> None:
        """See Handler."""
        self._merger.remove(rank)
        if lost:
            self._lost(rank, True)

    def from_child(self, rank: int, message: Message, block: bytes) -> None:
        """See Handler."""
        assert self._channel is not None
        if message["kind"] != "row" and self.rank:
            self._channel.up(message, block)
            return
        if message["kind"] == "reply":
            self._receive(message)
            return
        if message["kind"] == "copy":
            one = int(message["rank"])
            reported = self._layout.unpack(((one, one + 1),), block)
            self._copies.take(int(message["step"]), tuple(map(int, message["group"])), reported)
            return
        ranks = tuple((int(first), int(end)) for first, end in message["ranks"])
        self._merger.put(rank, int(message["step"]), self._layout.unpack(ranks, block), time.monotonic())

    def from_parent(self, message: Message) -> None:
        """See Handler."""
        self._receive(message)

    def _receive(self, message: Message) -> None:
        waiting = self._topics.setdefault(message["topic"], deque(maxlen=MOST_TOPIC))
        waiting.append(message["data"])

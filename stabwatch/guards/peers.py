"""Snapshots of every rank in the keepers of other ranks, so that a job goes on after the loss of a process or a node.

A thread of each rank sends what the guard snapshot has copied: the training never waits for it. Rank 0 names the step
(peer_lead.py); a rank that has sent it counts up a key of the job's store; when all have, the step is whole, and only
then do keepers forget the one before. So at every moment there is one step that all ranks hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stabwatch.distributed import keepers
from stabwatch.distributed.exchange import Exchange
from stabwatch.distributed.keepers import Place
from stabwatch.distributed.parity import group, partner, stripe
from stabwatch.distributed.wire import Wire
from stabwatch.guards.packed import Packed
from stabwatch.guards.peer_lead import FAILED, NO_ORDER, ORDER, Order, PeerLead
from stabwatch.guards.rank_board import RankBoard
from stabwatch.guards.restore import Restored, Restoring
from stabwatch.guards.snapshots import LiveState, Snapshots

POLL = 0.2


@dataclass(frozen=True)
class PeerJob:
    """mode: 'copy' or 'parity'. name: what the next attempt of the job is known by. number: what the job calls rank."""

    mode: str
    name: str
    rank: int
    world: int
    number: int


class PeerSnapshots:
    """Sends the snapshots of one rank. event: writes an event of the run log. failed: gets what ends the thread."""

    def __init__(
        self,
        job: PeerJob,
        snapshots: Snapshots,
        exchange: Exchange | None,
        event: Callable[..., None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.job = job
        self._snapshots = snapshots
        self.board = RankBoard(exchange)
        self._failed = failed
        self.attempt = ""
        """What tells the keepers of this attempt from those of others."""
        self._child: subprocess.Popen[bytes] | None = None
        self._own: Place = {}
        self._owner: Wire | None = None
        self._old: list[Place] = []
        self._hosts: list[str] = []
        self._done = self._whole = -1
        self._order = NO_ORDER
        self._unfit = snapshots.unfit
        self._lead = PeerLead(job.mode, job.world, snapshots.newest, event) if job.rank == 0 else None
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stabwatch-peers", daemon=True)
        self._thread.start()

    def use(self, exchange: Exchange | None) -> None:
        """Reach other ranks through this exchange from now on."""
        self.board = RankBoard(exchange)

    def restore(self, optimizers: Sequence[Any], timeout: float) -> Restored:
        """Put back what the keepers of an earlier attempt hold. Called while no step is taken, on every rank."""
        live = LiveState(self._snapshots.live.model)
        live.optimizers = {id(optimizer): optimizer for optimizer in optimizers}
        found = [place for place in keepers.find(self.job.name) if place["attempt"] != self.attempt]
        return Restoring(self.job.rank, self.job.world, self.board, live, timeout).run(found)

    def close(self, finished: bool) -> None:
        """End the thread. finished: nobody will want the snapshots."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        self._thread.join(2.0)
        if finished and self._child is not None:
            for place in (self._own, *self._old):
                keepers.tell(place, {"kind": "leave"})
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(2.0)
        if self._owner is not None:
            self._owner.close()

    # -- in its own thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            board = self._meet()
            while not self._stop.wait(POLL):
                if board is not self.board:
                    board = self._meet()
                self._forget_unfit()
                self._order = self._newest_order(board)
                self._follow(self._order, board)
        except Exception as error:
            self._failed("snapshot", error)

    def _meet(self) -> RankBoard:
        """Start the keeper, and learn where those of the others are."""
        board, stopped = self.board, self._stop.is_set
        self._done, self._hosts, self._order = -1, [], NO_ORDER
        if self.job.rank == 0:
            self.attempt = self.attempt or os.urandom(8).hex()
            board.put("attempt", self.attempt)
        self.attempt = board.wait(["attempt"], stopped, POLL).get("attempt", "")
        if not stopped() and self._child is None:
            self._old = [place for place in keepers.find(self.job.name) if place["attempt"] != self.attempt]
        if not stopped():
            self._keep_alive(board, new=True)
        if self._lead is not None:
            self._lead.meets()
        return board

    def _keep_alive(self, board: RankBoard, new: bool = False) -> None:
        """Have a keeper of which the others know."""
        job = self.job
        if self._child is None or self._child.poll() is not None:
            facts = {
                "job": job.name, "attempt": self.attempt, "created": time.time(), "owner": os.getpid(),
                "rank": job.rank, "world": job.world, "mode": job.mode,
            }  # fmt: skip
            self._child, self._own = keepers.start(facts, board.host)
            self._owner, new = Wire.connect(self._own), True
            self._owner.ask({"kind": "own"})
        if new:
            board.put(f"keeper/{job.rank}", json.dumps(self._own))

    def _newest_order(self, board: RankBoard) -> Order:
        if self._lead is not None:
            return self._lead.order(board, time.monotonic())
        received = board.exchange.received(ORDER) if board.exchange is not None else []
        return Order(*received[-1]) if received else self._order

    def _follow(self, order: Order, board: RankBoard) -> None:
        """Do what rank 0 says, once."""
        if order.whole > self._whole:
            self._whole = order.whole
            keepers.tell(self._own, {"kind": "keep", "first": self._whole, "last": 1 << 62})
            for place in self._old:
                keepers.tell(place, {"kind": "leave"})
            self._old = []
        if order.number <= self._done or order.step > self._snapshots.newest():
            return  # it is done, or this rank has not got there yet
        self._done = order.number
        self._keep_alive(board)
        try:
            self._send(order.step, board)
        except (OSError, ValueError) as error:
            self._give_up(order, str(error), board)
        else:
            board.count_up(f"whole/{order.number}")

    def _give_up(self, order: Order, why: str, board: RankBoard) -> None:
        failure = [order.number, self.job.number, why]
        if self._lead is not None:
            self._lead.failures.append(failure)
        elif board.exchange is not None:
            board.exchange.reply(FAILED, failure)

    def _forget_unfit(self) -> None:
        """After a rollback: what may have the fault that it was for is no snapshot to go on from."""
        if self._snapshots.unfit != self._unfit:
            self._unfit = self._snapshots.unfit
            keepers.tell(self._own, {"kind": "keep", "first": 0, "last": self._unfit[0] - 1})

    # -- sending ------------------------------------------------------------------------------------

    def _send(self, step: int, board: RankBoard) -> None:
        """Send the snapshot of a step. Raises OSError and ValueError, which say why it is not held."""
        kept = self._snapshots.lend(step)
        if kept is None:
            raise ValueError(f"it has no snapshot of step {step} any more")
        try:
            for event in kept.copied:
                event.synchronize()
            state = Packed(kept)
            facts = {"step": step, "rank": self.job.rank, "crc": keepers.checksum(state), "whole": self._whole}
            for rank, what, span in self._targets(state.size, board):
                self._put(rank, state, span, {"what": what, **facts}, board)
        finally:
            kept.lent = False
        if self._snapshots.unfit[0] <= step < self._snapshots.unfit[1]:
            raise ValueError("it may have the fault for which the run was rolled back")

    def _put(self, rank: int, state: Packed, span: tuple[int, int], facts: dict[str, Any], board: RankBoard) -> None:
        place = self._own if rank == self.job.rank else None
        try:
            if place is None:
                place = json.loads(board.ask([f"keeper/{rank}"])[f"keeper/{rank}"])
            with Wire.connect(place) as wire:
                keepers.put(wire, state, span, facts)
        except KeyError:
            raise OSError("the job's store does not answer") from None
        except OSError as error:
            raise OSError(f"the process that holds states for rank {rank} has not taken them: {error}") from error

    def _targets(self, size: int, board: RankBoard) -> Iterator[tuple[int, str, tuple[int, int]]]:
        """Whose keepers get which bytes, and as what."""
        me, hosts = self.job.rank, self._known_hosts(board)
        yield me, "copy", (0, size)
        if self.job.mode == "copy":
            other = partner(me, hosts)
            if other is not None:
                yield other, "copy", (0, size)
            return
        members = group(me, hosts)
        for other in members:
            if other != me:
                yield other, "parity", stripe(size, members, me, other)

    def _known_hosts(self, board: RankBoard) -> list[str]:
        if not self._hosts:
            self._hosts = json.loads(board.ask(["hosts"]).get("hosts", "[]"))
            if not self._hosts:
                raise OSError("the job's store does not answer")
        return self._hosts

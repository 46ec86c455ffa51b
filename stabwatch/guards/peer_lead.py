"""Rank 0's part of the snapshots of all ranks: which step they send, and when it is whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from stabwatch.distributed.parity import GROUP, group, in_node_order
from stabwatch.guards.rank_board import RankBoard

_log = logging.getLogger("stabwatch")
AGAIN = 5.0
"""Seconds after which rank 0 names the step again, for ranks that were not connected."""
LIMIT = 600.0
"""Seconds after which a step that not all ranks hold is given up for a newer one."""
MEET = 60.0
"""Seconds to wait for all ranks before it is said which are not there."""
ORDER, FAILED = "snapshot", "snapshot-failed"
KIND = "snapshot"
"""Of events."""


class Order(NamedTuple):
    """Send the snapshot of this step. number: of the order, ascending. whole: the last step that all ranks hold."""

    number: int
    step: int
    whole: int


NO_ORDER = Order(-1, -1, -1)


class PeerLead:
    """newest: the newest snapshot of rank 0. event: writes an event of the run log. failures: [number, rank, why]."""

    def __init__(self, mode: str, world: int, newest: Callable[[], int], event: Callable[..., None]) -> None:
        self._mode, self._world = mode, world
        self._newest = newest
        self._event = event
        self._order = NO_ORDER
        self._open = False
        self._begun = self._said = 0.0
        self._infos: dict[str, str] = {}
        self._met = False
        self._asked: float | None = None
        """When the ranks were first looked for."""
        self._told: str | None = None
        self.failures: list[list[Any]] = []

    def meets(self) -> None:
        """The ranks meet, or meet again."""
        self._infos, self._met, self._asked, self._open = {}, False, None, False
        self._order = Order(-1, self._order.step, self._order.whole)

    def order(self, board: RankBoard, now: float) -> Order:
        """What all ranks are to do now."""
        if board.exchange is not None:
            self.failures += board.exchange.received(FAILED)
        failures = [each for each in self.failures if each[0] == self._order.number]
        self.failures = []
        if self._open:
            self._judge(board, now, failures)
        step = self._newest()
        if not self._open and step > self._order.step and self._have_met(board, now):
            self._open, self._begun = True, now
            self._say(board, now, Order(self._order.number + 1, step, self._order.whole))
        return self._order

    def _judge(self, board: RankBoard, now: float, failures: list[list[Any]]) -> None:
        name = f"whole/{self._order.number}"
        count = int(board.ask([name]).get(name, 0))
        if count == self._world:
            self._open = False
            self._say(board, now, self._order._replace(whole=self._order.step))
            self._tell(
                self._order.step, "kept", "", seconds=round(now - self._begun, 3), ranks=self._world, mode=self._mode
            )
        elif failures or now - self._begun > LIMIT:
            self._open = False
            late = f"{count} of {self._world} ranks have sent it within {now - self._begun:.0f} s"
            self._tell(self._order.step, "not kept", f"rank {failures[0][1]}: {failures[0][2]}" if failures else late)
        elif now - self._said > AGAIN:
            self._say(board, now, self._order)

    def _say(self, board: RankBoard, now: float, order: Order) -> None:
        self._order, self._said = order, now
        if board.exchange is not None:
            board.exchange.broadcast(ORDER, list(order))

    def _tell(self, step: int, did: str, why: str, **facts: Any) -> None:
        """Write an event where something else is to be said than last time."""
        if why == self._told:
            return
        self._told = why
        whole = self._order.whole
        if why:
            there = f"the last that all ranks hold is that of step {whole}" if whole >= 0 else "there is none yet"
            _log.warning("stabwatch: the snapshot of step %d is not kept by peers: %s; %s.", step, why, there)
            facts = {"why": why, "whole": whole}
        self._event(KIND, step, did=did, **facts)

    def _have_met(self, board: RankBoard, now: float) -> bool:
        """Do all ranks have keepers? Then tell all on which hosts these are."""
        if self._met:
            return True
        absent = [rank for rank in range(self._world) if f"keeper/{rank}" not in self._infos]
        self._infos |= board.ask([f"keeper/{rank}" for rank in absent])
        absent = [rank for rank in absent if f"keeper/{rank}" not in self._infos]
        self._asked = now if self._asked is None else self._asked
        if absent:
            if now - self._asked > MEET:
                self._tell(self._newest(), "not kept", f"rank {absent[0]} is not watched with `snapshot_peers`")
            return False
        hosts = [json.loads(self._infos[f"keeper/{rank}"])["host"] for rank in range(self._world)]
        board.put("hosts", json.dumps(hosts))
        self._met = True
        if note := exposed(self._mode, hosts):
            _log.warning("stabwatch: %s.", note)
            self._event(KIND, None, did="note", why=note)
        return True


def exposed(mode: str, hosts: list[str]) -> str:
    """What the snapshots of a job on these hosts do not make up for; '' if they do for any one process or host."""
    nodes = in_node_order(hosts)
    if len(nodes) == 1:
        return "all ranks are on one host: snapshots in its memory make up for the loss of a process, not of the host"
    if mode == "parity":
        for ranks in nodes:
            if any(len(set(group(rank, hosts)) & set(ranks)) > 1 for rank in ranks):
                return (
                    f"some hosts have several ranks of one parity group of {GROUP}: the loss of such a host is the "
                    "loss of their state. snapshot_peers='copy' makes up for it"
                )
    return ""

"""Which ranks the records cover, since when, and why the others are missing. On rank 0, in the exchange's thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stabwatch.distributed.channel import unfit
from stabwatch.distributed.directory import Directory, Info
from stabwatch.distributed.layout import difference
from stabwatch.distributed.tree import RankSet, missing, size, union

MOST_NAMED = 16
"""Missing ranks of which the reason is looked up and written down."""
SETTLE = 1.0
"""Seconds after a change before it is reported, so that ranks that come or go together are one change."""
ASK = 3.0
"""Seconds to wait for the store's answers about missing ranks."""
LAST = 1.0
"""The same, when the run ends."""

NOT_THERE = (
    "no step of it was seen: it is not watched, has ended no step, or `attach` was called on it another number of times"
)
LEFT = "nothing comes from it any more, and it has not said why: its process has ended, or cannot be reached"
NOT_HEARD = "it is watched, and nothing came from it in time: it is stopped, killed or cannot be reached"
START = (
    "it was attached at another step of the training than rank 0, or these ranks do not wait for each other (are "
    "gradients averaged over them?): which of its steps belong to those of rank 0 is not known"
)
BRIEF = "nothing came from it in time for some steps; it has caught up"
NOT_KNOWN = "not known: the job's store does not answer"


@dataclass(frozen=True)
class CoverageNews:
    """From step `since` on, records cover `covered` of `world` ranks. missing: rank and reason, the first few."""

    covered: int
    world: int
    since: int
    missing: list[dict[str, Any]] = field(default_factory=list)


class RankCoverage:
    """Turns the ranks of each row into news, and finds reasons."""

    def __init__(self, world: int, mine: Info, description: str, directory: Directory) -> None:
        self._world = world
        self._mine = mine
        self._description = description
        self._directory = directory
        self._ranks: RankSet | None = None
        self._covered: RankSet = ()
        """All ranks that any row has had."""
        self._since = 0
        self._changed_at: float | None = None
        self._asked_at: float | None = None
        self._open: list[int] = []
        self._infos: dict[int, Info | None] = {}
        self._layouts: dict[str, str | None] = {}
        self._fresh = False
        self._brief: tuple[int, RankSet] | None = None
        """The step from which on the fewest ranks were covered, for a time too short to be told by itself."""

    def observe(self, step: int, ranks: RankSet) -> None:
        """The ranks of a row."""
        if ranks != self._ranks:
            passed = self._fresh or self._changed_at is not None
            if passed and self._ranks is not None and size(self._ranks) < size(ranks):
                fewer = self._brief is None or size(self._ranks) < size(self._brief[1])
                self._brief = (self._since, self._ranks) if fewer else self._brief
            self._ranks, self._since, self._fresh = ranks, step, True
            self._covered = union((self._covered, ranks))
            self._asked_at = None

    def news(self, now: float) -> Iterator[CoverageNews]:
        """What has changed and settled; reasons are asked for first, and waited for without blocking."""
        if self._fresh:
            self._changed_at, self._fresh = now, False
        if self._changed_at is None or self._ranks is None or now - self._changed_at < SETTLE:
            return
        if self._asked_at is None:
            self._asked_at = now
            self._ask()
        if now - self._asked_at < ASK and not self._answered():
            return
        self._changed_at = None
        yield from self._short()
        yield self._state()

    def last(self) -> Iterator[CoverageNews]:
        """What has changed and was not reported, at the end; waits a second for reasons."""
        if (self._fresh or self._changed_at is not None) and self._ranks is not None:
            self._ask()
            end = time.monotonic() + LAST
            while not self._answered() and time.monotonic() < end:
                time.sleep(0.01)
            yield from self._short()
            yield self._state()

    def _short(self) -> Iterator[CoverageNews]:
        if self._brief is not None:
            (since, ranks), self._brief = self._brief, None
            absent = [{"rank": rank, "reason": BRIEF} for rank in missing(ranks, self._world, MOST_NAMED)]
            yield CoverageNews(size(ranks), self._world, since, absent)

    def _ask(self) -> None:
        assert self._ranks is not None
        self._open = missing(self._ranks, self._world, MOST_NAMED)
        self._infos = {}
        for rank in self._open:
            self._directory.look_up(rank, self._found)

    def _found(self, rank: int, info: Info | None) -> None:
        self._infos[rank] = info
        if info is not None and info["digest"] != self._mine["digest"]:
            self._directory.layout(info["digest"], self._layouts.__setitem__)

    def _answered(self) -> bool:
        digests = {info["digest"] for info in self._infos.copy().values() if info is not None}
        known = digests - {self._mine["digest"]} <= self._layouts.keys()
        return known and all(rank in self._infos for rank in self._open)

    def _state(self) -> CoverageNews:
        assert self._ranks is not None
        reasons = [{"rank": rank, "reason": self._reason(rank)} for rank in self._open]
        return CoverageNews(size(self._ranks), self._world, self._since, reasons)

    def _reason(self, rank: int) -> str:
        if rank not in self._infos:
            return NOT_KNOWN
        info = self._infos[rank]
        if info is None:
            return LEFT if any(first <= rank < end for first, end in self._covered) else NOT_THERE
        what = unfit(info, self._mine)
        if what == "version":
            return f"it runs stabwatch {info['version'].partition(' ')[2]}, rank 0 another version"
        if what == "layout":
            other = self._layouts.get(info["digest"])
            return "it measures other things: " + (difference(self._description, other) if other else "not known which")
        if what == "start":
            return START
        return NOT_HEARD if info["state"] == "here" else f"its watch has ended ({info['state']})"

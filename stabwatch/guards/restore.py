"""All ranks go back to the newest snapshot that all of them still have in some keeper, or none does."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stabwatch.distributed import keepers
from stabwatch.distributed.keepers import Place
from stabwatch.guards.packed import make_places, misfit, unpacked
from stabwatch.guards.random_state import set_random_state
from stabwatch.guards.rank_board import RankBoard
from stabwatch.guards.snapshots import LiveState, Snapshot

NOTHING = "no process that holds states of an earlier attempt of this job was found on the hosts of its ranks"


@dataclass(frozen=True)
class Restored:
    """step: the number of the next one; None where nothing was put back. said: from where, or why not."""

    step: int | None
    said: str

    def told(self) -> tuple[str, str]:
        """In a word, and in a sentence without its end."""
        if self.step is None:
            return "not restored", f"no snapshot is put back: {self.said}"
        return "restored", f"the state before step {self.step} is put back, from {self.said}"


class Restoring:
    """One rank's part. found: the keepers on this host. Waits for the others `timeout` seconds at the most."""

    def __init__(self, rank: int, world: int, board: RankBoard, live: LiveState, timeout: float) -> None:
        self._rank, self._world = rank, world
        self._board = board
        self._live = live
        self._end = time.monotonic() + timeout

    def run(self, found: Sequence[Place]) -> Restored:
        """On every rank."""
        self._board.put(f"found/{self._rank}", json.dumps(found))
        plans = self._plans() if self._rank == 0 else iter(())
        number = 0
        while True:
            if self._rank == 0:
                self._publish(number, next(plans))
            mine = json.loads(self._hear(f"plan/{number}/{self._rank}") or '{"why": "rank 0 does not answer"}')
            if mine.get("step") is None:
                return Restored(None, mine["why"])
            kept, said = self._fetch(mine)
            if self._agreed(number, "" if kept is not None else said):
                assert kept is not None
                make_places(kept, self._live)
                self._live.put_back(kept)
                if kept.random is not None:
                    set_random_state(kept.random)
                return Restored(mine["step"], said)
            number += 1

    def _fetch(self, plan: dict[str, Any]) -> tuple[Snapshot | None, str]:
        data, said = keepers.fetch(plan["sources"], self._rank, plan["step"])
        if data is None:
            return None, said
        kept = unpacked(data)
        why = misfit(kept, self._live)
        return (None, why) if why else (kept, said)

    def _agreed(self, number: int, why: str) -> bool:
        """Does every rank have its state?"""
        self._board.put(f"got/{number}/{self._rank}", json.dumps(why))
        if self._rank == 0:
            reasons = self._gather(f"got/{number}")
            whys = [f"rank {r}: {why}" for r in range(self._world) if (why := reasons.get(r, "it does not answer"))]
            self._board.put(f"go/{number}", "; ".join(whys))
            self._whys += whys
        return self._hear(f"go/{number}") == ""

    def _hear(self, name: str) -> str | None:
        """A key that rank 0 writes, within the time and what rank 0 may wait after it."""
        return self._board.wait([name], lambda: time.monotonic() > self._end + 2.0).get(name)

    # -- on rank 0 ----------------------------------------------------------------------------------

    def _gather(self, name: str) -> dict[int, Any]:
        found = self._board.wait([f"{name}/{r}" for r in range(self._world)], lambda: time.monotonic() > self._end)
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found.items()}

    def _plans(self) -> Iterator[dict[str, Any]]:
        """First the best plan, then what can be done if that one fails; the last one is to do nothing."""
        self._whys: list[str] = []
        found = self._gather("found")
        absent = [r for r in range(self._world) if r not in found]
        if absent:
            self._whys.append(f"rank {absent[0]} has not called `restore` in time")
        else:
            for step, sources in candidates([place for places in found.values() for place in places], self._world):
                if isinstance(sources, str):
                    self._whys.append(sources)
                else:
                    yield {"step": step, "sources": sources}
        yield {"step": None, "why": "; ".join(self._whys) or NOTHING}

    def _publish(self, number: int, plan: dict[str, Any]) -> None:
        for rank in range(self._world):
            mine = plan | ({"sources": plan["sources"][rank]} if "sources" in plan else {})
            self._board.put(f"plan/{number}/{rank}", json.dumps(mine))


def candidates(places: Sequence[Place], world: int) -> Iterator[tuple[int, list[list[dict[str, Any]]] | str]]:
    """Steps of the newest attempt first, the newest step first: the sources of each rank, or why it cannot be."""
    attempts: dict[str, dict[str, Place]] = defaultdict(dict)
    for place in places:
        attempts[place["attempt"]][place["token"]] = place
    for attempt in sorted(attempts.values(), key=lambda a: -max(p["created"] for p in a.values())):
        there = list(attempt.values())
        if there[0]["world"] != world:
            yield -1, f"the snapshots are those of {there[0]['world']} ranks, and there are {world} now"
            continue
        for step in sorted({h["step"] for p in there for h in p["held"]}, reverse=True):
            sources = [_sources(rank, step, there) for rank in range(world)]
            lost = [rank for rank, mine in enumerate(sources) if not mine]
            names = ", ".join(map(str, lost[:8])) + (" and others" if len(lost) > 8 else "")
            left = "neither a copy nor what their parity needs" if there[0]["mode"] == "parity" else "no copy"
            yield step, f"of the snapshot of step {step} {left} is left for rank {names}" if lost else sources


def _sources(rank: int, step: int, places: Sequence[Place]) -> list[dict[str, Any]]:
    """What the state of a rank can be had from, the nearest first."""
    copies: dict[int, list[tuple[Place, dict[str, int]]]] = defaultdict(list)
    parities: dict[int, tuple[Place, dict[str, dict[str, int]]]] = {}
    for place in sorted(places, key=lambda place: int(place["rank"] != rank)):
        for held in (h for h in place["held"] if h["step"] == step):
            if held["what"] == "parity" and str(rank) in held["of"]:
                parities[place["rank"]] = (place, held["of"])
            for owner, facts in held["of"].items() if held["what"] == "copy" else ():
                copies[int(owner)].append((place, facts))
    found = [
        {"what": "copy", "named": f"the copy with rank {place['rank']}", "place": _address(place), **facts}
        for place, facts in copies[rank]
    ]
    with suppress(KeyError, IndexError):
        found += _from_parity(rank, copies, parities)
    return found


def _from_parity(
    rank: int,
    copies: dict[int, list[tuple[Place, dict[str, int]]]],
    parities: dict[int, tuple[Place, dict[str, dict[str, int]]]],
) -> Iterator[dict[str, Any]]:
    """The state of a rank from the parities and the states of the others of its group, if all are there."""
    if not parities:
        return
    first, (_, of) = next(iter(parities.items()))
    members = sorted({first, *map(int, of)})
    others = [m for m in members if m != rank]
    if all({other, *map(int, parities[other][1])} == set(members) for other in others):
        yield {
            "what": "parity", "named": f"the parity of ranks {', '.join(map(str, members))}", "members": members,
            "places": {str(m): _address(parities[m][0]) for m in others},
            "sizes": {str(m): copies[m][0][1]["size"] for m in others}, **of[str(rank)],
        }  # fmt: skip


def _address(place: Place) -> Place:
    return {key: place[key] for key in ("address", "port", "token")}

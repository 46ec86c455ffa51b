"""Which ranks hold up a job: from where its ranks are (`runlog/stacks.py`) to the event `held_up`.

A rank *waits* if it has entered a collective that has not ended. Of the others, those hold up the job that are in the
user's code, have raised an exception, or give no sign. Nothing is said while nobody waits, nor while whoever is missing
does what takes long in healthy runs too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stabwatch.alerts.templates import format_seconds
from stabwatch.runlog import Event
from stabwatch.runlog.stacks import Stand, read_stands

KIND = "held_up"
MOST_NAMED = 16
"""Ranks that are named in an event."""
WELL = ("finished", "replaced", "interrupted")
"""Reasons of an end that is no fault."""
LATER = 1.5
SETTLE = 2.0
"""A rank without a file counts as one that gives no sign when another one is overdue by `LATER` times its patience and
`SETTLE` seconds: ranks learn their patience from their own times."""


@dataclass(frozen=True)
class HeldUp:
    """step: the one that does not end. ranks: those that hold up the job, with what is known of them; none where it is
    not known which. waiting: how many ranks wait. severity: of the alert."""

    step: int
    world: int
    seconds: float
    waiting: int
    ranks: tuple[dict[str, Any], ...]
    what: str
    severity: str

    def to_event(self, time: float, by: str) -> Event:
        """The event of the run log. by: who has found it."""
        data = {name: value for name, value in asdict(self).items() if name != "step"}
        return Event(KIND, time, self.step, {**data, "ranks": list(self.ranks), "by": by})


def held_up(stands: Mapping[int, Stand], now: float) -> HeldUp | None:
    """Who holds up the job; None if nobody does, or it is too early to say. now: seconds since the epoch."""
    if not stands:
        return None
    known = sorted(stands.values(), key=lambda s: s.rank)
    raised = [s for s in known if s.state == "raised" and s.inside != "collective"]
    if raised:
        return _found(known, raised, [], [s for s in known if s not in raised])
    waiting, perhaps, absent = _sorted(known)
    if not waiting and not perhaps:
        return None
    settled = any(_is_late(s, now) for s in known)
    world = known[0].world
    silent = [r for r in range(world) if r not in stands][:MOST_NAMED] if settled else []
    if len(known) < world and not settled:
        return None
    holding = [s for s in absent if not s.busy or s.seconds >= s.busy_limit]
    holding = [s for s in holding if s.state != "left"] or holding
    if holding or silent:
        return _found(known, holding, silent, [*waiting, *perhaps])
    if absent or perhaps or not settled:
        return None
    return _found(known, [], [], waiting)


def _is_late(stand: Stand, now: float) -> bool:
    """Would a rank without a file have one by now, if it could?"""
    since = max(0.0, now - stand.time)
    if stand.state == "raised":
        return since > SETTLE
    return stand.state == "overdue" and stand.seconds + since > LATER * stand.patience + SETTLE


def _sorted(known: Sequence[Stand]) -> tuple[list[Stand], list[Stand], list[Stand]]:
    """Those that wait in a collective, those that may wait (in a backward pass), and those that do not."""
    last: dict[str, int] = {}
    for stand in known:
        for group, (number, _, _) in stand.entered.items():
            last[group] = max(number, last.get(group, 0))
    waiting, perhaps, absent = [], [], []
    for stand in known:
        newest = [(number == last[group], ended) for group, (number, ended, _) in stand.entered.items()]
        if stand.state in ("left", "lost"):
            absent.append(stand)
        elif stand.inside == "collective" or (True, False) in newest:
            waiting.append(stand)
        elif stand.inside == "backward" and all(is_last for is_last, _ in newest):
            perhaps.append(stand)
        else:
            absent.append(stand)
    return waiting, perhaps, absent


def _found(known: Sequence[Stand], holding: Sequence[Stand], silent: Sequence[int], others: Sequence[Stand]) -> HeldUp:
    world = known[0].world
    ranks = [{"rank": s.rank, "state": s.state, "why": _why(s), **_where(s)} for s in holding[:MOST_NAMED]]
    ranks += [{"rank": r, "state": "silent", "why": NO_SIGN} for r in silent]
    gone = bool(silent) or any(s.state in ("raised", "lost") for s in holding)
    step, seconds = min(s.step for s in (*holding, *others)), max(s.seconds for s in known)
    texts = [f"rank {r['rank']} {r['why']}" for r in sorted(ranks, key=lambda r: int(r["rank"]))]
    what = "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
    what = f"{what[0].upper()}{what[1:]}." if what else f"No rank is missing, {_where_all(others)}."
    if others and ranks:
        after = "failed after that" if all(s.state == "raised" for s in others) else f"wait{_in(others)}"
        verb = after if len(others) > 1 or after.startswith("failed") else after.replace("wait", "waits", 1)
        since = "" if all(s.state == "raised" for s in others) else f", for {format_seconds(seconds)}"
        what += f" {len(others)} of {world} ranks {verb}{since}."
    return HeldUp(step, world, seconds, len(others), tuple(ranks), what, "critical" if gone else "warning")


NO_SIGN = "gives no sign: it is stopped, killed, or does not run Python code"


def _why(stand: Stand) -> str:
    """What a rank does, after its name."""
    place = f" at {stand.place}" if stand.place is not None else ""
    if stand.state == "left":
        return f"is not watched: {stand.error}"
    if stand.state == "lost":
        return f"is gone: {stand.error}"
    if stand.state == "raised":
        return f"raised {stand.error}{place}"
    where = {"loader": ", in its data loader", "backward": ", in a backward pass"}.get(stand.inside, "")
    return f"has not come: it is{place or ' outside of any code of the user'}{where}" + (
        f", and {stand.busy}" if stand.busy else ""
    )


def _where(stand: Stand) -> dict[str, Any]:
    return {} if stand.place is None else asdict(stand.place)


def _calls(stands: Iterable[Stand]) -> list[str]:
    """Names of what ranks wait in."""
    found: dict[str, None] = {}
    for stand in stands:
        running = [name for _, ended, name in stand.entered.values() if not ended]
        found |= dict.fromkeys(running[:1] or [stand.call])
    return [name for name in found if name]


def _in(stands: Sequence[Stand]) -> str:
    calls = _calls(s for s in stands if s.state != "raised")
    return f" in {' and '.join(calls[:3])}" if calls else ""


def _where_all(stands: Sequence[Stand]) -> str:
    """All ranks are in collectives, and none ends."""
    places = {s.rank: f"rank {s.rank} at {s.place}" for s in stands if s.place is not None}
    calls = _calls(stands)
    if len(calls) > 1 or len({str(s.place) for s in stands}) > 1:
        first: dict[str, str] = {}
        for s in stands:
            first.setdefault(str(s.place), places.get(s.rank, f"rank {s.rank}"))
        return f"and ranks are in different collectives: {'; '.join(list(first.values())[:3])}"
    return f"all are in the same collective{f' ({calls[0]})' if calls else ''}: look at the network and the devices"


def held_up_in(run: Path, events: Sequence[Event], now: float, by: str) -> Event | None:
    """The event that the newest attempt of a run lacks, from the files of its ranks; None if there is none."""
    attempt = sum(event.kind == "start" for event in events)
    if any(e.kind == "end" and e.data.get("reason") in WELL for e in _since_start(events)):
        return None  # rank 0 has ended as it should; what other ranks do after that is not of the run
    stands = read_stands(run, attempt)
    found = held_up(stands, now)
    if found is None or any(e.kind == KIND and (e.step or 0) >= found.step for e in _since_start(events)):
        return None
    return found.to_event(max(stand.time for stand in stands.values()), by)


def failed_in(run: Path, attempt: int) -> str:
    """Which ranks an attempt of a run failed on, from the files of its ranks; '' where that is not known."""
    stands = read_stands(run, attempt)
    found = held_up(stands, math.inf)
    if found is None:  # nobody was seen to wait
        return "; ".join(f"rank {rank} {_why(s)}" for rank, s in sorted(stands.items()) if s.state == "lost")
    return "; ".join(f"rank {r['rank']} {r['why']}" for r in found.ranks[:3])


def _since_start(events: Sequence[Event]) -> Iterable[Event]:
    for event in reversed(events):
        if event.kind == "start":
            return
        yield event

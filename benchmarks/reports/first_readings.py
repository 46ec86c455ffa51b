"""What came out at the first reading of each set of cases and workloads, before any rule was changed for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import table


class FirstReading(NamedTuple):
    """Cases that were written when the rules were there, their causes noted before a run was seen.

    modules: of `benchmarks/reports/cases/`. where: right places of those that a case names. alarms: in the twins, of so
    many steps; None where they were not counted. siblings: written after the mends for the cases before.
    """

    modules: str
    cases: int
    found: int
    causes: int
    where: tuple[int, int] = (0, 0)
    alarms: tuple[int, int] | None = None
    siblings: bool = False


class FirstHealthy(NamedTuple):
    """Healthy workloads. alarms: of so many steps, at default settings. every: the same with everything measured."""

    modules: str
    alarms: tuple[int, int]
    every: tuple[int, int] | None = None
    note: str = ""


CASES = (
    FirstReading("unseen", 12, 4, 4),
    FirstReading("later", 17, 14, 7, (0, 2)),
    FirstReading("fresh_setup, fresh_data", 29, 16, 9, (1, 4), (1, 7650)),
    FirstReading("typical_values, typical_loops", 24, 18, 15, (4, 4), (2, 6300)),
    FirstReading("typical_again", 8, 7, 5, siblings=True),
    FirstReading("asked_values, asked_loops", 27, 16, 14, (2, 2), (4, 6940)),
    FirstReading("asked_again", 10, 10, 9, (1, 1), (0, 2720), siblings=True),
    FirstReading("siblings_values, siblings_loops", 23, 18, 13, (4, 6), (0, 5780)),
    FirstReading("siblings_again", 10, 9, 8, (2, 2), (0, 2190), siblings=True),
    FirstReading("guises_values, guises_loops", 25, 17, 17, (4, 7), (2, 6230)),
    FirstReading("guises_again", 7, 6, 5, (0, 0), (0, 1860), siblings=True),
    FirstReading("forum_values, forum_loops", 33, 26, 21, (4, 8), (0, 7420)),
    FirstReading("forum_again", 7, 7, 7, (0, 0), (0, 1860), siblings=True),
    FirstReading("modes", 4, 4, 4, (0, 0), (0, 1000), siblings=True),
    FirstReading("world_values, world_values_more", 18, 15, 14, (3, 4), (2, 3880)),
    FirstReading("world_loops, world_loops_more", 20, 13, 9, (2, 4), (3, 5420)),
    FirstReading("public_values, public_values_more", 19, 11, 10, (1, 2), (1, 4640)),
    FirstReading("public_again", 8, 7, 7, (0, 0), (0, 2250), siblings=True),
    FirstReading("world_again", 4, 4, 2, (0, 1), (0, 1150), siblings=True),
    FirstReading("world_loops_again", 6, 6, 6, (0, 0), (0, 1450), siblings=True),
    FirstReading("misses_again", 11, 10, 9, (0, 0), (0, 2800), siblings=True),
    FirstReading("public_loops, public_loops_more", 18, 14, 11, (0, 1), (0, 4190)),
    FirstReading("public_loops_again", 8, 7, 6, (0, 0), (0, 2030), siblings=True),
)
HEALTHY = (
    FirstHealthy("unseen", (16, 4980), note="13 where the data change"),
    FirstHealthy("fresh", (1, 10200), note="true: a plateau scheduler had taken the rate to nothing"),
    FirstHealthy("typical", (1, 7280)),
    FirstHealthy("common, common_more", (0, 7500)),
    FirstHealthy("again, again_more", (0, 7200), (2, 2000)),
    FirstHealthy("others, others_more", (1, 7900)),
    FirstHealthy("by_hand", (2, 6400), (0, 2000), "both where a second task begins with a head of its own"),
    FirstHealthy("world, world_models, world_more, world_tuning", (5, 16094), (0, 4300), "2 of them true"),
    FirstHealthy("world_again", (2, 4100), note="siblings of the row above"),
)


def _of(pair: tuple[int, int] | None) -> str:
    return "" if pair is None or not pair[1] else f"{pair[0]} of {pair[1]:,}"


def first_readings() -> str:
    """Two tables, of the cases and of the healthy workloads, and sums of the first."""
    cases = table(
        ("cases", "found", "first cause right", "where right", "alarms in steps of the twins", ""),
        [
            (r.modules, f"{r.found} of {r.cases}", r.causes, _of(r.where), _of(r.alarms), "siblings" * r.siblings)
            for r in CASES
        ],
    )
    healthy = table(
        ("healthy workloads", "alarms in steps, default", "everything measured", ""),
        [(r.modules, _of(r.alarms), _of(r.every), r.note) for r in HEALTHY],
    )
    fresh, siblings = (_sum([r for r in CASES if r.siblings == kind]) for kind in (False, True))
    return f"{cases}\n\nTogether, without the siblings: {fresh}. Siblings: {siblings}.\n\n{healthy}"


def _sum(readings: Sequence[FirstReading]) -> str:
    cases, found, causes = (sum(r[i] for r in readings) for i in (1, 2, 3))
    return f"{found} of {cases} found ({found / cases:.0%}), {causes} first causes right ({causes / cases:.0%})"

"""A session among others: what ranks exchange, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import stabwatch
from stabwatch.distributed.coverage import CoverageNews
from stabwatch.distributed.exchange import Exchange, Merged
from stabwatch.distributed.health import SHARDED
from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.ranks import Ranks
from stabwatch.runlog import RecordLayout
from stabwatch.runtime.taps import Taps

_log = logging.getLogger("stabwatch")


def open_exchange(
    ranks: Ranks,
    taps: Taps,
    merged: Callable[[Merged], None],
    event: Callable[..., None],
    report: Callable[[Exception], None],
) -> Exchange | None:
    """The exchange of this rank; None with one rank, with `reduce="never"`, or where the job has no store.

    event: writes an event of the run log (kind, step, data), if this rank has one.
    """
    if not ranks.wanted:
        return None

    def layout() -> MergeLayout:
        if taps.topology.sharded:
            taps.coverage.unmeasured("replica", "", SHARDED)
        taps.health.coupled = ranks.coupled
        kinds, holds = taps.topology.kinds(taps.layout.cells)
        return MergeLayout(RecordLayout.build((*taps.layout.cells, *taps.health.sources)), kinds, holds)

    def changed(news: CoverageNews) -> None:
        data: dict[str, Any] = asdict(news)
        event("ranks", news.since, **data)
        if news.missing:
            first = news.missing[0]
            _log.warning(
                "stabwatch: records cover %d of %d ranks from step %d on. Rank %d: %s.",
                news.covered, news.world, news.since, first["rank"], first["reason"],
            )  # fmt: skip

    def failed(error: Exception) -> None:
        event("ranks", None, covered=1, world=ranks.world, missing=[], reason=f"the exchange failed: {error!r}")
        report(error)

    try:
        return Exchange(
            ranks.next_key("exchange"), ranks.rank, ranks.world, stabwatch.__version__, taps.health, layout, merged,
            changed, failed,
        )  # fmt: skip
    except Exception as error:
        failed(error)
        return None

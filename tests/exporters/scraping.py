"""All scrapes of a run, as an agent would have answered them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import Metric

from stabwatch.alerts.timeline import timeline
from stabwatch.exporters.openmetrics import Scraper
from stabwatch.runlog import Event
from stabwatch.runlog.source import Source


def scrapes(log: Source, events: Iterable[Event], interval: float) -> Iterator[tuple[float, list[Metric]]]:
    """Time and metric families of each scrape."""
    scraper = Scraper(log.meta, interval)
    for item in timeline(log, events):
        yield from scraper.write_event(item) if isinstance(item, Event) else scraper.write(item)
    yield from scraper.finish()

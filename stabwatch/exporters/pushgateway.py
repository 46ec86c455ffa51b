"""The sink for a Prometheus Pushgateway, for jobs that no Prometheus can reach: the last values of /metrics."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stabwatch.errors import ConfigError, SinkError
from stabwatch.exporters.openmetrics import Scrape, Scraper, scrape_interval
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch

ADDRESS = "STABWATCH_PUSHGATEWAY"
TIMEOUT = 10.0


class PushgatewaySink:
    """Pushes to the group job="stabwatch", run=<run>, which keeps the last values when the run has ended.

    interval: seconds between pushes. Counts pushes. Raises ConfigError without an address, and SinkError.
    """

    def __init__(self, interval: float | None = None) -> None:
        self._address = os.environ.get(ADDRESS, "")
        if not self._address:
            raise ConfigError(f"The sink pushgateway needs the address of a Pushgateway in {ADDRESS}.")
        self._interval = interval
        self._pushes = 0

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        self._run = run.meta.run
        self._scraper = Scraper(run.meta, scrape_interval(run, self._interval))
        self._families = _Families()
        self._registry = CollectorRegistry()
        self._registry.register(self._families)

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        self._push(self._scraper.write(batch))

    def write_event(self, event: Event) -> None:
        """See Sink."""
        self._push(self._scraper.write_event(event))

    def close(self) -> int:
        """See Sink."""
        self._push(self._scraper.finish())
        return self._pushes

    def _push(self, scrapes: Iterable[Scrape]) -> None:
        newest = deque(scrapes, maxlen=1)  # a Pushgateway has no past: of several scrapes it would keep the last one
        if not newest:
            return
        self._families.shown = newest[0][1]
        try:
            push_to_gateway(
                self._address, "stabwatch", self._registry, {"run": self._run}, timeout=TIMEOUT, handler=_handler
            )
        except urllib.error.HTTPError as error:
            raise SinkError(f"The Pushgateway answered {error.code} {error.reason}.") from error
        except OSError as error:
            raise SinkError(f"The Pushgateway cannot be reached: {getattr(error, 'reason', error)}.") from error
        self._pushes += 1


def _handler(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """Sends one request, and closes its connection, which prometheus_client's own handler leaves open."""

    def send() -> None:
        with urllib.request.urlopen(urllib.request.Request(url, data, dict(headers), method=method), timeout=timeout):
            pass

    return send


class _Families(Collector):
    """The families of the last scrape."""

    def __init__(self) -> None:
        self.shown: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        return self.shown

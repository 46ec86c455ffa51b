"""The sink for OpenTelemetry: what a scrape of /metrics would have shown, as OTLP over HTTP.

Names, labels and values are those of /metrics, and a point has the time of its scrape. The address, headers and
time-outs are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, ...).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric as Family

from stabwatch.errors import SinkError
from stabwatch.exporters.openmetrics import Scrape, Scraper, scrape_interval
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch

BATCH = 5_000
"""Points in a request."""


class OtlpSink:
    """Sends points; counts them. Raises SinkError when the receiver does not accept them.

    interval: seconds between scrapes; 15, or less for a finished run of less than an hour.
    """

    def __init__(self, interval: float | None = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import export

        self._sdk = export
        self._exporter = OTLPMetricExporter()
        self._interval = interval
        self._sent = 0

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._scraper = Scraper(run.meta, scrape_interval(run, self._interval))
        self._began = round(1e9 * run.meta.created)
        version = str(run.meta.versions.get("stabwatch", ""))
        self._scope = InstrumentationScope("stabwatch", version)
        self._resource = Resource.create({"service.name": "stabwatch", "host.name": run.meta.host})

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        self._send(self._scraper.write(batch))

    def write_event(self, event: Event) -> None:
        """See Sink."""
        self._send(self._scraper.write_event(event))

    def close(self) -> int:
        """See Sink."""
        self._send(self._scraper.finish())
        self._exporter.shutdown()
        return self._sent

    def _send(self, scrapes: Iterable[Scrape]) -> None:
        for time, families in scrapes:
            metrics: list[Any] = []
            waiting = 0
            for metric in (self._metric(family, round(1e9 * time)) for family in families if family.samples):
                metrics.append(metric)
                waiting += len(metric.data.data_points)
                if waiting >= BATCH:
                    self._post(metrics, waiting)
                    metrics, waiting = [], 0
            if metrics:
                self._post(metrics, waiting)

    def _metric(self, family: Family, time: int) -> Any:
        counter = family.type == "counter"
        name = family.samples[0].name
        sdk = self._sdk
        points = [
            sdk.NumberDataPoint(dict(s.labels), self._began if counter else 0, time, float(s.value))
            for s in family.samples
        ]
        if counter:
            data = sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=True)
        else:
            data = sdk.Gauge(points)
        return sdk.Metric(name, family.documentation, "", data)

    def _post(self, metrics: list[Any], points: int) -> None:
        sdk = self._sdk
        scope = sdk.ScopeMetrics(self._scope, metrics, "")
        data = sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])
        if self._exporter.export(data) is not sdk.MetricExportResult.SUCCESS:
            self._exporter.shutdown()
            raise SinkError("The OTLP receiver did not accept the points; is OTEL_EXPORTER_OTLP_ENDPOINT right?")
        self._sent += points

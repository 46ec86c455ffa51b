"""The built-in sinks, each declared once, and how a sink is found by name.

A sink's imports happen when it is created.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from stabwatch.errors import ConfigError
from stabwatch.exporters.sink import Sink, SinkDeclaration, load_sinks


def _openmetrics(out: BinaryIO, interval: float | None = None) -> Sink:
    from stabwatch.exporters.openmetrics import OpenMetricsSink

    return OpenMetricsSink(out, interval)


def _parquet(path: Path, wide: bool = False) -> Sink:
    from stabwatch.exporters.tables import ParquetSink

    return ParquetSink(path, wide)


def _csv(out: BinaryIO, wide: bool = False) -> Sink:
    from stabwatch.exporters.tables import CsvSink

    return CsvSink(out, wide)


def _tensorboard(folder: Path) -> Sink:
    from stabwatch.exporters.tensorboard import TensorBoardSink

    return TensorBoardSink(folder)


def _otlp(interval: float | None = None) -> Sink:
    from stabwatch.exporters.otlp import OtlpSink

    return OtlpSink(interval)


def _pushgateway(interval: float | None = None) -> Sink:
    from stabwatch.exporters.pushgateway import PushgatewaySink

    return PushgatewaySink(interval)


def _wandb() -> Sink:
    from stabwatch.exporters.wandb import WandbSink

    return WandbSink()


def _mlflow() -> Sink:
    from stabwatch.exporters.mlflow import MlflowSink

    return MlflowSink()


def _trackio() -> Sink:
    from stabwatch.exporters.trackio import TrackioSink

    return TrackioSink()


SINKS = {
    sink.name: sink
    for sink in (
        SinkDeclaration(
            name="openmetrics", help="Text for `promtool tsdb create-blocks-from openmetrics`.", make=_openmetrics,
            target="stream", suffix=".om", unit="samples", options=("interval",),
        ),
        SinkDeclaration(
            name="parquet", help="A Parquet file.", make=_parquet, suffix=".parquet", unit="rows", options=("wide",)
        ),
        SinkDeclaration(
            name="csv", help="A CSV file.", make=_csv, target="stream", suffix=".csv", unit="rows", options=("wide",)
        ),
        SinkDeclaration(
            name="tensorboard", help="A folder with a TensorBoard event file.", make=_tensorboard,
            suffix="-tensorboard", live=True, modules=("tensorboard",), extra="tensorboard",
        ),
        SinkDeclaration(
            name="otlp", help="OpenTelemetry over HTTP, to OTEL_EXPORTER_OTLP_ENDPOINT.", make=_otlp, target="none",
            unit="points", options=("interval",), live=True, replays=True,
            modules=("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"), extra="otlp",
        ),
        SinkDeclaration(
            name="pushgateway", help="The last values, to the Pushgateway at STABWATCH_PUSHGATEWAY.",
            make=_pushgateway, target="none", unit="pushes", options=("interval",), live=True, replays=True,
        ),
        SinkDeclaration(
            name="wandb", help="A run of Weights & Biases.", make=_wandb, target="none", live=True, modules=("wandb",),
            extra="wandb",
        ),
        SinkDeclaration(
            name="mlflow", help="A run of MLflow, at MLFLOW_TRACKING_URI.", make=_mlflow, target="none", live=True,
            modules=("mlflow",), extra="mlflow",
        ),
        SinkDeclaration(
            name="trackio", help="A run of trackio.", make=_trackio, target="none", live=True, modules=("trackio",),
            extra="trackio",
        ),
    )
}  # fmt: skip


def find_sink(name: str) -> SinkDeclaration:
    """A built-in sink, or one of an installed package. Raises ConfigError."""
    others = {} if name in SINKS else load_sinks()
    found = {**others, **SINKS}
    if name not in found:
        close = get_close_matches(name, found, 1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        offered = ", ".join(sorted(others)) or "none"
        raise ConfigError(
            f"No sink is called {name!r}.{meant} Built in: {', '.join(SINKS)}. Of installed packages: {offered}."
        )
    return found[name]


def live_sinks(names: Iterable[str]) -> list[SinkDeclaration]:
    """Sinks that can follow a run. Raises ConfigError, and MissingExtraError."""
    chosen = [find_sink(name) for name in dict.fromkeys(names)]
    for sink in chosen:
        if not sink.live:
            raise ConfigError(f"The sink {sink.name} cannot follow a run: use `stabwatch export` when it has ended.")
        sink.check_installed()
    return chosen

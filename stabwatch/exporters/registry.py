"""The built-in sinks, each declared once. The imports of a sink happen when it is created."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from stabwatch.exporters.sink import Sink, SinkDeclaration


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
            suffix="-tensorboard",
        ),
    )
}  # fmt: skip

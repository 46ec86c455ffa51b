"""A run log as a table, long or wide: the sinks for CSV and Parquet.

Long: one row for each measured value: step, time, signal, layer, value. Wide: one row for each record: step, time, and
a column `signal` or `signal/layer` for each series; null where it was not measured. A measured value may be NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from stabwatch.exporters.declared import own_name
from stabwatch.exporters.prometheus import clean
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch, SeriesKey
from stabwatch.runlog.schema import common_series
from stabwatch.runlog.source import record_slice

VALUES = 1 << 20
"""Values in memory at a time."""
GROUP = 1 << 20
"""Values in a row group of Parquet, so that small batches are written together."""
_TIME = pa.timestamp("us", tz="UTC")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_RECORD = [("step", pa.int64()), ("time", _TIME)]
LONG = pa.schema([*_RECORD, ("signal", _NAMES), ("layer", _NAMES), ("value", pa.float64())])


def column(key: SeriesKey) -> str:
    """The name of a series as a column, or as a tag of TensorBoard, which groups tags by the part before the slash."""
    name = own_name(key)
    return clean(f"{name.signal}/{name.layer}" if name.layer else name.signal)


def pieces(batch: RecordBatch) -> Iterator[RecordBatch]:
    """A batch in parts of at most `VALUES` values."""
    records = max(1, VALUES // max(1, len(batch.layout.keys)))
    for start in range(0, len(batch), records):
        yield record_slice(batch, start, start + records)


class TableSink:
    """Turns records into rows and buffers them; a subclass writes tables of at least `GROUP` values. Counts rows."""

    def __init__(self, wide: bool = False) -> None:
        self._wide = wide
        self._rows = self._values = 0
        self._batches: list[pa.RecordBatch] = []

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        self._keys = common_series(list(run.layouts))
        columns = [(column(key), pa.float64()) for key in self._keys]
        self.schema: pa.Schema = pa.schema([*_RECORD, *columns]) if self._wide else LONG
        self._begin(run)

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        for piece in pieces(batch):
            rows = self._as_wide(piece) if self._wide else _as_long(piece)
            self._batches.append(rows)
            self._rows, self._values = self._rows + rows.num_rows, self._values + rows.num_rows * rows.num_columns
            if self._values >= GROUP:
                self._flush()

    def write_event(self, event: Event) -> None:
        """Ignored: a table has no events."""

    def close(self) -> int:
        """See Sink."""
        if self._batches or not self._rows:
            self._flush()
        self._end()
        return self._rows

    def _flush(self) -> None:
        self._put(pa.Table.from_batches(self._batches, self.schema))
        self._batches, self._values = [], 0

    def _begin(self, run: RunHeader) -> None:
        raise NotImplementedError

    def _put(self, layout: pa.Table) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _as_wide(self, batch: RecordBatch) -> pa.RecordBatch:
        at = {key: i for i, key in enumerate(batch.layout.keys)}
        values, measured = batch.values, batch.measured
        empty = pa.array(np.empty(len(batch)), mask=np.ones(len(batch), bool))
        columns = [
            pa.array(values[:, at[key]], mask=~measured[:, at[key]]) if key in at else empty for key in self._keys
        ]
        arrays = [pa.array(batch.steps), stamps(batch.times), *columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class ParquetSink(TableSink):
    """Writes a Parquet file; the run's metadata is in its schema."""

    def __init__(self, path: Path, wide: bool = False) -> None:
        super().__init__(wide)
        self._path = path

    def _begin(self, run: RunHeader) -> None:
        import pyarrow.parquet as pq

        metadata = {"stabwatch.run": run.meta.run, "stabwatch.meta": run.meta.to_json()}
        self._writer = pq.ParquetWriter(self._path, self.schema.with_metadata(metadata), compression="zstd")

    def _put(self, layout: pa.Table) -> None:
        self._writer.write_table(layout, row_group_size=GROUP)

    def _end(self) -> None:
        self._writer.close()


class CsvSink(TableSink):
    """Writes CSV with a header; `time` in seconds since the epoch, NaN as `nan`, null as an empty cell."""

    def __init__(self, out: BinaryIO, wide: bool = False) -> None:
        super().__init__(wide)
        self._out = out

    def _begin(self, run: RunHeader) -> None:
        import pyarrow.csv as csv

        plain = {_TIME: pa.float64(), _NAMES: pa.string()}
        self._plain = pa.schema([pa.field(f.name, plain.get(f.type, f.type)) for f in self.schema])
        self._writer = csv.CSVWriter(self._out, self._plain)

    def _put(self, layout: pa.Table) -> None:
        seconds = compute.divide(layout["time"].cast(pa.int64()).cast(pa.float64()), 1e6)
        self._writer.write_table(layout.set_column(1, "time", seconds).cast(self._plain))

    def _end(self) -> None:
        self._writer.close()


def _as_long(block: RecordBatch) -> pa.RecordBatch:
    rows, columns = np.nonzero(block.measured)
    keys = [own_name(key) for key in block.layout.keys]
    signals = np.array([clean(key.signal) for key in keys], dtype=object)
    layers = np.array([clean(key.layer) for key in keys], dtype=object)
    arrays = [
        pa.array(block.steps[rows]),
        stamps(block.times[rows]),
        pa.array(signals[columns]).dictionary_encode(),
        pa.array(layers[columns]).dictionary_encode(),
        pa.array(block.values[rows, columns]),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LONG)


def stamps(times: NDArray[np.float64]) -> pa.Array:
    """Times, in seconds since the epoch, as Arrow time stamps; NaN is null."""
    unknown = np.isnan(times)
    return pa.array(np.round(np.where(unknown, 0, times) * 1e6).astype(np.int64), mask=unknown).cast(_TIME)

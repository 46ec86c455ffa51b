"""The sink for TensorBoard: an event file with one summary per record, by TensorBoard's own writer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from stabwatch.exporters.sink import RunHeader
from stabwatch.exporters.tables import column, pieces
from stabwatch.runlog import Event, RecordBatch


class TensorBoardSink:
    """Writes an event file into a new folder; counts values."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = folder
        self._event, self._make_writer = event_pb2.Event, RecordWriter
        self._written = 0

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        self._folder.mkdir(exist_ok=run.live)
        host = re.sub(r"[^A-Za-z0-9._-]", "_", run.meta.host)
        name = f"events.out.tfevents.{int(run.meta.created)}.{host}.stabwatch"
        parts = sum(1 for _ in self._folder.iterdir())  # of a live sink that was started again
        name += f".{parts}" * bool(parts)
        self._file = open(self._folder / name, "wb")  # noqa: SIM115
        self._records = self._make_writer(self._file)
        head = self._event(wall_time=run.meta.created, file_version="brain.Event:2")
        self._records.write(head.SerializeToString())

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        tags = [column(key) for key in batch.layout.keys]
        for piece in pieces(batch):
            values, measured = piece.values, piece.measured
            for i, (step, time) in enumerate(zip(piece.steps.tolist(), piece.times.tolist(), strict=True)):
                event = self._event(wall_time=time, step=step)
                for at in np.flatnonzero(measured[i]).tolist():
                    event.summary.value.add(tag=tags[at], simple_value=values[i, at])
                    self._written += 1
                self._records.write(event.SerializeToString())
        self._file.flush()  # TensorBoard reads while the run goes on

    def write_event(self, event: Event) -> None:
        """Ignored: scalars have no events."""

    def close(self) -> int:
        """See Sink."""
        self._file.close()
        return self._written

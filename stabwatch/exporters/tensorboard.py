"""A run log as a TensorBoard event file, one summary with all values for each record. TensorBoard's own writer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stabwatch.errors import MissingExtraError
from stabwatch.exporters.declared import adopt
from stabwatch.exporters.tables import column, pieces
from stabwatch.runlog.source import Source


def write_tensorboard(log: Source, folder: Path, progress: Callable[[Source], None] | None = None) -> int:
    """Write an event file into a new folder; gives the number of values. Raises MissingExtraError."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise MissingExtraError(
            f"TensorBoard's writer is not installed ({error}): pip install 'stabwatch[tensorboard]'."
        ) from error
    adopt(log.meta.signals)
    folder.mkdir()
    host = re.sub(r"[^A-Za-z0-9._-]", "_", log.meta.host)
    written = 0
    with open(folder / f"events.out.tfevents.{int(log.meta.created)}.{host}.stabwatch", "wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=log.meta.created, file_version="brain.Event:2").SerializeToString())
        for block in pieces(log, progress):
            tags = [column(key) for key in block.table.keys]
            values, measured = block.values, block.measured
            for i, (step, time) in enumerate(zip(block.steps.tolist(), block.times.tolist(), strict=True)):
                event = Event(wall_time=time, step=step)
                for at in np.flatnonzero(measured[i]).tolist():
                    event.summary.value.add(tag=tags[at], simple_value=values[i, at])
                    written += 1
                records.write(event.SerializeToString())
    return written

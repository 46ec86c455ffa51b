"""The sink for trackio: a run of the project TRACKIO_PROJECT, or `stabwatch`. TRACKIO_DIR says where it is kept."""

from __future__ import annotations

import os

from stabwatch.exporters.scalars import facts, scalars
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch

PROJECT = "stabwatch"


class TrackioSink:
    """Logs each record; counts values."""

    def __init__(self) -> None:
        self._written = 0

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(
            project, name=run.meta.run, resume="allow", config=facts(run.meta), embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        for one in scalars(batch):
            self._run.log(one.values, step=one.step)
            self._written += len(one.values)

    def write_event(self, event: Event) -> None:
        """Ignored: trackio has scalars."""

    def close(self) -> int:
        """See Sink."""
        self._run.finish()
        return self._written

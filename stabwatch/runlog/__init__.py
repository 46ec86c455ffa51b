"""The run log: the only interface between the training process and everything that reads from it.

See `schema.py` for the content of a run folder, `writer.py` for writing, `reader.py` for reading.
"""

from stabwatch.runlog.attempts import read_run as read_run
from stabwatch.runlog.folder import RunFolder as RunFolder
from stabwatch.runlog.folder import append_event as append_event
from stabwatch.runlog.reader import Run as Run
from stabwatch.runlog.reader import RunLog as RunLog
from stabwatch.runlog.reader import beside_targets as beside_targets
from stabwatch.runlog.reader import find_run as find_run
from stabwatch.runlog.reader import find_runs as find_runs
from stabwatch.runlog.reader import holds_run as holds_run
from stabwatch.runlog.reader import wait_for_run as wait_for_run
from stabwatch.runlog.schema import Accumulator as Accumulator
from stabwatch.runlog.schema import Event as Event
from stabwatch.runlog.schema import Meta as Meta
from stabwatch.runlog.schema import RecordBatch as RecordBatch
from stabwatch.runlog.schema import RecordLayout as RecordLayout
from stabwatch.runlog.schema import SeriesKey as SeriesKey
from stabwatch.runlog.schema import host_accumulator as host_accumulator
from stabwatch.runlog.schema import plain as plain
from stabwatch.runlog.writer import Writer as Writer

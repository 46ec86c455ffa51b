"""Run logs as data frames: `open_run(path).series(...)` for one run, `runs(root)` for a table of all."""

from stabwatch.analysis.query.recorded_run import RecordedRun as RecordedRun
from stabwatch.analysis.query.recorded_run import open_run as open_run
from stabwatch.analysis.query.run_table import runs as runs

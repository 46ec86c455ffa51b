"""MLflow's file store: `mlruns/EXPERIMENT/RUN/metrics/NAME`, a file per metric with lines `milliseconds value step`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from stabwatch.analysis.readers.log import Log, LogRun
from stabwatch.analysis.readers.names import number
from stabwatch.analysis.readers.run_builder import MOST_COLUMNS, RunBuilder
from stabwatch.errors import LogError

_POINT = re.compile(r"(\d{12,14}) (\S+) (-?\d{1,18})\s*$")
_NAME = re.compile(r"^run_name: *['\"]?([^'\"\n]+)", re.MULTILINE)
FORMAT = "MLflow file store"
COVERS = "the folder `mlruns`, an experiment or a run in it, the folder `metrics` of a run, or one metric's file"
MOST_RUNS, _LARGEST = 256, 64 << 20


def holds_store(folder: Path) -> bool:
    """Whether a folder is a store, an experiment, a run, or the metrics of a run."""
    return next(_runs(folder), None) is not None


def is_metric(text: str) -> bool:
    """Whether a text is a metric's file."""
    lines = text.splitlines()[:20]
    return len(lines) > 0 and all(_POINT.match(line) for line in lines[:-1] or lines)


def read_store(folder: Path) -> Log:
    """The runs of a store. Raises LogError."""
    runs, found = [], list(_runs(folder))
    for metrics in found[:MOST_RUNS]:
        files = sorted(path for path in metrics.rglob("*") if path.is_file())[:MOST_COLUMNS]
        run = read_metrics(metrics.parent, {path.relative_to(metrics).as_posix(): path for path in files})
        if run.columns:
            runs.append(run)
    if not runs:
        raise LogError(f"{folder} is an {FORMAT} without a metric.")
    notes = (f"{len(runs)} run{'s' * (len(runs) != 1)}, one file for each metric.",)
    return Log(folder, FORMAT, tuple(runs), notes if len(found) <= MOST_RUNS else (*notes, "Later runs are left out."))


def read_metrics(folder: Path, files: dict[str, Path]) -> LogRun:
    """One run from the files of its metrics, by name."""
    records: dict[int, tuple[float, dict[str, float]]] = {}
    for name, path in files.items():
        for time, value, step in _points(path):
            seconds, values = records.setdefault(step, (time, {}))
            values[name] = value  # the last of several values of a step
            records[step] = min(seconds, time), values
    builder = RunBuilder(_name(folder))
    for step in sorted(records):
        time, values = records[step]
        builder.add(step, -1, values, time)
    return builder.run()


def _points(path: Path) -> Iterator[tuple[float, float, int]]:
    """Seconds, value and step of each line; other lines are left out."""
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for line in file.read(_LARGEST).splitlines():
            found = _POINT.match(line)
            value = number(found[2]) if found else None
            if found and value is not None:
                yield int(found[1]) / 1000, value, int(found[3])


def _name(folder: Path) -> str:
    meta = folder / "meta.yaml"
    found = _NAME.search(meta.read_text("utf-8", "replace")[:65536]) if meta.is_file() else None
    return found[1].strip() if found else folder.name


def _runs(folder: Path) -> Iterator[Path]:
    """The folders `metrics` at or below a folder, by the layout of the store."""
    if folder.name == "metrics":
        candidates = [folder]
    else:
        candidates = [p for pattern in ("metrics", "*/metrics", "*/*/metrics") for p in sorted(folder.glob(pattern))]
    for metrics in candidates:
        if metrics.is_dir() and any(_is_metric_file(path) for path in sorted(metrics.rglob("*"))[:8]):
            yield metrics


def _is_metric_file(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("r", encoding="utf-8", errors="replace") as file:
        return is_metric(file.read(4096))

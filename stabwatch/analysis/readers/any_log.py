"""Which reader reads a log: each looks at the head of the file, and the first that knows it reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stabwatch.analysis.readers import documents, mlflow_store, number_lists, tables, tensorboard, text, wandb_file
from stabwatch.analysis.readers.appearance import looks_like
from stabwatch.analysis.readers.file import LogFile, Progress
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.totals import with_total
from stabwatch.errors import LogError

READERS: tuple[Reader, ...] = (
    tensorboard.READER,
    wandb_file.READER,
    documents.DOCUMENT,
    documents.JSON_LINES,
    tables.READER,
    text.READER,
    number_lists.READER,
)
"""Readers in the order of trial. `text` accepts any text; the last is tried where that has hardly a record."""
_HARDLY = 3
"""Records of a run below which it is no history."""

_GRAVE = ("error", "nan_message", "overflow")
"""Remarks that are also useful without any record."""
_TELLING = ("trainer_state.json", "metrics.csv", "progress.csv", "metrics.jsonl", "log_history.json", "results.csv")
_ENDINGS = (".log", ".jsonl", ".csv", ".out", ".txt", ".wandb")


def read_log(path: str | Path, progress: Progress | None = None) -> Log:
    """Read a log, or the one in a folder. progress: called with the bytes read and the size. Raises LogError."""
    path = Path(path)
    if not path.exists():
        raise LogError(f"{path} does not exist.")
    if path.is_dir():
        return _in_folder(path, progress)
    if not path.is_file():
        raise LogError(f"{path} is not a regular file.")
    source = LogFile(path, progress)
    if not source.head:
        raise LogError(f"{path} is empty." if not source.size else f"{path} looks like {looks_like(b'')}.")
    if mlflow_store.is_metric(source.text):
        run = mlflow_store.read_metrics(path.parent.parent, {path.name: path})
        return _whole(Log(path, mlflow_store.FORMAT, (run,), ("One metric of a run.",)))
    reader = next((r for r in READERS if r.sniff(source)), None)
    if reader is None:
        raise LogError(
            f"{path} looks like {looks_like(source.head)}. No reader knows it: {_tried(len(READERS))}. "
            f"`docs/log-formats.md` lists the known formats."
        )
    log = _listed(source, reader.read(source))
    if not any(run.columns or any(r.kind in _GRAVE for r in run.remarks) for run in log.runs):
        notes = " ".join(note for note in log.notes if log.format != "text" or "not understood" in note)
        raise LogError(
            f"{path} looks like {looks_like(source.head)} and was read as {log.format}, but nothing in it looks like "
            f"a training record. {notes or 'No line has a number with a name.'} "
            f"Readers tried: {_tried(READERS.index(reader) + 1)}."
        )
    return _whole(log)


def _listed(source: LogFile, log: Log) -> Log:
    """The lists of numbers in a file that has hardly a record otherwise: those of a loss, or all if nothing is read."""
    most = max((len(run.steps) for run in log.runs), default=0)
    if log.format not in (text.READER.name, documents.DOCUMENT.name) or most >= _HARDLY:
        return log
    lists = number_lists.READER.read(source)
    known = any(run.of("loss") or run.of("eval_loss") for run in lists.runs)
    unread = not any(run.columns or run.remarks for run in log.runs)
    longer = max(len(run.steps) for run in lists.runs) > most + _HARDLY
    return lists if longer and (known or unread) else log


def _tried(count: int) -> str:
    """The names of the first readers."""
    return ", ".join(reader.name for reader in READERS[:count])


def _whole(log: Log) -> Log:
    return replace(log, runs=tuple(with_total(run) for run in log.runs))


def _in_folder(folder: Path, progress: Progress | None) -> Log:
    """Choose the log of a folder: all TensorBoard files, or the first well-known name, or the largest log."""
    if mlflow_store.holds_store(folder):
        return _whole(mlflow_store.read_store(folder))
    files = sorted(p for p in folder.iterdir() if p.is_file())
    events = [p for p in files if "tfevents" in p.name]
    if events:
        return _whole(tensorboard.read_files(folder, events, progress))
    known = [p for name in _TELLING for p in files if p.name == name]
    others = sorted((p for p in files if p.suffix in _ENDINGS), key=lambda p: -p.stat().st_size)
    for path in (*known, *others):
        try:
            return read_log(path, progress)
        except LogError:
            continue
    raise LogError(f"{folder} has no log that stabwatch can read. Give the path of the file to see why.")


def formats() -> list[tuple[str, str]]:
    """Name and coverage of each reader."""
    return [(mlflow_store.FORMAT, mlflow_store.COVERS), *((reader.name, reader.covers) for reader in READERS)]

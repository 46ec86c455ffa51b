"""How one line of a log was read, in words."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.log import Log, LogRun, Role
from stabwatch.analysis.readers.names import number
from stabwatch.analysis.readers.templates import Templates
from stabwatch.errors import LogError

_ROLES: dict[Role, str] = {
    "loss": "judged as the training loss",
    "eval_loss": "a validation loss",
    "grad_norm": "the gradient norm",
    "learning_rate": "the learning rate",
    "loss_scale": "the loss scale",
    "skipped_steps": "skipped steps",
    "nan_steps": "steps with NaN",
    "step_seconds": "seconds per step",
    "throughput": "a throughput",
    "component": "a part of the loss, or another loss",
    "other": "no role for the detectors",
}
_UNITS = {"step": "step", "epoch": "epoch", "ordinal": "record"}
_KINDS = {
    "overflow": "an overflow of the loss scale",
    "nan_message": "a message of NaN",
    "error": "an error",
    "checkpoint": "a checkpoint",
    "restart": "a resume from a checkpoint",
}


def explain(path: Path, line: int) -> list[str]:
    """How line `line` of a log, from 1, was read. Raises LogError."""
    log = read_log(path)
    text = next((piece for at, piece in LogFile(path).lines() if at == line), None)
    if text is None:
        raise LogError(f"{path} has no line {line}.")
    return [f"Line {line}: {text.strip()}", f"Read as {log.format}.", *_found(log, line), *_unused(log, text, line)]


def explain_text(text: str) -> list[str]:
    """How a line would be read if it were a log. Raises LogError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            log = read_log(path)
        except LogError:
            return [f"Line: {text.strip()}", "Nothing in it was understood: no number in it has a name that is known."]
    return [f"Line: {text.strip()}", f"Read as {log.format}.", *_found(log, None), *_unused(log, text, None)]


def _unused(log: Log, text: str, line: int | None) -> list[str]:
    """The numbers of a line of free text that have no name, or one that says nothing of training."""
    found = Templates().of(text) if log.format == "text" else None
    if found is None:
        return []
    template, numbers = found
    used = {at for at, _, _ in template.values} | {template.step, template.epoch, template.length}
    columns = [column for run in log.runs for column in run.columns]
    taken = {v for c in columns for v in c.values[(c.lines == line) | (line is None)].tolist()}
    others = [word for at, word in enumerate(numbers) if at not in used and number(word) not in taken]
    return [f"Numbers that were not used: {', '.join(others[:20])}{' ...' * (len(others) > 20)}"] if others else []


def _found(log: Log, number: int | None) -> list[str]:
    lines = [line for run in log.runs for line in _of_run(run, number)]
    if lines:
        return lines
    if log.runs and all((column.lines < 0).all() for run in log.runs for column in run.columns):
        return ["This format has no lines: its records are not tied to one."]
    return ["Nothing was taken from this line: it has no number with a name that is known, or it repeats a record."]


def _of_run(run: LogRun, number: int | None) -> Iterator[str]:
    """One sentence for each value and each message of a line. number: None for all lines."""
    for column in run.columns:
        for step, value, line in zip(column.steps.tolist(), column.values.tolist(), column.lines.tolist(), strict=True):
            if number is None or line == number:
                yield f"{_UNITS[run.step_unit]} {step}: {column.name} = {value:.7g} ({_ROLES[column.role]})"
    for remark in run.remarks:
        if number is None or remark.line == number:
            after = "" if remark.step is None else f", after step {remark.step}"
            yield f"{_KINDS.get(remark.kind, remark.kind)}{after}"

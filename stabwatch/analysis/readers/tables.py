"""Tables with a header: comma, tab, semicolon; blanks around cells; several runs side by side (W&B's export)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.names import EPOCH_KEYS, Counter, number, plain, role_of, step_rank
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.run_builder import MOST_COLUMNS, RunBuilder

_DELIMITERS = (",", "\t", ";")
_TIMES = ("wall time", "_timestamp", "timestamp", "wall_time", "time/time_elapsed", "total_duration", "elapsed")


def _header(source: LogFile) -> tuple[str, list[str], int] | None:
    """Delimiter, names, and the line that holds them."""
    lines = source.text.splitlines()[:20]
    for i, line in enumerate(lines[:-1]):
        if not line.strip() or line.startswith("#"):
            continue
        for delimiter in _DELIMITERS:
            names, cells = (next(csv.reader([x], delimiter=delimiter), []) for x in (line, lines[i + 1]))
            if len(names) > 1 and _fits([n.strip() for n in names], cells):
                return delimiter, [n.strip() for n in names], i + 1
        return None
    return None


def _fits(names: list[str], cells: list[str]) -> bool:
    """Names and not numbers above; as many cells below, of which one is a number."""
    named = all(n == "" or number(n) is None for n in names) and any(re.search("[A-Za-z]", n) for n in names)
    known = any(role_of(n) != "other" or step_rank(n) is not None or plain(n) in EPOCH_KEYS for n in names)
    numbers = [number(c) for c in cells]
    short = all(len(n) <= 120 for n in names)
    return named and known and short and len(cells) == len(names) and any(x is not None for x in numbers)


def _read(source: LogFile) -> Log:
    found = _header(source)
    assert found is not None
    delimiter, names, first = found
    runs = _by_run(names)
    gatherers = {run: RunBuilder(run) for run in dict.fromkeys(runs.values())} or {"": RunBuilder()}
    step_at, unit = _step(names)
    time_at = next((i for i, n in enumerate(names) if n.lower() in _TIMES), None)
    columns = [
        (i, _without(n, runs.get(i)), gatherers[runs.get(i, "")] if runs else gatherers[""])
        for i, n in enumerate(names[:MOST_COLUMNS])
        if n and i not in (step_at, time_at) and (not runs or i in runs)
    ]
    for gatherer in gatherers.values():
        gatherer.unit = unit  # type: ignore[assignment]
    epoch_at = next((i for i, n in enumerate(names) if i != step_at and plain(n) in EPOCH_KEYS), None)
    _fill(_rows(source, delimiter, first), columns, list(gatherers.values()), step_at, time_at, epoch_at)
    notes = [f"{len(names)} columns" + (f" of {len(runs)} runs" if runs else "") + "."]
    if len(names) > MOST_COLUMNS:
        notes.append(f"Only the first {MOST_COLUMNS} are read.")
    if step_at is None:
        notes.append("No step in it: rows are numbered.")
    notes += dict.fromkeys(note for gatherer in gatherers.values() for note in gatherer.notes())
    return Log(source.path, "table", tuple(g.run() for g in gatherers.values()), tuple(notes))


def _rows(source: LogFile, delimiter: str, first: int) -> Iterator[tuple[int, list[str]]]:
    for line, text in source.lines():
        if line > first and text.strip():
            try:
                yield line, next(csv.reader([text], delimiter=delimiter), [])
            except csv.Error:
                continue


def _fill(
    rows: Iterator[tuple[int, list[str]]],
    columns: list[tuple[int, str, RunBuilder]],
    gatherers: list[RunBuilder],
    step_at: int | None,
    time_at: int | None,
    epoch_at: int | None,
) -> None:
    counter = Counter()
    for count, (line, cells) in enumerate(rows):
        step, time = _cell(cells, step_at), _cell(cells, time_at)
        if step is None:
            if step_at is not None:
                continue  # a second header, a cut line
            step = float(count)
        if not abs(step) < 1 << 62:
            continue
        number_of_step = counter.at(int(step), _cell(cells, epoch_at))
        for gatherer in gatherers:
            values = {}
            for at, name, mine in columns:
                if mine is gatherer and (value := _cell(cells, at)) is not None:
                    values[name] = value
            if values or len(gatherers) == 1:
                gatherer.add(number_of_step, line, values, float("nan") if time is None else time, row=not values)


def _cell(cells: list[str], at: int | None) -> float | None:
    if at is None or at >= len(cells):
        return None
    text = cells[at].strip()
    return number(text) if text else None


def _step(names: list[str]) -> tuple[int | None, str]:
    ranked = [(rank, i) for i, n in enumerate(names) if (rank := step_rank(n)) is not None]
    if ranked:
        return min(ranked)[1], "step"
    epochs = [i for i, n in enumerate(names) if plain(n) in EPOCH_KEYS]
    return (epochs[0], "epoch") if epochs else (None, "ordinal")


def _by_run(names: list[str]) -> dict[int, str]:
    """Run of each column in W&B's export, `RUN - metric`; the columns of extremes are left out."""
    split = {i: n.rsplit(" - ", 1) for i, n in enumerate(names) if " - " in n}
    return {i: run for i, (run, metric) in split.items() if not metric.endswith(("__MIN", "__MAX"))}


def _without(name: str, run: str | None) -> str:
    return name[len(run) + 3 :] if run else name


READER = Reader(
    "table",
    "Lightning `metrics.csv`, Keras `CSVLogger`, W&B's exported CSV, stable-baselines3 and OpenAI `progress.csv`, "
    "ultralytics `results.csv`, timm `summary.csv`, AlgoPerf, TensorBoard's CSV; comma, tab or semicolon",
    lambda source: _header(source) is not None,
    _read,
)

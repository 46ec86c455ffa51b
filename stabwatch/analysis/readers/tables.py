"""Tables with a header: comma, tab, semicolon or blanks between cells; also several runs in columns (W&B export)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.log import Log, StepUnit
from stabwatch.analysis.readers.names import EPOCH_KEYS, Counter, is_eval, number, plain, role_of, step_rank
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.run_builder import MOST_COLUMNS, RunBuilder
from stabwatch.analysis.readers.unread import Unread

_DELIMITERS = (",", "\t", ";", "")
"""Delimiters; the last is any run of blanks."""
_TIMES = ("wall time", "_timestamp", "timestamp", "wall_time", "time/time_elapsed", "total_duration", "elapsed")
_NAMES = ("key", "metric", "name", "tag", "metric_name", "metricname", "metrickey", "metric_key", "variable")
_VALUES = ("value", "metric_value", "metricvalue", "scalar")
_SPLITS = ("phase", "split", "mode", "stage", "subset", "set", "partition")
_MONITOR = ["reward", "episode_length", "time"]
"""Columns of the monitor files of stable-baselines and Gym, which name them `r,l,t`."""
_ANY_NAME = re.compile(r"[A-Za-z_][\w /().%-]{0,40}")
LEAST_ROWS = 3
WANDERS, FIRST_ROWS = 0.25, 4096
"""Share of the first rows, and most of these, at which a column falls that counts nothing."""
_RULE = re.compile(r"[-=+| :]+")
_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_TAG = re.compile(r"-tag-(.+?)(?: \(\d+\))?\.csv")
"""TensorBoard names a downloaded table after its tag, with a column `Value`."""


@dataclass(frozen=True)
class _Table:
    """Format of a table. header: the line with the names. decimal_comma: numbers are written as `3,14`. first: rows."""

    delimiter: str
    names: list[str]
    header: str
    decimal_comma: bool
    first: list[list[str]]

    def cells(self, line: str) -> list[str]:
        """The cells of a line. Raises csv.Error."""
        return _split(line, self.delimiter)


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    wide = re.split(r"\s{2,}|\t", line.strip())
    return line.split() if len(wide) < 3 or any(map(_is_two, wide)) else wide


def _is_two(cell: str) -> bool:
    """Whether a cell is two numbers with one blank between them."""
    parts = cell.split()
    return len(parts) > 1 and all(number(part) is not None for part in parts)


def _table(source: LogFile) -> _Table | None:
    """Format of the table at the start of the file; None if there is none."""
    lines = [line for line in re.split(r"[\r\n]+", source.text)[:40] if line.strip()]
    for i, line in enumerate(lines[:-1]):
        below = [x for x in lines[i + 1 :] if not _RULE.fullmatch(x)][:8]
        for delimiter in _DELIMITERS:
            try:
                names, rows = _split(line.lstrip("# "), delimiter), [_split(x, delimiter) for x in below]
            except csv.Error:
                continue
            names = _MONITOR if lines[0].startswith("#{") and names[:3] == ["r", "l", "t"] else names
            fits = len(names) > 1 and rows and (_fits(names, rows[0]) or (delimiter and _is_regular(names, rows)))
            if fits and (delimiter or _is_aligned(names, rows)):
                cells = [cell for row in rows for cell in row]
                return _Table(delimiter, names, line, delimiter != "," and _has_decimal_commas(cells), rows)
        if not line.startswith("#"):
            return None
    return None


def _fits(names: list[str], cells: list[str]) -> bool:
    """Whether the first line has names and not numbers, and the next has as many cells with at least one number."""
    named = all(n == "" or number(n) is None for n in names) and any(re.search("[A-Za-z]", n) for n in names)
    known = any(role_of(n) != "other" or step_rank(n) is not None or plain(n) in EPOCH_KEYS for n in names)
    known = known or names is _MONITOR
    numbers = [number(c) for c in cells]
    short = all(len(n) <= 120 for n in names)
    return named and known and short and len(cells) == len(names) and any(x is not None for x in numbers)


def _is_regular(names: list[str], rows: list[list[str]]) -> bool:
    """Whether names that are not known stand above three rows or more of numbers, each as long as the header."""
    of_index = not names[0] and len(names) > 1  # pandas
    named = all(_ANY_NAME.fullmatch(name) for name in names[of_index:]) and len(set(names)) == len(names)
    numbers = [len(row) == len(names) and all(number(cell) is not None for cell in row) for row in rows]
    return named and len(rows) >= LEAST_ROWS and all(numbers)


def _is_aligned(names: list[str], rows: list[list[str]]) -> bool:
    """Whether rows between blanks are not sentences: each has as many cells, nearly all of them numbers."""
    numbers = [[number(cell) is not None for cell in row] for row in rows]
    full = [row for row in numbers if len(row) == len(names) and sum(row) >= len(row) - 1]
    return len(rows) > 1 and len(full) == len(rows) and not any(re.search(r"[:=]\S|\d\s", name) for name in names)


def _has_decimal_commas(cells: list[str]) -> bool:
    """Whether commas are decimal commas. `1,234` alone counts as one if no other number has a point."""
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    pointed = any("." in cell and number(cell) is not None for cell in cells)
    return bool(commas) and not pointed


def _read(source: LogFile) -> Log:
    table = _table(source)
    assert table is not None
    names = table.names
    low = [plain(name) for name in names]
    if any(name in _NAMES for name in low) and any(name in _VALUES for name in low):
        return _read_long(source, table, low)
    if low.count("value") == 1 and (tag := _TAG.search(source.path.name)):
        names = [tag[1] if name == "value" else names[i] for i, name in enumerate(low)]
    runs = _by_run(names)
    builders = {run: RunBuilder(run) for run in dict.fromkeys(runs.values())} or {"": RunBuilder()}
    step_at, unit = _step(names, table.first)
    if step_at is not None and _wanders(_column(source, table, step_at)):
        step_at, unit = None, "ordinal"
    time_at = next((i for i, n in enumerate(names) if n.lower() in _TIMES), None)
    columns = [
        (i, _without(n, runs.get(i)), builders[runs.get(i, "")] if runs else builders[""])
        for i, n in enumerate(names[:MOST_COLUMNS])
        if n and i not in (step_at, time_at) and (not runs or i in runs)
    ]
    for builder in builders.values():
        builder.unit = unit
    epoch_at = next((i for i, n in enumerate(names) if i != step_at and plain(n) in EPOCH_KEYS), None)
    split_at = next((i for i, n in enumerate(low) if n in _SPLITS), None)
    places = _Places(step_at, time_at, epoch_at, split_at)
    unread = Unread()
    _fill(_rows(source, table), columns, list(builders.values()), places, unread)
    notes = [f"{len(names)} columns" + (f" of {len(runs)} runs" if runs else "") + "."]
    if len(names) > MOST_COLUMNS:
        notes.append(f"Only the first {MOST_COLUMNS} are read.")
    if table.decimal_comma:
        notes.append("Its numbers have decimal commas.")
    if step_at is None:
        notes.append("It has no step: rows are numbered.")
    if unread.missed:
        notes.append(unread.note())
    notes += dict.fromkeys(note for builder in builders.values() for note in builder.notes())
    return Log(source.path, "table", tuple(builder.run() for builder in builders.values()), tuple(notes))


def _read_long(source: LogFile, table: _Table, low: list[str]) -> Log:
    """A row per value, with its name in a column, as MLflow and Comet export."""
    name_at = next(i for i, name in enumerate(low) if name in _NAMES)
    value_at = next(i for i, name in enumerate(low) if name in _VALUES)
    step_at, unit = _step(table.names, [])
    series: dict[str, list[tuple[float, int, float]]] = {}
    for line, cells in _rows(source, table):
        value, step = _cell(cells, value_at), _cell(cells, step_at)
        if value is None or name_at >= len(cells) or (step_at is not None and step is None):
            continue
        points = series.setdefault(cells[name_at], [])
        points.append((float(len(points)) if step is None else step, line, value))
    builder = RunBuilder()
    builder.unit = unit
    merged: dict[float, tuple[int, dict[str, float]]] = {}
    for name, points in list(series.items())[:MOST_COLUMNS]:
        for step, line, value in points:
            if abs(step) < 1 << 62:
                merged.setdefault(step, (line, {}))[1].setdefault(name, value)
    for step in sorted(merged):
        builder.add(int(step), *merged[step])
    return Log(source.path, "table", (builder.run(),), (f"{len(series)} quantities, one value per row.",))


@dataclass(frozen=True)
class _Places:
    """Columns that are not values."""

    step: int | None
    time: int | None
    epoch: int | None
    split: int | None


def _rows(source: LogFile, table: _Table) -> Iterator[tuple[int, list[str]]]:
    """The rows under the header, with the number of their line."""
    begun = False
    for line, text in source.lines():
        if not begun:
            begun = text.strip("\ufeff\r") == table.header
            continue
        if not text.strip() or _RULE.fullmatch(text):
            continue
        try:
            cells = table.cells(text)
        except csv.Error:
            continue
        if table.decimal_comma:
            cells = [cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell for cell in cells]
        yield line, cells


def _fill(
    rows: Iterator[tuple[int, list[str]]],
    columns: list[tuple[int, str, RunBuilder]],
    builders: list[RunBuilder],
    places: _Places,
    unread: Unread,
) -> None:
    counter, count = Counter(), -1
    for line, cells in rows:
        step, time = _cell(cells, places.step), _cell(cells, places.time)
        if step is None:
            if places.step is not None or 2 * len(cells) <= len(columns):  # a second header, a cut line
                unread.miss(", ".join(cells).encode("utf-8", "replace"))
                continue
            count += 1
            step = float(count)
        if not abs(step) < 1 << 62:
            unread.miss(", ".join(cells).encode("utf-8", "replace"))
            continue
        unread.understood()
        prefix = "eval/" if places.split is not None and _evaluates(cells, places.split) else ""
        number_of_step = counter.at(int(step), _cell(cells, places.epoch))
        for builder in builders:
            values = {}
            for at, name, mine in columns:
                if mine is builder and (value := _cell(cells, at)) is not None:
                    values[prefix + name] = value
            if values or len(builders) == 1:
                builder.add(number_of_step, line, values, float("nan") if time is None else time, row=not values)


def _evaluates(cells: list[str], at: int) -> bool:
    return at < len(cells) and is_eval(cells[at])


def _cell(cells: list[str], at: int | None) -> float | None:
    if at is None or at >= len(cells):
        return None
    text = cells[at].strip().removesuffix(":")  # `1200: 2.5`
    return number(text) if text else None


def _step(names: list[str], rows: list[list[str]]) -> tuple[int | None, StepUnit]:
    ranked = sorted((rank, i) for i, n in enumerate(names) if (rank := step_rank(n)) is not None)
    if ranked:
        return next((i for _, i in ranked if _counts(i, rows)), ranked[0][1]), "step"
    epochs = [i for i, n in enumerate(names) if plain(n) in EPOCH_KEYS]
    return (epochs[0], "epoch") if epochs else (None, "ordinal")


def _counts(at: int, rows: list[list[str]]) -> bool:
    """Whether a column does not fall in the first rows: `steps` beside `episode` may be the length of each."""
    values = [value for row in rows if len(row) > at and (value := number(row[at])) is not None]
    return all(a <= b for a, b in pairwise(values))


def _column(source: LogFile, table: _Table, at: int) -> list[float]:
    """The numbers of a column in the first rows."""
    rows = islice(_rows(source, table), FIRST_ROWS)
    return [value for _, cells in rows if (value := _cell(cells, at)) is not None]


def _wanders(values: list[float]) -> bool:
    """Whether a column falls again and again, and not to where it began: the time steps of a batch, not of a run."""
    falls = sum(b < a and b != values[0] for a, b in pairwise(values))
    return falls >= LEAST_ROWS and falls > WANDERS * len(values)


def _by_run(names: list[str]) -> dict[int, str]:
    """Run of each column in W&B's export, `RUN - metric`; the columns of extremes are left out."""
    split = {i: n.rsplit(" - ", 1) for i, n in enumerate(names) if " - " in n}
    return {i: run for i, (run, metric) in split.items() if not metric.endswith(("__MIN", "__MAX"))}


def _without(name: str, run: str | None) -> str:
    return name[len(run) + 3 :] if run else name


READER = Reader(
    "table",
    "Lightning `metrics.csv`, Keras `CSVLogger`, W&B's exported CSV, stable-baselines3 and OpenAI `progress.csv` and "
    "monitor files, "
    "ultralytics `results.csv`, timm `summary.csv`, AlgoPerf, TensorBoard's CSV, fastai and skorch, rows of one value "
    "as MLflow and Comet export them; comma, tab, semicolon or blanks, with decimal commas too",
    lambda source: _table(source) is not None,
    _read,
)

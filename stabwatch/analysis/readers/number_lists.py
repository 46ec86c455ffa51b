"""Lists of numbers: the history that a script prints at its end, arrays, a file with one number in each line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.keys import key_of
from stabwatch.analysis.readers.log import Log, LogRun
from stabwatch.analysis.readers.names import number, role_of
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.run_builder import RunBuilder

LARGEST = 16 << 20
"""Most bytes of a file whose lists are read."""
SHORTEST = 5
"""Fewest numbers of a list: fewer are a shape or a vector."""
BARE = 0.9
"""Share of the lines that are one number, from which a file is one list."""
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
_LIST = re.compile(rf"\[\s*({_NUMBER}(?:[\s,;]+{_NUMBER}){{{SHORTEST - 1},}})[\s,;]*\]", re.IGNORECASE)
_LINE = re.compile(rf"\s*{_NUMBER}[\s,;]*", re.IGNORECASE)
_ROW = re.compile(rf"\s*{_NUMBER}(?:(?:\s*[,;]\s*|\s+){_NUMBER}){{1,31}}[\s,;]*", re.IGNORECASE)
TOTAL = 1e-4
"""Relative distance of a sum from the total."""
_WRAPPED = re.compile(rf"(?:np\.)?(?:float\d+|tensor|array)\(({_NUMBER})(?:, ?[^()]{{0,60}})?\)", re.IGNORECASE)
"""A number as a framework prints it in a list: `np.float64(0.5)`, `tensor(0.5, device='cuda:0')`."""
_AROUND = re.compile(r"(?:(?:np|torch)\.)?(?:array|tensor)\($")
"""What a framework prints before the bracket."""
_MANY = re.compile(r"(loss|accurac|acc|reward|score|error|return)(?:y|ies|e?s)?(?![a-z])", re.IGNORECASE)
_KEPT = re.compile(r"[ _-](?:history|hist|lists?|values|array|curve)$", re.IGNORECASE)


class _Series(NamedTuple):
    """A list with the line of each value."""

    name: str
    lines: list[int]
    values: list[float]


def _singular(found: re.Match[str]) -> str:
    return {"accurac": "accuracy"}.get(found[1].lower(), found[1])


def _name(before: str, stem: str) -> str:
    """The name of a list from the text before it, else from the file: `train_losses = `, `{'loss': `, `RNN:`."""
    before = _AROUND.sub("", before.rstrip())
    key = key_of(f"{before} ") or (before.strip(" :=-([{,'\"") if len(before) <= 40 else "")
    key = _MANY.sub(_singular, _KEPT.sub("", key.rpartition("'")[2] or key))
    if role_of(key) != "other" or not (kind := _MANY.search(stem)):
        return key or stem
    return f"{key} {_singular(kind)}".strip()


def _series(text: str, stem: str) -> Iterator[_Series]:
    """The lists of a text, in order."""
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    bare = [(at, value) for at, line in lines if _LINE.fullmatch(line) for value in _values(line)]
    if len(bare) >= max(SHORTEST, BARE * len(lines)):
        yield _Series(_name("", stem), [at for at, _ in bare], [value for _, value in bare])
        return
    if columns := _columns(lines, stem):
        yield from columns
        return
    text = _WRAPPED.sub(r"\1", text)
    for found in _LIST.finditer(text):
        above, _, before = text[: found.start()].rpartition("\n")
        before = before if before.strip() else above.rpartition("\n")[2] + ":"
        values, line = _values(found[1]), text.count("\n", 0, found.start()) + 1
        if all(value.is_integer() for value in values):
            continue  # a shape, indices
        yield _Series(_name(before[-200:], stem), [line] * len(values), values)


def _columns(lines: list[tuple[int, str]], stem: str) -> list[_Series]:
    """The columns of a file that is rows of numbers, if its name says of what. One that is the sum of the others is
    the total; nothing says what the others are."""
    kind = _MANY.search(stem)
    if kind is None or not all(_ROW.fullmatch(line) for _, line in lines[:SHORTEST]):
        return []
    rows = [(at, values) for at, line in lines if _ROW.fullmatch(line) and (values := _values(line))]
    widths = {len(values) for _, values in rows}
    if len(widths) > 1 or len(rows) < max(SHORTEST, BARE * len(lines)):
        return []
    table = np.array([values for _, values in rows])
    total = next((i for i in range(table.shape[1]) if _is_sum(table, i)), None)
    names = [_singular(kind) if i == total else f"column {i + 1}" for i in range(table.shape[1])]
    numbers = [at for at, _ in rows]
    return [_Series(name, numbers, table[:, i].tolist()) for i, name in enumerate(names)]


def _is_sum(table: NDArray[np.float64], at: int) -> bool:
    """Whether a column is the sum of the others, of which there are two or more."""
    rest = np.delete(table, at, axis=1).sum(axis=1)
    return table.shape[1] > 2 and bool(np.allclose(table[:, at], rest, rtol=TOTAL, atol=0.0, equal_nan=True))


def _values(text: str) -> list[float]:
    """The numbers of a text."""
    return [value for word in re.split(r"[\s,;]+", text.strip(" ,;\t\r")) if (value := number(word)) is not None]


def _runs(series: Sequence[_Series]) -> list[list[_Series]]:
    """Lists by run: a name that comes again begins another."""
    runs: list[list[_Series]] = [[]]
    for one in series:
        if one.name in (other.name for other in runs[-1]):
            runs.append([])
        runs[-1].append(one)
    return runs


def _run(series: Sequence[_Series]) -> LogRun:
    """Lists side by side. One of a few values is told at equal intervals, where its length divides the longest."""
    builder, longest = RunBuilder(), max(len(one.values) for one in series)
    records: dict[int, tuple[int, dict[str, float]]] = {}
    for one in series:
        every = longest // len(one.values) if longest % len(one.values) == 0 else 1
        for i, (line, value) in enumerate(zip(one.lines, one.values, strict=True), 1):
            records.setdefault(i * every - 1, (line, {}))[1][one.name] = value
    for step, (line, values) in sorted(records.items()):
        builder.add(step, line, values, row=True)
    builder.unit = "ordinal"
    return builder.run()


def _text_of(source: LogFile) -> str:
    with source.open() as stream:
        return stream.read(LARGEST).decode("utf-8", "replace")


def _read(source: LogFile) -> Log:
    found = list(_series(_text_of(source), source.path.stem))
    runs = tuple(map(_run, _runs(found))) if found else (RunBuilder().run(),)
    return Log(source.path, READER.name, runs, (f"{len(found)} lists of numbers; their places are the records.",))


def _sniff(source: LogFile) -> bool:
    return b"\0" not in source.head and any(_series(source.text, source.path.stem))


READER = Reader(
    "lists",
    "what a script prints of its history: `train_losses = [0.7, 0.6, ...]`, dictionaries of lists, arrays of NumPy and "
    "tensors, a file with one number in each line, or with rows of numbers if its name says of what; tried where a "
    "text has hardly a record",
    _sniff,
    _read,
)

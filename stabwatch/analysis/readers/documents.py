"""JSON: one document (Hugging Face's `trainer_state.json`, Keras' history, golden values), or one object per line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from stabwatch.analysis.readers import text
from stabwatch.analysis.readers.arrow import float64s
from stabwatch.analysis.readers.file import LogFile, pieces
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.names import EPOCH_KEYS, Counter, number, plain, role_of, step_rank
from stabwatch.analysis.readers.notebook import notebook_lines
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.run_builder import RunBuilder
from stabwatch.analysis.readers.unread import Unread
from stabwatch.errors import LogError

LARGEST_DOCUMENT = 256 << 20
_AT_ONCE = 4096
"""Lines parsed at once. With a small number, few are read one by one if some differ."""
_OF_TOTAL = re.compile(r"\s*(\d{1,15})\s*/\s*\d{1,15}\s*")
_SHORTEST_RUN = 8
"""Mean length of runs of objects with equal keys, below which they are read one by one."""
_DEEPEST = 8
_MODES = ("mode", "phase", "split", "subset")
_EVALUATES = ("val", "eval", "test")
_TIMES = ("_timestamp", "timestamp", "wall_time", "time_ms")


def flat(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, float]:
    """Numbers of nested objects by path, joined with `/`; for statistics, the mean."""
    out: dict[str, float] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, bool) or item is None:
            continue
        if isinstance(item, int | float):
            try:
                out[name] = float(item)
            except OverflowError:
                out[name] = float("inf")
        elif isinstance(item, str):
            if len(item) < 32 and (found := _number(item, name)) is not None:
                out[name] = found
        elif isinstance(item, dict) and depth < _DEEPEST:
            if isinstance(item.get("mean"), int | float):
                out[name] = float(item["mean"])
            else:
                out |= flat(item, f"{name}/", depth + 1)
    return out


def _number(text: str, name: str) -> float | None:
    """A number; of a step such as `10/400`, the first."""
    part = _OF_TOTAL.fullmatch(text) if "/" in text and step_rank(name) is not None else None
    return float(part[1]) if part else number(text)


class Records:
    """Takes flat records, finds their step, and builds the run."""

    def __init__(self) -> None:
        self.builder = RunBuilder()
        self._units: set[str] = set()
        self._counter = Counter()
        self._fractions = False

    def add(self, record: Mapping[str, Any], line: int) -> None:
        """Add one record. Numbers other than a step, a time or a total become columns."""
        values = flat(record)
        mode = next((str(record[k]).lower() for k in _MODES if isinstance(record.get(k), str)), "")
        step_key, epoch_key = _counting(tuple(values))
        if epoch_key and not step_key:
            self._fractions = self._fractions or bool(values[epoch_key] % 1)
            epoch_key = None if self._fractions else epoch_key  # such epochs do not number the records
        chosen = step_key or epoch_key
        step = _whole(values.pop(chosen)) if chosen else None
        if step is not None and step_key and epoch_key and not mode.startswith(_EVALUATES):
            step = self._counter.at(step, values.get(epoch_key))
        unit = "step" if step_key else "epoch" if epoch_key else "ordinal"
        if unit == "epoch" and "step" in self._units:  # a summary or an evaluation, between steps
            step, unit = self.builder.last_step, "step"
        time = next((values.pop(k) for k in _TIMES if k in values), float("nan"))
        if mode.startswith(_EVALUATES):
            values = {f"eval/{k}": v for k, v in values.items()}
        if values:
            self._units.add(unit)
            self.builder.add(len(self.builder) if step is None else step, line, values, time)

    def add_all(self, columns: dict[str, NDArray[np.float64]], lines: range) -> bool:
        """Add records with equal keys and only numbers. If steps do not rise, returns False and adds none.

        The result is that of `add`, in a tenth of the time.
        """
        step_key, epoch_key = _counting(tuple(columns))
        if step_key is None or not (np.abs(columns[step_key]) < 1 << 62).all():
            return False
        counts = steps = columns.pop(step_key).astype(np.int64)
        if epoch_key is not None:
            epochs = columns[epoch_key]
            if not (np.diff(epochs) >= 0).all():
                return False
            steps = steps + self._counter.at(int(steps[0]), float(epochs[0])) - steps[0]
        last = self.builder.last_step
        if (np.diff(steps) <= 0).any() or (last is not None and steps[0] <= last):
            return False
        if epoch_key is not None:
            self._counter.at(int(counts[-1]), float(epochs[-1]))
        time_key = next((k for k in _TIMES if k in columns), None)
        times = None if time_key is None else columns.pop(time_key)
        if columns:
            self._units.add("step")
            self.builder.extend(steps, np.arange(lines.start, lines.stop), columns, times)
        return True

    def log(self, source: LogFile, name: str, notes: Iterable[str] = ()) -> Log:
        """The log."""
        self.builder.unit = next((u for u in ("step", "epoch", "ordinal") if u in self._units), "ordinal")  # type: ignore[assignment]
        said = list(notes)
        if self.builder.unit == "ordinal":
            said.append("It has no step: records are numbered.")
        said += self.builder.notes()
        return Log(source.path, name, (self.builder.run(),), tuple(said))


@lru_cache(256)
def _counting(keys: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The keys of step and epoch."""
    step = min((k for k in keys if step_rank(k) is not None), key=lambda k: step_rank(k) or 0, default=None)
    return step, next((k for k in keys if plain(k) in EPOCH_KEYS), None)


def _whole(value: float) -> int | None:
    return int(value) if abs(value) < 1 << 62 else None


def _objects(text: str) -> Iterator[tuple[bool, str]]:
    """For each line that is not blank: whether an object begins in it, after a short prefix at most."""
    for line in text.splitlines()[:200]:
        if line.strip():
            yield 0 <= line.find("{") <= 120, line


def _sniff_lines(source: LogFile) -> bool:
    found = list(_objects(source.text))[:60]
    if len(source.text) < source.size and len(found) > 1:
        found.pop()  # cut at the end of the head
    good = sum(isinstance(_object(line), dict) for has, line in found if has)
    return good >= 1 and good >= 0.5 * len(found)


def _object(line: str) -> Any:
    try:
        return json.loads(line[line.index("{") :])
    except (ValueError, RecursionError):
        return None


def _read_lines(source: LogFile) -> Log:
    records, unread = Records(), Unread()
    for first, block in source.blocks():
        raws = block.split(b"\n")
        for i in range(0, len(raws), _AT_ONCE):
            some = raws[i : i + _AT_ONCE]
            at = range(first + i, first + i + len(some))
            if _take_all(records, some, at):
                unread.understood(len(some))
                continue
            for line, raw in zip(at, some, strict=True):
                taken = [_take(records, piece, line) for piece in pieces(raw)]
                if all(taken):
                    unread.understood()
                else:
                    unread.miss(raw)
    return records.log(source, "JSON lines", [unread.note()] if unread.missed else ())


def _take_all(records: Records, raws: list[bytes], at: range) -> bool:
    """Add lines at once if they are flat objects with equal keys and only numbers. Returns whether it did."""
    text = b"\n".join(raws)
    try:
        table = pa.json.read_json(io.BytesIO(text), pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1))
        names = table.column_names
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return False
    numbers = all(pa.types.is_integer(c.type) or pa.types.is_floating(c.type) for c in table.columns)
    if table.num_rows != len(raws) or not numbers or "key" in names:
        return False
    if not any(column.null_count for column in table.columns):
        return records.add_all({name: float64s(table[name]) for name in names}, at)
    return _take_runs(records, table, raws, at)


def _take_runs(records: Records, table: pa.Table, raws: list[bytes], at: range) -> bool:
    """The same for objects of several kinds, such as an evaluation among steps: each run of equal keys at once."""
    there = np.column_stack([float64s(column.is_valid().cast(pa.uint8())) for column in table.columns]) > 0
    cuts = np.flatnonzero((there[1:] != there[:-1]).any(axis=1)) + 1
    bounds = [0, *cuts.tolist(), len(raws)]
    if len(bounds) > len(raws) / _SHORTEST_RUN:
        return False
    columns = {name: float64s(table[name]) for name in table.column_names}
    for start, stop in pairwise(bounds):
        lines = at[start:stop]
        some = {name: columns[name][start:stop] for name, has in zip(columns, there[start], strict=True) if has}
        if stop - start > 1 and some and records.add_all(some, lines):
            continue
        for line, raw in zip(lines, raws[start:stop], strict=True):
            for piece in pieces(raw):
                _take(records, piece, line)
    return True


def _take(records: Records, line: str, at: int) -> bool:
    """Whether the line is an object, which is then added, or empty."""
    if "{" not in line:
        return not line.strip()
    found = _object(line)
    if not isinstance(found, dict):
        return False
    if "key" in found and "value" in found:  # MLPerf's MLLOG
        value, where = found["value"], found.get("metadata") or {}
        found = {**where, **(value if isinstance(value, dict) else {str(found["key"]): value})}
        if "step_num" in found:
            found["step"] = found.pop("step_num")
        found.pop("lineno", None)
    records.add(found, at)
    return True


_OPENS = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*(?:[{\[\"\]]|-?\d[\d.eE+-]*\s*(?:,|\]\s*(?:$|[,\]]))))")


def _sniff_document(source: LogFile) -> bool:
    if not _OPENS.match(source.text):
        return False
    return "\n" not in source.text.strip() or not _sniff_lines(source)


def _read_document(source: LogFile) -> Log:
    try:
        data = json.loads(source.read(LARGEST_DOCUMENT).decode("utf-8", "replace"))
    except RecursionError as error:
        raise LogError(f"{source.path} is nested too deeply to be a training log.") from error
    except ValueError as error:
        data = _cut_list(source)
        if data is None:
            log = text.read_lines(source, source.lines())
            return replace(log, notes=(f"It begins like JSON but is not: {error}.", *log.notes))
    if isinstance(data, dict) and "nbformat" in data:
        log = text.read_lines(source, enumerate(notebook_lines(data), 1))
        return replace(log, format="notebook", notes=("Lines are counted over the outputs of its cells.", *log.notes))
    records = Records()
    for record in _records(data):
        records.add(record, -1)
    return records.log(source, "JSON document")


def _cut_list(source: LogFile) -> Any:
    """The objects of a list without its brackets, `{...}, {...},`, as of a part of a log; None for other texts."""
    told = source.read(LARGEST_DOCUMENT).decode("utf-8", "replace").strip().rstrip("], \r\n\t")
    if not (told.startswith("{") and told.endswith("}")):
        return None
    try:
        return json.loads(f"[{told}]")
    except (ValueError, RecursionError):
        return None


def _records(data: Any) -> Iterator[Mapping[str, Any]]:
    """Records from a list of objects, a list in an object, lists by name, or values by step by name."""
    if isinstance(data, list):
        yield from (item for item in data if isinstance(item, dict))
        return
    if not isinstance(data, dict):
        return
    lists = {k: v for k, v in data.items() if isinstance(v, list)}
    history = lists.get("log_history") or next((v for v in lists.values() if v and isinstance(v[0], dict)), None)
    if history is not None:
        yield from _records(history)
        return
    columns = {k: v for k, v in lists.items() if v and all(isinstance(x, int | float) for x in v)}
    if columns:
        unit = "epoch" if not any(step_rank(k) is not None for k in columns) else ""
        for i in range(max(map(len, columns.values()))):
            yield {**({unit: i} if unit else {}), **{k: v[i] for k, v in columns.items() if i < len(v)}}
        return
    if any(role_of(name) == "loss" and isinstance(item, int | float) for name, item in data.items()):
        yield data  # one record
        return
    by_step: dict[int, dict[str, float]] = {}
    for name, item in data.items():
        values = item.get("values", item) if isinstance(item, dict) else {}
        for step, value in values.items() if isinstance(values, dict) else ():
            if str(step).isdigit() and isinstance(value, int | float):
                by_step.setdefault(int(step), {})[name] = value
    for step in sorted(by_step):
        yield {"step": step, **by_step[step]}


DOCUMENT = Reader(
    "JSON document",
    "Hugging Face `trainer_state.json`, Keras' `history`, Megatron's golden values, any list of records; the outputs "
    "of notebooks (`.ipynb`), with the tables of Hugging Face's trainer and of fastai",
    _sniff_document,
    _read_document,
)
JSON_LINES = Reader(
    "JSON lines",
    "LLaMA-Factory `trainer_log.jsonl`, detectron2 `metrics.json`, mmcv and mmengine, DeiT, fairseq and metaseq with "
    "`--log-format json`, W&B history, MLPerf's MLLOG, StyleGAN `stats.jsonl`; objects behind a prefix too",
    _sniff_lines,
    _read_lines,
)

"""Lines of a text that differ only in their numbers, where no line was understood: the numbers of the most frequent
kind of line are columns, whatever words stand before them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise, takewhile
from typing import NamedTuple

from stabwatch.analysis.readers import messages
from stabwatch.analysis.readers.names import EPOCH_KEYS, NUMBER, is_eval, number, plain, role_of, step_rank
from stabwatch.analysis.readers.run_builder import RunBuilder
from stabwatch.analysis.readers.templates import is_code

_SPLIT = re.compile(f"({NUMBER.pattern})", NUMBER.flags)
_STAMP = re.compile(r"\b\d{1,4}[-/]\d{1,2}[-/]\d{2,4}\b|\b\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d+)?\b|\b\d{9,10}\.\d+\b")
"""A date, a time, seconds since 1970."""
_LOSS = re.compile(
    r"\b((?:(?:train(?:ing)?|val(?:idation)?|valid|test|eval(?:uation)?|avg|average|mean|total)[ _-])?"
    r"(?:loss|cost|err(?:or)?|nll|elbo|energy|objective|mse|rmse|mae|recon\w*|kld?|bce|total|misfit|residual|perplexity))\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"([^\W\d][\w/.@-]*)(?:\s*\([^()]*\)?)?[^\w]*$")
_UNIT = re.compile(r"\s?(?:%|s\b|ms\b|sec|min\b|h\b|it/s|s/it|[KMG]i?B?\b|x\b)", re.IGNORECASE)
"""What follows a number that is a time, a share or a size."""
_NO_LOSS = re.compile(
    r"acc|prec|recall|f1|score|auc|m?ap\b|iou|dice|rew|ret|time|sec|eta|lr|rate|mem|temp|eps|beta|len|size", re.I
)
_ALONE = re.compile(r"\s*[-+]?(?:\d+\.\d+(?:e[-+]?\d+)?|nan|inf),?\s*", re.IGNORECASE)
_ALONE_KIND = ("", "")
"""A number that is alone in its line, and the texts around it."""
_HEADING = re.compile(r"(val\w*[ _-]?|test[ _-]?|验证\S{0,3}?)?(?:loss|cost|损失)(?:es)?(?![a-z])", re.IGNORECASE)
LISTED = 5
"""Fewest numbers of such a list."""
_PAIRED = re.compile(r"\w+\(\s*$")
MOST_LINES, MOST_KINDS = 200_000, 2_000
_EPISODES = ("episode", "episodes", "game", "games")
FEWEST = 3
"""Fewest lines of a kind."""
RISES = 0.8
"""Share of pairs of lines in which a count rises."""
REAL = 0.5
"""Share of the numbers of a column with a point or an exponent, or that are NaN: the others are counts."""


class Row(NamedTuple):
    """One line, and its numbers as they are written."""

    line: int
    numbers: list[str]


def regular_lines(lines: Iterable[tuple[int, str]]) -> RunBuilder | None:
    """A run of the most frequent kind of line; None if no kind looks like records of a training."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    heading, before = "", ""
    for count, (line, text) in enumerate(lines):
        if count >= MOST_LINES:
            break
        parts = _SPLIT.split(_STAMP.sub("", text[:2000]))
        if _ALONE.fullmatch(text):
            heading = before if _ALONE_KIND not in kinds else heading
        elif text.strip():
            before = text
        if len(parts) < 3 or not _may_be_real(parts[1::2]) or _overflows(text):
            continue
        key = tuple(" ".join(part.split()) for part in parts[0::2])
        if key in kinds or len(kinds) < MOST_KINDS:
            kinds.setdefault(key, []).append(Row(line, parts[1::2]))
    for texts, rows in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        if len(rows) < FEWEST:
            return None
        if texts == _ALONE_KIND:
            built = _listed(heading, rows)
        else:
            built = None if is_code(" ".join(texts)) else _built(texts, rows)
        if built is not None:
            return built
    return None


def _listed(heading: str, rows: list[Row]) -> RunBuilder | None:
    """Numbers in lines of their own, below words that say that they are losses."""
    named = _HEADING.search(heading)
    if named is None or len(rows) < LISTED:
        return None
    builder = RunBuilder()
    builder.unit = "ordinal"
    name = "val_loss" if is_eval(heading) or named[1] else "loss"
    for order, row in enumerate(rows):
        builder.add(order, row.line, {name: number(row.numbers[0]) or 0.0}, row=True, new=True)
    return builder


def _overflows(text: str) -> bool:
    """Whether a line says that the loss scale was reduced: its numbers are no records."""
    kind = messages.kind_of(text)
    return kind is not None and kind[0] == "overflow"


def _may_be_real(numbers: list[str]) -> bool:
    return any(not word.lstrip("+-").isdigit() for word in numbers)


def _built(texts: tuple[str, ...], rows: list[Row]) -> RunBuilder | None:
    columns = list(zip(*(row.numbers for row in rows), strict=True))
    real = [i for i, words in enumerate(columns) if _is_real(words) and not _UNIT.match(texts[i + 1])]
    at = _count_of(texts, columns)
    names = _names(texts, real, at)
    if not real or (at is None and not any(_LOSS.fullmatch(name) for name in names.values())):
        return None
    builder = RunBuilder()
    builder.unit = "ordinal" if at is None else "epoch" if _word(texts[at]) in EPOCH_KEYS else "step"
    for order, row in enumerate(rows):
        values = {name: value for i, name in names.items() if (value := number(row.numbers[i])) is not None}
        builder.add(order if at is None else int(number(row.numbers[at]) or 0), row.line, values, row=True, new=True)
    builder.taken_for_loss = _loss_of(names, columns)
    return builder


def _loss_of(names: dict[int, str], columns: list[tuple[str, ...]]) -> str:
    """The first column that is named as a loss, otherwise the first that nothing names and that falls at first."""
    named = [name for name in names.values() if _LOSS.match(name) and not is_eval(name)]
    free = [i for i, name in names.items() if role_of(name) == "other" and not (is_eval(name) or _NO_LOSS.search(name))]
    if not named and all(not _finite(columns[i]) for i in names):
        return next((names[i] for i in free), "")  # never a number
    lone = len(names) == 1 and not any(map(str.isalpha, "".join(names.values()).removeprefix("column")))
    return next(iter(named), "") or next((names[i] for i in free if _falls_at_first(columns[i], lone)), "")


def _finite(words: tuple[str, ...]) -> list[float]:
    """The finite numbers of a column."""
    values = (number(word) for word in words)
    return [value for value in values if value is not None and math.isfinite(value)]


def _falls_at_first(words: tuple[str, ...], lone: bool = False) -> bool:
    """Whether the finite numbers of the first half end below the first of them. lone: there is no other column, and
    its numbers may be negative."""
    values = [value for word in words[: max(len(words) // 2, FEWEST)] if (value := number(word)) is not None]
    finite = list(takewhile(math.isfinite, values))
    if lone and len(finite) >= FEWEST and finite[2] < finite[1] < finite[0]:
        return True
    return len(finite) > 1 and (lone or finite[-1] > 0) and finite[-1] < finite[0] == max(finite)


def _is_real(words: tuple[str, ...]) -> bool:
    return sum(not word.lstrip("+-").isdigit() for word in words) >= REAL * len(words)


def _count_of(texts: tuple[str, ...], columns: list[tuple[str, ...]]) -> int | None:
    """The column of whole numbers that rises: the one that is named so, otherwise the first."""
    found = [i for i, words in enumerate(columns) if _counts(words)]
    named = [i for i in found if step_rank(_word(texts[i])) is not None or _word(texts[i]) in EPOCH_KEYS]
    return next(iter(named or found), None)


def _counts(words: tuple[str, ...]) -> bool:
    if not all(word.isdigit() and len(word) < 16 for word in words):
        return False
    whole = list(map(int, words))
    return sum(a < b for a, b in pairwise(whole)) >= RISES * (len(whole) - 1)


def _word(text: str) -> str:
    """The last word of a text, without case."""
    found = _NAME.search(text)
    return plain(found[1]) if found else ""


def _names(texts: tuple[str, ...], real: list[int], at: int | None) -> dict[int, str]:
    """A name for each column of real numbers: the loss that is spoken of before it, its last word, or its place.

    at: the count, before which the name may stand: `Loss at step 100: 2.5`.
    """
    names: dict[int, str] = {}
    for i in real:
        losses = _LOSS.findall(texts[i]) or (_LOSS.findall(texts[at]) if at is not None and i == at + 1 else [])
        found = _NAME.search(texts[i])
        name = losses[-1] if losses else found[1] if found and not _PAIRED.search(texts[i]) else f"column {i + 1}"
        if role_of(name) == "other" and step_rank(name) is not None:
            name = f"column {i + 1}"
        if at is not None and _word(texts[at]) in _EPISODES and "score" in name.lower():
            name = f"episode {name}"
        names[i] = name if name not in names.values() else f"{name} {i + 1}"
    return names

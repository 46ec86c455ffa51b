"""Relevant lines that are not records: an overflow, NaN in words, an error, a checkpoint saved or loaded."""

from __future__ import annotations

import math
import re

from stabwatch.analysis.readers.names import number

_OVERFLOW = re.compile(
    r"(?:OVERFLOW|[Oo]verflow)\b.*?reducing to ([\d.e+-]+)|reducing loss scale to ([\d.e+-]+)|"
    r"overflow detected,.*?setting loss scale to:? ([\d.e+-]+)|[Gg]rad[_ ]scale is (?:too )?small\D*([\d.][\d.e+-]*)|"
    r"[Mm]inimum loss scale reached \(([\d.e+-]+)\)|[Ll]oss scale already at minimum"
)
_NAN = (
    r"^(?!\s*[\w.]+\()(?!.*\b(?:no|not|without|never|any|zero|0)\W{1,4}(?:nan|inf|non-?finite)\b)"
    r".*(?:diverged with loss|(?<![-\w=:/])(?<![=:] )(nan|inf)\b.{0,30}\b(loss|grad)"
    r"|\b(?:loss|grad\w*|param\w*|weights?|activations?|outputs?)\b[^=]{0,30}\b(?:is|are|became|become|was|were|contains?|turned|has|have|went)\b"
    r"[^=]{0,14}\b(?:nans?|infs?|infinite|non-?finite|not finite)\b"
    r"|\b(?:nans?|infs?)(?: (?:or|and|/) ?(?:nans?|infs?)|/(?:nans?|infs?))?"
    r" (?:values? )?(?:was |were )?(?:detected|found|encountered|occurred)\b"
    r"|\b(?:detected|found|encountered|got|received)(?: an?)? (?:nans?|infs?|non-?finite|not finite)\b"
    r"|\bnans?(?: or infs?)? in (?:the )?(?:summary|input|output|tensor|weights|model)\b"
    r"|\bignored? a value of (?:nan|inf)\b|\bnon-?finite (?:loss|grad)"
    r"|\bloss (?:is probably exploding|(?:has )?exploded)\b|\b(?:invalid|bad|abnormal) loss\b"
    r"|\bgradients? (?:has |have )?exploded\b|\b(?:model|training) (?:has )?diverged\b"
    r"|\breturned nan values\b|\bfound invalid values:.*\bnan\b"
    r"|\bcontains?(?: either)? `?(?:nans?|infs?|infinity)\b|^\s*(?:loss\W*)?tensor\(\[*-?nan\b.*[^)\s]$)"
)
"""NaN in words; not a value, a call in source code, or a message that there is none."""
_ERROR = (
    r"^Traceback|^[\w.]*(Error|Exception)(?::(?!\s*-?(?:[\d.]|nan|inf))|$)"
    r"|CUDA out of memory|got signal|SIGTERM|^Killed|NCCL.*(error|timeout)"
)
_REMARKS = (
    ("nan_message", re.compile(_NAN, re.I)),
    ("error", re.compile(_ERROR)),
    ("checkpoint", re.compile(r"\bsav(ed|ing)\b.{0,40}(checkpoint|model)|checkpoint.{0,20}saved", re.I)),
    ("restart", re.compile(r"resum(ed|ing)\b|load(ed|ing)\b.{0,30}\bcheckpoint|checkpoint.{0,20}\bloaded", re.I)),
)  # fmt: skip


_OTHERWISE = re.compile(
    r"\b(?:nan|inf)s?\b[/, ]+(?:or )?(?:(?:nan|inf)s?\b[/, ]+(?:or )?)*(?!(?:nan|inf)s?\b)[a-z].*"
    r"\b(?:norm|loss|value)\w*\s*[=:]\s*[\d.]",
    re.IGNORECASE,
)
"""NaN as one of several reasons, with the number that it was: `detected nan/inf/spiky gradient (norm=2.2)`."""


def kind_of(text: str) -> tuple[str, float] | None:
    """The kind of a `Remark` and the number in the line (a loss scale), NaN if none; None for other lines."""
    found = _OVERFLOW.search(text)
    if found:
        value = next((number(group) for group in found.groups() if group), None)
        return "overflow", math.nan if value is None else value
    kind = next((kind for kind, pattern in _REMARKS if pattern.search(text)), None)
    if kind == "nan_message" and _OTHERWISE.search(text):
        return None
    return None if kind is None else (kind, math.nan)

"""Numbers, times and foreign names as short text that is safe on a terminal."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC and other strings
    r"|\x1b[ -/]*[0-~]?"
)
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, turn the text around, or cannot be encoded."""


def clean(text: object) -> str:
    """Text from a run log on one line, without escape sequences, control and bidirectional characters."""
    plain = _ESCAPE.sub("", str(text))
    plain = "".join(" " if c.isspace() else "" if unicodedata.category(c) in _UNSEEN else c for c in plain)
    return " ".join(plain.split())


def number(value: float | None) -> str:
    """A value in at most eight characters: three significant digits, '-' for not measured."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if 1e-3 <= abs(rounded) < 1000:
        return f"{value:.3g}"
    if 1000 <= abs(rounded) < 1e5:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """'4.2 s', '3 min 10 s', '2 h 05 min', '3 d 4 h'."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(amount: float) -> str:
    """Bytes in binary units: '640 KiB', '3.2 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"


def mapping(value: object) -> dict[str, Any]:
    """A JSON object read from a log, or an empty one when it is something else."""
    return value if isinstance(value, dict) else {}


def missing(coverage: object) -> dict[tuple[str, str], list[str]]:
    """Sites of taps that were not measured, by (tap, reason), from the data of a `coverage` event; cleaned."""
    lists = (mapping(coverage).get(name) for name in ("missing", "unmeasured"))
    found: dict[tuple[str, str], list[str]] = {}
    for entry in (mapping(entry) for entries in lists if isinstance(entries, list) for entry in entries):
        tap, reason, site = (clean(entry.get(name) or "") for name in ("tap", "reason", "site"))
        found.setdefault((tap or "tap", reason or "no reason given"), []).append(site or "the model")
    return found


def notes(coverage: object) -> list[tuple[str, str]]:
    """(tap, note) of what else a `coverage` event says about the measurements; cleaned."""
    entries = mapping(coverage).get("notes")
    known = [mapping(entry) for entry in entries] if isinstance(entries, list) else []
    return [(clean(entry.get("tap") or "note"), clean(entry.get("reason") or "")) for entry in known]


def listed(names: Sequence[str], most: int = 6) -> str:
    """'a, b, c and 4 more'."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(n: int, what: str) -> str:
    """'1 layer', '3 layers'."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def tail(name: str, width: int) -> str:
    """A path of a module or a file, shortened at its front, which many paths share."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]

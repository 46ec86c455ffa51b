"""Readers of other trainers' logs. The format of a file is recognised by its content, not by its name.

They are imported when one is asked for: who analyses a run folder needs the columns and their names alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabwatch.analysis.readers.any_log import READERS, formats, read_log

__all__ = ["READERS", "formats", "read_log"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stabwatch.analysis.readers import any_log

    return getattr(any_log, name)

"""What a reader is: one declaration, from which the order of trial and the documentation come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.log import Log


@dataclass(frozen=True)
class Reader:
    """One container of logs.

    covers: trainers and files that write it, for the documentation. sniff: by content, from the first 64 KiB.
    read: raises LogError.
    """

    name: str
    covers: str
    sniff: Callable[[LogFile], bool]
    read: Callable[[LogFile], Log]

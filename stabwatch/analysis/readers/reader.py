"""The declaration of a reader, which determines the order of trial and the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.log import Log


@dataclass(frozen=True)
class Reader:
    """One container of logs.

    covers: trainers and files with this format, for the documentation. sniff: recognises it from the first 64 KiB.
    read: raises LogError.
    """

    name: str
    covers: str
    sniff: Callable[[LogFile], bool]
    read: Callable[[LogFile], Log]

"""Prefixes of lines by launchers and log collectors: a timestamp, a host, a pod, a rank, a logger's name.

Such a prefix hides tables, rows and bare numbers. It is found in the first lines of a file and removed from all lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MONTHS = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_LEVELS = rb"(?:TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL)"
_COMMON = (
    rb"\[?\d{4}[-/]\d\d[-/]\d\d[ T_]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?"
    rb"\]?:?(?: +(?:- +|\| +(?![^\n]*\|[ \t\r]*$))?|(?=\[))",
    rb"\[\d\d:\d\d:\d\d\] +(?=\S)",
    rb"(?:<\d+>)?" + _MONTHS + rb" +\d{1,2} \d\d:\d\d:\d\d(?:\.\d+)? [\w.-]+ [\w./-]+(?:\[\d+\])?: ",
    rb"(?:stdout|stderr) [FP] ",
    rb"\d{1,6}\.\d+s(?: \| \d{1,8} \| |[ \t]+\d{1,8}[ \t])",
    rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+:\d+\] ",
    _LEVELS + rb":[\w.-]+:",
    rb"(?:- )?[\w.]+ - " + _LEVELS + rb" - ",
    rb"(?:\| +)?" + _LEVELS + rb" +\| [\w.<>]+:[\w.<>]+:\d+ - ",
    rb"\[[\w.]+\]\[" + _LEVELS + rb"\] - ",
)
"""Prefixes with a time and a logger: ISO 8601, syslog, Kubernetes (CRI), Kaggle, glog, and Python's logging with
`logging.basicConfig`, common formats, loguru and Hydra."""
_WRITERS = (
    rb"\[(?=[^\]\n]*[A-Za-z])(?:pod/|[\w.-]*/)[\w./-]*\] ",
    rb"\[(?:rank|default|worker|trainer|node|task|local_rank)[-_ ]?\d{1,6}\]:? ?",
    rb"\[\d+,[^\]\n]{1,40}\]<std(?:out|err)>:? ?",
    rb" *\d{1,5}: ",
    rb"(?=[\w.-]*[A-Za-z])[\w.-]+[-_.]\d+ +\| ",
    rb"(?=[\w.-]*[A-Za-z])[\w-]*[a-z]-?\d+(?:\.[\w.-]+)?: ",
    rb"\([\w.]+ pid=\d+(?:, ip=[\d.]+)?\) ",
)
"""Prefixes with a process: kubectl, torchrun, Open MPI, srun, Docker Compose, pdsh, Ray."""
_COUNTS = re.compile(rb"(?:step|iter|iteration|epoch|batch|update|round|loss)[-_]?\d", re.IGNORECASE)
"""A record number, not a host."""

_LINES, _LEAST, _MOST_PARTS = 400, 3, 5
_SHARE = 0.9
_MOST_WRITERS = 64


@dataclass(frozen=True)
class Prefix:
    """pattern: matches the end of a line and the prefix of the next. writers: the processes if there are several."""

    pattern: re.Pattern[bytes]
    writers: tuple[bytes, ...] = ()

    def strip(self, block: bytes) -> bytes:
        """Lines without the prefix; with several processes, `[rank3]: ` remains."""
        return self.pattern.sub(self._rank if self.writers else b"\n", b"\n" + block)[1:]

    def _rank(self, found: re.Match[bytes]) -> bytes:
        writer = found["writer"].strip()
        return b"\n[rank%d]: " % (self.writers.index(writer) if writer in self.writers else len(self.writers))


def find_prefix(head: bytes) -> Prefix | None:
    """The prefix that nearly all lines have; None if there is none. head: the first bytes of a file."""
    lines = [line for line in head.split(b"\n")[:-1] if line.strip()][:_LINES]
    if len(lines) < _LEAST:
        return None
    parts: list[bytes] = []
    writers: tuple[bytes, ...] = ()
    while len(parts) < _MOST_PARTS:
        part = next((p for p in _COMMON if _share(p, lines) is not None), None)
        if part is None and not writers:
            part = next((p for p in _WRITERS if _processes(p, lines) is not None), None)
            if part is not None:
                found = _processes(part, lines) or ()
                writers = found if len(found) > 1 else ()
                part = b"(?P<writer>" + part + b")" if writers else part
        if part is None:
            break
        parts.append(part)
        pattern = re.compile(part, re.MULTILINE)
        lines = [pattern.sub(b"", line, count=1) if pattern.match(line) else line for line in lines]
    if not parts:
        return None
    return Prefix(re.compile(b"\n" + b"".join(parts), re.MULTILINE), writers)


def _share(part: bytes, lines: list[bytes]) -> list[bytes] | None:
    """The matches of a pattern at the start of the lines; None if too few match."""
    found = [match[0] for match in map(re.compile(part, re.MULTILINE).match, lines) if match]
    return found if len(found) >= _SHARE * len(lines) else None


def _processes(part: bytes, lines: list[bytes]) -> tuple[bytes, ...] | None:
    """The processes that wrote the lines; None if the pattern has no process."""
    found = _share(part, lines)
    if found is None or any(_COUNTS.search(text) for text in found):
        return None
    names = tuple(dict.fromkeys(text.strip() for text in found))
    return names if len(names) <= min(_MOST_WRITERS, len(found) // 2) else None

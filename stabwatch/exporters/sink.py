"""Sinks, the destinations of an export: a protocol, the registry, and the loop that writes a run to a sink.

A package can add a sink with a `SinkDeclaration` in the entry-point group `stabwatch.sinks`:

    [project.entry-points."stabwatch.sinks"]
    my-store = "my_package:SINK"

`stabwatch export RUN --sink my-store` then uses it. `attach(..., sinks="my-store")` does, while the run goes on, if the
declaration says `live=True`. A live sink is a process of its own (`agent/live_sink.py`), so it may block or crash.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol

from stabwatch.alerts.timeline import timeline
from stabwatch.errors import MissingExtraError, SinkError, StabwatchError
from stabwatch.exporters.declared import adopt
from stabwatch.runlog import Event, Meta, RecordBatch, RecordLayout
from stabwatch.runlog.attempts import Surviving
from stabwatch.runlog.schema import segments_of
from stabwatch.runlog.source import Source

GROUP = "stabwatch.sinks"
Target = Literal["stream", "path", "none"]
Progress = Callable[[Source], None]
_log = logging.getLogger("stabwatch")


@dataclass(frozen=True)
class RunHeader:
    """Facts of a run before its first record.

    layouts: of its records. seconds: how long it took, by its end event or else by the age of its files.
    path: its folder. live: whether the run goes on; then `layouts` are those of the records so far, and `seconds` is 0.
    """

    meta: Meta
    layouts: tuple[RecordLayout, ...]
    seconds: float
    path: Path
    live: bool = False


class Sink(Protocol):
    """One destination. The calls come from one thread: `open`, then records and events by time, then `close`."""

    def open(self, run: RunHeader) -> None:
        """Begin."""

    def write(self, batch: RecordBatch) -> None:
        """Write some consecutive records; all of them have one layout."""

    def write_event(self, event: Event) -> None:
        """Write one event: a start, an alert, an error, the end."""

    def close(self) -> int:
        """Finish; return how much was written, in units of the declaration. Not called after a failure."""


@dataclass(frozen=True, kw_only=True)
class SinkDeclaration:
    """What `stabwatch export` needs to know of a sink.

    make: creates the sink. It takes the target, unless there is none, and the options named here as keywords.
    target: 'stream' for a binary stream, which is a file or standard output; 'path' for the path of a file or folder;
        'none' for a service.
    suffix: end of the default file name. unit: what `close` counts.
    live: whether it can follow a run. replays: whether writing a run again from its first record changes nothing; any
        other sink is given each record once, also after a restart.
    modules, extra: what it imports, and the extra of stabwatch that installs that.
    """

    name: str
    help: str
    make: Callable[..., Sink]
    target: Target = "path"
    suffix: str = ""
    unit: str = "values"
    options: tuple[str, ...] = ()
    live: bool = False
    replays: bool = False
    modules: tuple[str, ...] = ()
    extra: str = ""

    def check_installed(self) -> None:
        """Raises MissingExtraError, which says in one sentence what to install."""
        for module in self.modules:
            try:
                found = importlib.util.find_spec(module)
            except ImportError:  # a parent package is not there
                found = None
            if found is None:
                what = f"stabwatch[{self.extra}]" if self.extra else module
                raise MissingExtraError(f"The sink {self.name} needs {module}: pip install '{what}'.")


def load_sinks() -> dict[str, SinkDeclaration]:
    """The sinks of installed packages by name. One that cannot be loaded is logged and left out."""
    found: dict[str, SinkDeclaration] = {}
    for entry in entry_points(group=GROUP):
        try:
            declaration = entry.load()
            if not isinstance(declaration, SinkDeclaration):
                raise TypeError(f"{entry.value} is not a SinkDeclaration")
            found[declaration.name] = declaration
        except Exception as error:
            kind = type(error).__name__
            _log.warning("stabwatch: sink %s (%s) cannot be loaded: %s: %s", entry.name, entry.value, kind, error)
    return found


def write_run(source: Source, sink: Sink, progress: Progress | None = None) -> int:
    """Write a whole run to a sink; returns how much it wrote. Raises SinkError for what a sink raises unexpectedly.

    Records that a later attempt of the run superseded are left out.
    """
    adopt(source.meta.signals)
    events = source.poll_events()
    with _failures_of(type(sink).__name__):
        sink.open(RunHeader(source.meta, tuple(source.layouts), seconds_of(source, events), source.path))
        for item in timeline(Surviving(source, events), events, kinds=None):
            if isinstance(item, Event):
                sink.write_event(item)
            else:
                sink.write(item)
                if progress is not None:
                    progress(source)
        return sink.close()


def make_sink(declaration: SinkDeclaration, *target: object, **options: object) -> Sink:
    """Create a sink. Raises MissingExtraError, and SinkError for what its code raises unexpectedly."""
    declaration.check_installed()
    with _failures_of(declaration.name):
        return declaration.make(*target, **options)


@contextmanager
def _failures_of(name: str) -> Iterator[None]:
    try:
        yield
    except (StabwatchError, OSError):
        raise
    except Exception as error:
        raise SinkError(f"The sink {name} failed: {type(error).__name__}: {error}") from error


def seconds_of(source: Source, events: Iterable[Event]) -> float:
    """How long a run took, by its last end event or else by the age of its files; 0 when unknown."""
    ends = [path.stat().st_mtime for path in segments_of(source.path)]
    ends += [e.time for e in events if e.kind == "end"][-1:]
    return ends[-1] - source.meta.created if ends else 0.0

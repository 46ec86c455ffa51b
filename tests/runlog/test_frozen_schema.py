"""The run log on disk, frozen: other programs read it, and logs of yesterday are read tomorrow."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from stabwatch.runlog import Accumulator, Event, Meta, RecordLayout
from stabwatch.runlog.folder import arrow_schema
from stabwatch.runlog.schema import EVENTS, META, SCHEMA_VERSION, SEGMENTS

ON_PURPOSE = "is what other programs read. If you change it on purpose: SCHEMA_VERSION, this test and CHANGELOG.md."


def test_the_files_of_a_run_are_frozen() -> None:
    assert (META, EVENTS, SEGMENTS, SCHEMA_VERSION) == ("meta.json", "events.jsonl", "signals-*.arrows", 3), ON_PURPOSE


def test_the_columns_of_a_segment_are_frozen() -> None:
    schema = arrow_schema(RecordLayout.build([Accumulator("loss", "", "mean")]))
    assert [(f.name, str(f.type)) for f in schema] == [
        ("step", "int64"),
        ("time", "double"),
        ("values", "list<field: float not null>"),
    ], f"The Arrow schema {ON_PURPOSE}"
    assert set(schema.metadata) == {b"stabwatch"}


def test_the_layout_in_a_segment_is_frozen() -> None:
    layout = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("gradient", "blocks.0", "moments")])
    data = json.loads(layout.to_json())
    assert _shape(data) == {
        "schema": "int",
        "accumulators": [{"tap": "str", "site": "str", "reduction": "str", "fields": [["str"]]}],
        "series": [{"signal": "str", "layer": "str", "formula": "str", "indices": ["int"]}],
    }, f"The layout {ON_PURPOSE}"


def test_meta_is_frozen() -> None:
    assert [f.name for f in fields(Meta)] == [
        "run", "created", "host", "pid", "pid_started", "world_size", "rank", "versions", "model", "config", "name",
        "tags", "notes", "signals", "schema",
    ], f"meta.json {ON_PURPOSE}"  # fmt: skip
    written = json.loads(Meta(run="r", created=1.0, host="h", pid=1, pid_started=0.5).to_json())
    assert set(written) == {f.name for f in fields(Meta)}


def test_an_event_is_frozen() -> None:
    line = json.loads(Event("note", 1.5, 3, {"text": "x"}).to_json())
    assert line == {"kind": "note", "time": 1.5, "step": 3, "text": "x"}, f"An event {ON_PURPOSE}"


def test_the_kinds_of_events_that_are_written_are_those_of_the_docstring() -> None:
    named = set(re.findall(r"'(\w+)'", (Event.__doc__ or "").split("data:")[0]))
    written = set()
    for path in (Path(__file__).parents[2] / "stabwatch").rglob("*.py"):
        written |= set(re.findall(r"(?:\.event|Event)\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert written <= named, f"not in the docstring of Event: {sorted(written - named)}"


def _shape(data: object) -> object:
    """Types in place of values, and one element for each list."""
    if isinstance(data, dict):
        return {key: _shape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_shape(data[0])] if data else []
    return type(data).__name__

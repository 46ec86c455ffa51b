"""Torn tails, damaged bytes, foreign folders: what can be kept is kept, and the rest is named."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal

from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, RecordLayout, RunFolder, RunLog, append_event, read_run
from stabwatch.runlog.folder import arrow_schema

from .conftest import row


def layout_of(segment: Path) -> list[int]:
    """Offsets at which the messages of a segment end: the schema first, then the records."""
    source, ends = pa.BufferReader(segment.read_bytes()), []
    while source.tell() < segment.stat().st_size:
        pa.ipc.read_message(source)
        ends.append(source.tell())
    return ends


@pytest.fixture
def segment(run: Path) -> Path:
    return run / "signals-000.arrows"


def test_a_torn_tail_is_dropped_at_every_byte_and_comes_when_the_rest_does(run: Path, segment: Path) -> None:
    data, ends = segment.read_bytes(), layout_of(segment)
    for cut in range(ends[-2], ends[-1]):
        segment.write_bytes(data[:cut])
        log = RunLog(run)
        assert [b.steps.tolist() for b in log.poll()] == [[0, 1, 2, 3]], cut
        assert log.torn_bytes == cut - ends[-2] and log.poll() == []
        segment.write_bytes(data)
        assert [b.steps.tolist() for b in log.poll()] == [[4]], cut
        assert (log.torn_bytes, log.damaged_records) == (0, 0)


def test_a_segment_cut_at_every_byte_of_its_head_has_no_records_yet(run: Path, segment: Path) -> None:
    data, ends = segment.read_bytes(), layout_of(segment)
    log = RunLog(run)
    for cut in range(0, ends[1], 7):
        segment.write_bytes(data[:cut])
        assert log.poll() == []
    segment.write_bytes(data)
    assert [b.steps.tolist() for b in log.poll()] == [[0, 1, 2, 3, 4]]


def test_a_damaged_record_is_counted_and_the_others_are_kept(run: Path, segment: Path) -> None:
    data, ends = bytearray(segment.read_bytes()), layout_of(segment)
    for at in range(ends[2], ends[3]):  # the record of step 2
        broken = data.copy()
        broken[at] ^= 0xFF
        segment.write_bytes(broken)
        read = read_run(run)
        kept = read.steps.tolist()
        assert len(kept) + read.damaged_records == 5 and read.torn_bytes == 0, at
        if read.damaged_records:
            assert kept == [0, 1, 3, 4]
        else:  # in the numbers themselves, or in padding: nothing marks those
            assert len(kept) == 5


def test_a_damaged_header_is_noticed(run: Path, segment: Path) -> None:
    """Meta-test for the one above: it would hold for a reader that never sees damage."""
    data, ends = bytearray(segment.read_bytes()), layout_of(segment)
    data[ends[2] : ends[2] + 64] = b"\xaa" * 64
    segment.write_bytes(data)
    assert read_run(run).damaged_records == 1 and read_run(run).steps.tolist() == [0, 1, 3, 4]


def test_zeros_at_the_end_are_a_record_that_has_not_arrived(run: Path, segment: Path) -> None:
    """So a file looks for a while after a power cut, and over some network file systems."""
    data, ends = segment.read_bytes(), layout_of(segment)
    segment.write_bytes(data[: ends[-2]] + bytes(ends[-1] - ends[-2]))
    log = RunLog(run)
    assert log.poll()[0].steps.tolist() == [0, 1, 2, 3] and log.damaged_records == 0 and log.torn_bytes > 0
    segment.write_bytes(data)
    assert log.poll()[0].steps.tolist() == [4] and log.torn_bytes == 0


FUZZ = """
import random, sys
from pathlib import Path
from stabwatch.errors import RunLogError
from stabwatch.runlog import read_run
run = Path(sys.argv[1]); segment = run / "signals-000.arrows"; data = segment.read_bytes()
for seed in range(int(sys.argv[2])):
    r, broken = random.Random(seed), bytearray(data)
    start, end = r.choice([(0, len(data)), (int(sys.argv[3]), int(sys.argv[3]) + 250)])  # anywhere, or the first header
    for _ in range(r.choice([1, 1, 4, 50])):
        broken[r.randrange(start, end)] = r.randrange(256)
    at = r.randrange(len(broken)); broken[at:at + r.choice([0, 0, 1, 200])] = r.choice([b"", b"x", bytes(300)])
    segment.write_bytes(broken)
    try:
        read = read_run(run)
        assert len(read.steps) <= 10
        [block.values for block in read.blocks]
    except RunLogError:
        pass
print("survived")
"""


def test_no_bytes_crash_the_reader(run: Path, segment: Path) -> None:
    """In a child process, because what is feared is a crash of the whole process inside Arrow."""
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(run), "600", str(layout_of(segment)[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "survived\n", (done.returncode, done.stderr[-2000:])


def test_damage_costs_no_time(folder: RunFolder, layout: RecordLayout) -> None:
    for step in range(2000):
        folder.append(layout, step, float(step), row(layout, step))
    segment = folder.path / "signals-000.arrows"
    data, size = bytearray(segment.read_bytes()), layout_of(segment)[0]
    data[size + 5000 :] = random.Random(0).randbytes(len(data) - size - 5000)
    segment.write_bytes(data)
    begin = time.process_time()
    read = read_run(folder.path)
    assert time.process_time() - begin < 2.0
    assert len(read.steps) + read.damaged_records == 2000 and read.steps.tolist() == list(range(len(read.steps)))


def write_stream(path: Path, schema: pa.Schema) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema):
        pass


def test_an_arrow_stream_of_somebody_else_is_refused(run: Path) -> None:
    write_stream(run / "signals-001.arrows", pa.schema([("x", pa.int32())], metadata={"pandas": "{}"}))
    _is_left_out(run, r"signals-001.arrows is an Arrow stream, but not one of stabwatch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 4}, "has schema 4, and this stabwatch reads 2 and 3"),
        ({"accumulators": []}, "damaged record layout: ValueError: a layout needs at least one field"),
        ({"accumulators": None}, "damaged record layout: TypeError"),
        ({"series": [{"signal": "loss"}]}, "damaged record layout: KeyError: 'layer'"),
    ],
)
def test_a_layout_that_cannot_be_read_is_named(run: Path, layout: RecordLayout, change: dict, message: str) -> None:
    text = json.dumps({**json.loads(layout.to_json()), **change}, separators=(",", ":"))
    schema = arrow_schema(layout).with_metadata({"stabwatch": text})
    write_stream(run / "signals-001.arrows", schema)
    _is_left_out(run, message)


def test_what_is_no_file_is_left_out(run: Path) -> None:
    (run / "signals-001.arrows").mkdir()
    os.mkfifo(run / "signals-002.arrows")
    read = read_run(run)
    assert len(read.steps) > 1 and [text.partition(".arrows ")[2] for text in read.unreadable] == ["is not a file."] * 2


def _is_left_out(run: Path, message: str) -> None:
    """signals-001.arrows is left out, and what is wrong with it is said; alone, it is an error."""
    steps = read_run(run).steps.tolist()
    assert len(steps) > 1
    (text,) = read_run(run).unreadable
    assert re.search(message, text)
    (run / "signals-000.arrows").unlink()
    with pytest.raises(RunLogError, match=message):
        read_run(run)


def test_a_broken_event_line_is_counted_and_the_others_are_kept(run: Path) -> None:
    append_event(run, Event("start", 1.0))
    with open(run / "events.jsonl", "ab") as file:
        file.write(b'{"kind": "note"\n[1]\n{"kind": "note"}\n\xff\xfe\n\n' + b"[" * 100_000 + b"\n")
    append_event(run, Event("end", 2.0))
    log = RunLog(run)
    assert [event.kind for event in log.poll_events()] == ["start", "end"]
    assert log.bad_event_lines == 5 == read_run(run).bad_event_lines


def test_an_event_line_without_its_end_is_left_for_the_next_poll(run: Path) -> None:
    line = Event("note", 1.0, None, {"text": "é" * 20}).to_json().encode() + b"\n"
    for cut in range(len(line)):
        (run / "events.jsonl").write_bytes(line[:cut])
        log = RunLog(run)
        assert log.poll_events() == []
        (run / "events.jsonl").write_bytes(line)
        assert [event.kind for event in log.poll_events()] == ["note"]
        assert log.bad_event_lines == 0


def test_an_event_after_a_torn_line_stands_alone(run: Path) -> None:
    (run / "events.jsonl").write_bytes(b'{"kind": "no')
    append_event(run, Event("end", 2.0))
    log = RunLog(run)
    assert [event.kind for event in log.poll_events()] == ["end"] and log.bad_event_lines == 1


META_TEXTS = {
    "not json": ("{", r"meta\.json cannot be read: "),
    "not an object": ("[]", "has schema None, and this stabwatch reads 2 and 3"),
    "another schema": ('{"schema": 7}', "has schema 7, and this stabwatch reads 2 and 3"),
    "incomplete": ('{"schema": 2, "run": "x"}', "is incomplete: .*missing 4 required"),
    "deep": ("[" * 100_000, r"meta\.json cannot be read: "),
    "not text": (b"\xff\xfe\x00", r"meta\.json cannot be read: "),
}


@pytest.mark.parametrize(("text", "message"), META_TEXTS.values(), ids=META_TEXTS)
def test_a_bad_meta_says_what_is_wrong(run: Path, text: str | bytes, message: str) -> None:
    (run / "meta.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunLogError, match=message):
        read_run(run)


def test_a_path_that_is_no_run_folder_says_why_and_what_to_give(tmp_path: Path) -> None:
    way_out = "Give the folder that `stabwatch.attach` printed"
    with pytest.raises(RunLogError, match=f"nowhere is not a run folder: no such file or folder. {way_out}"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunLogError, match=f"is not a run folder: it has no meta.json. {way_out}"):
        read_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunLogError, match="file is not a run folder: it is a file"):
        read_run(tmp_path / "file")


def test_a_segment_that_cannot_be_opened_is_named(run: Path) -> None:
    (run / "signals-001.arrows").mkdir()
    _is_left_out(run, r"signals-001.arrows is not a file")


def test_a_layout_without_fields_is_refused_before_arrow_crashes_on_it(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="at least one field"):
        folder.append(RecordLayout.build([]), 0, 0.0, np.empty(0, np.float32))
    assert_array_equal(read_run(folder.path).steps, [])


@pytest.mark.parametrize("size", [100, 700, 1 << 20])
def test_a_stream_gives_what_a_poll_gives_whatever_the_size_of_its_pieces(run: Path, segment: Path, size: int) -> None:
    data, ends = segment.read_bytes(), layout_of(segment)
    damaged = bytearray(data)
    damaged[ends[2] + 8 : ends[2] + 40] = b"\xff" * 32
    for content in (data, data[: ends[-1] - 9], bytes(damaged), data[: ends[0] // 2], b""):
        segment.write_bytes(content)
        whole, log = RunLog(run), RunLog(run)
        expected = [step for block in whole.poll() for step in block.steps.tolist()]
        assert [step for block in log.stream(size) for step in block.steps.tolist()] == expected
        assert (log.torn_bytes, log.damaged_records) == (whole.torn_bytes, whole.damaged_records)
        assert log.position + log.torn_bytes == log.size
        assert [layout.keys for layout in log.layouts] == [segment.layout.keys for segment in whole._segments.values()
                                                        if segment.layout is not None]  # fmt: skip

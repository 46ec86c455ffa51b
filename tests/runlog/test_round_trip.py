"""What is written is what is read: whole runs, runs that grow, layouts that change, other people's tools."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal

from stabwatch.errors import RunLogError
from stabwatch.runlog import (
    Accumulator,
    Event,
    Meta,
    RecordLayout,
    RunFolder,
    RunLog,
    SeriesKey,
    append_event,
    find_run,
    read_run,
    wait_for_run,
)

from .conftest import meta, row


def test_a_run_is_read_as_it_was_written(run: Path, layout: RecordLayout) -> None:
    append_event(run, Event("end", 7.0, 4, {"reason": "finished"}))
    read = read_run(run)
    assert_array_equal(read.steps, range(5))
    assert_array_equal(read.times, 100.0 + np.arange(5))
    (block,) = read.blocks
    assert block.layout == layout and block.rows.dtype == np.float32
    assert_array_equal(block.rows, [row(layout, step) for step in range(5)])
    assert read.keys == layout.keys
    assert read.events == (Event("end", 7.0, 4, {"reason": "finished"}),)
    assert (read.damaged_records, read.torn_bytes, read.bad_event_lines) == (0, 0, 0)


def test_special_values_come_back_bit_for_bit(folder: RunFolder, layout: RecordLayout) -> None:
    values = row(layout, 1)
    values[:6] = [np.nan, np.inf, -np.inf, -0.0, np.float32(1e-45), np.finfo(np.float32).max]
    folder.append(layout, 2**62, 1.5, values)
    (block,) = read_run(folder.path).blocks
    assert block.rows[0].tobytes() == values.tobytes() and block.steps[0] == 2**62


def test_values_of_another_type_or_stride_are_written_as_float32(folder: RunFolder, layout: RecordLayout) -> None:
    folder.append(layout, 1, 1.0, np.arange(2.0 * layout.width)[::2])
    assert_array_equal(read_run(folder.path).blocks[0].rows[0], np.arange(0, 2 * layout.width, 2))


def test_meta_comes_back(tmp_path: Path) -> None:
    written = meta(world_size=4, versions={"torch": "2"}, model={"name": "GPT", "layers": ["a"]}, config={"k": 1})
    RunFolder(tmp_path / "run", written)
    assert RunLog(tmp_path / "run").meta == written
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["meta.json"]


def test_a_field_of_a_later_version_in_meta_is_ignored(run: Path) -> None:
    data = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**data, "later": 1}))
    assert RunLog(run).meta == Meta(**data)


def test_a_new_layout_opens_a_new_segment(folder: RunFolder, layout: RecordLayout) -> None:
    wider = RecordLayout.build([*layout.accumulators, Accumulator("activation", "late", "moments")])
    for step, one in enumerate([layout, layout, wider, layout]):
        folder.append(one, step, float(step), row(one, step))
    assert len(list(folder.path.glob("signals-*.arrows"))) == 3
    read = read_run(folder.path)
    assert [b.layout for b in read.blocks] == [layout, wider, layout]
    assert_array_equal(read.steps, range(4))
    assert SeriesKey("output_rms", "late") in read.keys and read.keys[: len(layout.keys)] == layout.keys
    steps, values = read.series("activation_abs_max", "late")
    assert_array_equal(steps, [2])
    assert_array_equal(values, row(wider, 2)[-1:])


def test_segments_keep_their_order_beyond_a_thousand(folder: RunFolder, layout: RecordLayout) -> None:
    for number in (1000, 101, 999):
        (folder.path / f"signals-{number:03d}.arrows").touch()
    folder._segments = 1001
    folder.append(layout, 1, 1.0, row(layout, 1))
    log = RunLog(folder.path)
    log.poll()
    assert [p.stem for p in log._segments] == ["signals-101", "signals-999", "signals-1000", "signals-1001"]


def test_a_folder_that_is_opened_again_is_continued(run: Path, layout: RecordLayout) -> None:
    again = RunFolder(run, meta())
    again.append(layout, 5, 105.0, row(layout, 5))
    again.close()
    assert_array_equal(read_run(run).steps, range(6))


def test_series_gives_only_what_was_measured(folder: RunFolder, layout: RecordLayout) -> None:
    for step in range(4):
        values = row(layout, step)
        if step % 2:
            start = layout.start(Accumulator("activation", "blocks.0", "moments"))
            values[start : start + 4] = np.nan
        folder.append(layout, step, float(step), values)
    read = read_run(folder.path)
    assert_array_equal(read.series("activation_abs_max", "blocks.0")[0], [0, 2])
    assert_array_equal(read.series("loss")[1], [0, 1, 2, 3])
    assert [len(part) for part in read.series("no_such_signal")] == [0, 0]


def test_a_run_without_records_is_empty(folder: RunFolder) -> None:
    read = read_run(folder.path)
    assert len(read.steps) == len(read.times) == len(read.keys) == len(read.events) == 0


def test_a_reader_beside_a_writer_gets_each_record_once(folder: RunFolder, layout: RecordLayout) -> None:
    records = 400

    def write() -> None:
        other = RecordLayout.build(layout.accumulators[:3])
        for step in range(records):
            one = other if step % 100 >= 50 else layout
            folder.append(one, step, float(step), row(one, step))
            if step % 10 == 0:
                append_event(folder.path, Event("note", 0.0, step))
            if step == records // 2:
                looked.wait(10)  # all may be written before the reader has its turn

    log, writer, looked = RunLog(folder.path), threading.Thread(target=write), threading.Event()
    steps, notes, polls = [], [], 0
    writer.start()
    while len(steps) < records or writer.is_alive():
        for block in log.poll():
            assert_array_equal(block.rows[:, 1], block.steps)
            steps += block.steps.tolist()
        notes += [event.step for event in log.poll_events()]
        polls += 1
        looked.set()
    writer.join()
    notes += [event.step for event in log.poll_events()]
    assert steps == list(range(records)) and notes == list(range(0, records, 10))
    assert polls > 1 and log.poll() == [] and log.poll_events() == []
    assert (log.damaged_records, log.torn_bytes, log.bad_event_lines) == (0, 0, 0)


def test_plain_pyarrow_reads_a_segment(run: Path, tmp_path: Path) -> None:
    """Without stabwatch: the segment carries all that is needed, as docs promise."""
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys, json, pyarrow as pa\n"
        "sys.modules['stabwatch'] = None\n"
        "reader = pa.ipc.open_stream(sys.argv[1])\n"
        "table = json.loads(reader.schema.metadata[b'stabwatch'])\n"
        "steps, loss = [], []\n"
        "(s,) = [s for s in table['series'] if s['signal'] == 'loss']\n"
        "for batch in reader:\n"
        "    steps += batch['step'].to_pylist()\n"
        "    loss += [row[s['indices'][0]] / row[s['indices'][1]] for row in batch['values'].to_pylist()]\n"
        "print(json.dumps([steps, loss, s['formula']]))\n"
    )
    out = subprocess.run(
        [sys.executable, script, run / "signals-000.arrows"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(out.stdout) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], "mean"]


def test_the_arrow_schema_is_frozen(run: Path) -> None:
    schema = pa.ipc.open_stream(run / "signals-000.arrows").schema
    assert schema.remove_metadata() == pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("time", pa.float64(), nullable=False),
            pa.field("values", pa.list_(pa.field("field", pa.float32(), nullable=False)), nullable=False),
        ]
    ), "readers of users hang on this: raise SCHEMA_VERSION, and add a line to CHANGELOG.md"
    assert set(json.loads(schema.metadata[b"stabwatch"])) == {"schema", "accumulators", "series"}


def test_find_run_takes_the_run_itself_or_the_newest_inside(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(["new", "old"]):
        RunFolder(tmp_path / name, meta())
        os.utime(tmp_path / name / "meta.json", (1000 - age, 1000 - age))
    assert find_run(tmp_path) == tmp_path / "new"
    assert find_run(tmp_path / "old") == tmp_path / "old"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunLogError, match=r"empty is neither a run folder \(no meta.json\) nor a folder of runs"):
        find_run(tmp_path / "empty")


def test_waiting_for_a_run_ends_when_it_appears_or_when_time_is_up(tmp_path: Path) -> None:
    threading.Timer(0.15, lambda: RunFolder(tmp_path / "run", meta())).start()
    assert wait_for_run(tmp_path / "run").meta.run == "x"
    begin = time.monotonic()
    with pytest.raises(RunLogError, match="no such file or folder"):
        wait_for_run(tmp_path / "never", timeout=0.1)
    assert time.monotonic() - begin < 1.0

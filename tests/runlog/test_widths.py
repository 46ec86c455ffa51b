"""Records end after their last number: what is written is what is read, for any mix of widths, wherever it is torn."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from stabwatch.runlog import Accumulator, RecordLayout, RunFolder, RunLog, read_run
from stabwatch.runlog.folder import Segment, arrow_schema, columns
from stabwatch.runlog.glance import Glance
from stabwatch.runlog.segment import SegmentTail

from .conftest import meta
from .test_damage import FUZZ, layout_of

LAYOUT = RecordLayout.build(
    [Accumulator("loss", "", "mean"), *(Accumulator("activation", f"blocks.{i}", "moments") for i in range(60))]
)
MEASURED = st.integers(0, len(LAYOUT.accumulators))
MIXES = st.lists(MEASURED | st.sampled_from([1, 1, 1, len(LAYOUT.accumulators)]), min_size=1, max_size=40)


def row(step: int, measured: int) -> np.ndarray:
    """A record in which the first accumulators were measured, and some of them are NaN themselves."""
    values = np.random.default_rng(step).normal(size=LAYOUT.width).astype(np.float32)
    values[:: 7 + step % 5] = np.nan
    values[list(LAYOUT.starts)] = 1.0
    values[(*LAYOUT.starts, LAYOUT.width)[measured] :] = np.nan
    return values


def write(path: Path, mix: list[int]) -> tuple[np.ndarray, list[int]]:
    """The rows of a segment, and the places in the file where its messages end."""
    segment, ends = Segment(path, LAYOUT), [path.stat().st_size]
    rows = [row(step, measured) for step, measured in enumerate(mix)]
    for step, values in enumerate(rows):
        segment.append(step, 0.5 * step, values)
        ends.append(path.stat().st_size)
    segment.close()
    return np.array(rows), ends


def read(tail: SegmentTail, size: int) -> tuple[list[int], list[np.ndarray]]:
    blocks = list(tail.chunks(size)) if size else [block for block in [tail.poll()] if block is not None]
    assert all(block.times.tolist() == (0.5 * block.steps).tolist() for block in blocks)
    return [step for block in blocks for step in block.steps.tolist()], [r for block in blocks for r in block.rows]


@settings(max_examples=60)
@given(mix=MIXES, size=st.sampled_from([0, 100, 3000, 1 << 20]), data=st.data())
def test_what_is_written_is_what_is_read_wherever_the_file_is_torn(tmp_path_factory, mix, size, data):
    path = tmp_path_factory.mktemp("mix") / "signals-000.arrows"
    rows, ends = write(path, mix)
    whole, tail = path.read_bytes(), SegmentTail(path)
    found: list[int] = []
    for cut in [*sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6))), len(whole)]:
        path.write_bytes(whole[:cut])
        steps, values = read(tail, size)
        assert_array_equal(np.array(values).reshape(-1, LAYOUT.width), rows[len(found) : len(found) + len(steps)])
        found += steps
        assert found == list(range(sum(end <= cut for end in ends[1:]))), cut
        assert (tail.damaged, tail.torn) == (0, cut - max([0, *(end for end in ends if end <= cut)]))


def test_a_batch_of_narrow_records_is_no_larger_in_memory_than_one_of_wide_ones(tmp_path):
    path = tmp_path / "signals-000.arrows"
    write(path, [1] * 400)
    sizes = [block.rows.nbytes for block in SegmentTail(path).chunks(1 << 16)]
    assert len(sizes) > 3 and max(sizes) <= 1.2 * (1 << 16) and sum(sizes) == 400 * 4 * LAYOUT.width


def test_a_tear_is_no_record_and_no_damage(tmp_path):
    path = tmp_path / "signals-000.arrows"
    _, ends = write(path, [1, 61, 1, 30])
    whole = path.read_bytes()
    for cut in sorted({*range(ends[0], len(whole) + 1, 13), *(end + i for end in ends[1:-1] for i in (-1, 0, 1))}):
        path.write_bytes(whole[:cut])
        tail = SegmentTail(path)
        steps, _ = read(tail, 0)
        assert len(steps) == sum(end <= cut for end in ends[1:]) and tail.damaged == 0
        path.write_bytes(whole)
        assert len(steps) + len(read(tail, 0)[0]) == 4 and (tail.damaged, tail.torn) == (0, 0)


@settings(max_examples=60)
@given(mix=MIXES.filter(lambda mix: len(mix) > 3), size=st.sampled_from([0, 900, 1 << 20]), data=st.data())
def test_damage_costs_the_damaged_records_and_no_others(tmp_path_factory, mix, size, data):
    """Also where records of a width come for the first time after it."""
    path = tmp_path_factory.mktemp("mix") / "signals-000.arrows"
    rows, ends = write(path, mix)
    broken = bytearray(path.read_bytes())
    hit = data.draw(st.sets(st.integers(1, len(mix) - 2), min_size=1, max_size=4))
    for number in hit:
        start = ends[number] + data.draw(st.integers(0, 64))
        broken[start : start + 64] = b"\xaa" * 64
    path.write_bytes(broken)
    tail = SegmentTail(path)
    steps, values = read(tail, size)
    assert steps == [step for step in range(len(mix)) if step not in hit]
    assert_array_equal(np.array(values), rows[steps])
    assert 1 <= tail.damaged <= len(hit) and tail.torn == 0


def test_a_changed_byte_before_the_numbers_gives_no_other_numbers(tmp_path):
    """At each place of a record that is the first of its width; what is read is what was written, or nothing."""
    path = tmp_path / "signals-000.arrows"
    rows, ends = write(path, [1, 61, 1])
    whole = path.read_bytes()
    body = pa.ipc.read_message(pa.BufferReader(whole[ends[1] :])).body.size
    for at in range(ends[1], ends[2] - body):
        for bits in (0x01, 0x80, 0xFF):
            broken = bytearray(whole)
            broken[at] ^= bits
            path.write_bytes(broken)
            tail = SegmentTail(path)
            steps, values = read(tail, 0)
            assert_array_equal(np.array(values), rows[steps])
            assert {0, 2} <= set(steps) and len(steps) + tail.damaged == 3, (at, bits)


def test_no_bytes_crash_the_reader_of_a_mix(tmp_path):
    """In a child process, because what is feared is a crash of the whole process inside Arrow."""
    folder = RunFolder(tmp_path / "run", meta())
    for step in range(8):
        folder.append(LAYOUT, step, float(step), row(step, (1, 1, 61, 1, 12, 40, 1, 61)[step]))
    folder.close()
    begin = layout_of(folder.path / "signals-000.arrows")[2]  # of the first record of the second width
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(folder.path), "300", str(begin)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "survived\n", (done.returncode, done.stderr[-2000:])


def test_a_follower_reads_each_record_once_while_they_are_written(tmp_path):
    folder = RunFolder(tmp_path / "run", meta())
    mix = [random.Random(7).choice([1, 1, 1, 12, 61]) for _ in range(1500)]
    rows = np.array([row(step, measured) for step, measured in enumerate(mix)])

    def append() -> None:
        for step, values in enumerate(rows):
            folder.append(LAYOUT, step, float(step), values)

    writer = threading.Thread(target=append)
    writer.start()
    log, blocks, glance = RunLog(folder.path), [], Glance(folder.path)
    while writer.is_alive():
        blocks += log.poll()
        if glance.poll():
            assert glance.time == glance.step
    writer.join()
    blocks += log.poll()
    folder.close()
    assert [step for block in blocks for step in block.steps.tolist()] == list(range(len(mix)))
    assert_array_equal(np.concatenate([block.rows for block in blocks]), rows)
    assert (log.damaged_records, log.torn_bytes) == (0, 0)
    assert glance.poll() or glance.step == len(mix) - 1


@pytest.mark.parametrize("count", [1, 5, 100])
def test_some_records_are_picked_from_the_whole_segment(tmp_path, count):
    path = tmp_path / "signals-000.arrows"
    mix = [61 if step % 8 == 0 else 1 for step in range(60)]
    rows, _ = write(path, mix)
    for newest in (False, True):
        block = SegmentTail(path).pick(count, newest)
        steps = block.steps.tolist()
        assert len(steps) <= count and steps == sorted(set(steps))
        assert_array_equal(block.rows, rows[steps])
        if newest:
            assert steps == list(range(60))[-count:]
        elif count > 1:
            assert steps[0] == 0 and steps[-1] == 59 and max(np.diff(steps)) <= 2 * 60 / min(count, 60) + 8


def test_a_log_of_schema_2_is_read(tmp_path):
    """Its records have all columns, in a list of fixed length."""
    folder = RunFolder(tmp_path / "run", meta(schema=2))
    rows = np.array([row(step, 61 if step % 2 else 1) for step in range(6)])
    schema = columns(LAYOUT.width).with_metadata(
        {"stabwatch": arrow_schema(LAYOUT).metadata[b"stabwatch"].replace(b'{"schema":3', b'{"schema":2')}
    )
    with open(folder.path / "signals-000.arrows", "wb") as file:
        file.write(schema.serialize())
        for step, values in enumerate(rows):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field("values").type)
            batch = pa.record_batch([pa.array([step]), pa.array([1.0 * step]), lists], schema=schema)
            file.write(batch.serialize())
    run = read_run(folder.path)
    assert run.steps.tolist() == list(range(6)) and run.meta.schema == 2
    assert_array_equal(run.blocks[0].rows, rows)
    assert SegmentTail(folder.path / "signals-000.arrows").pick(2).steps.tolist() == [0, 5]

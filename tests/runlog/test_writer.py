"""The writing end under fire: it never blocks, never raises, loses nothing written, and says what it dropped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stabwatch.runlog import Accumulator, Event, RecordLayout, RunFolder, RunLog, Writer, read_run
from stabwatch.runlog.lock import RunLock

from .conftest import meta, row


def eventually(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def writer(folder: RunFolder):
    writer = Writer(folder)
    yield writer
    writer.close()


def test_records_and_events_are_written_in_order(writer: Writer, folder: RunFolder, layout: RecordLayout) -> None:
    writer.event("start", model="gpt")
    for step in range(20):
        writer.record(step, float(step), lambda step=step: (layout, row(layout, step)))
    writer.event("end", 19, reason="finished")
    writer.close()
    run = read_run(folder.path)
    assert run.steps.tolist() == list(range(20))
    assert [(e.kind, e.step, e.data) for e in run.events] == [
        ("start", None, {"model": "gpt"}),
        ("end", 19, {"reason": "finished"}),
    ]
    assert (writer.written, writer.dropped, writer.failures) == (20, 0, {})


def test_a_record_is_on_disk_before_the_next_one_is_asked_for(
    writer: Writer, folder: RunFolder, layout: RecordLayout
) -> None:
    log = RunLog(folder.path)
    for step in range(5):
        writer.record(step, 0.0, lambda step=step: (layout, row(layout, step)))
        assert eventually(lambda step=step: writer.written == step + 1)
        assert [block.steps.tolist() for block in log.poll()] == [[step]]


def test_a_slow_disk_never_blocks_and_drops_are_counted(folder: RunFolder, layout: RecordLayout) -> None:
    gate = threading.Event()

    def slow() -> tuple[RecordLayout, np.ndarray]:
        gate.wait(10)
        return layout, row(layout, 1)

    writer = Writer(folder, capacity=3)
    begin = time.monotonic()
    for step in range(50):
        writer.record(step, 0.0, slow)
    assert time.monotonic() - begin < 5, "one record waits ten seconds"
    gate.set()
    writer.close()
    assert writer.written + writer.dropped == 50 and writer.written in (3, 4)
    assert len(read_run(folder.path).steps) == writer.written


def test_a_failing_record_is_dropped_counted_and_named(writer: Writer, folder: RunFolder, layout: RecordLayout) -> None:
    def fails() -> tuple[RecordLayout, np.ndarray]:
        raise RuntimeError("the copy was lost")

    writer.record(0, 0.0, fails)
    writer.record(1, 0.0, lambda: (layout, row(layout, 1)))
    writer.record(2, 0.0, fails)
    writer.record(3, 0.0, lambda: (layout, np.ones(3, np.float32)))  # slots of another layout
    writer.record(4, 0.0, lambda: (RecordLayout.build([]), np.empty(0, np.float32)))
    writer.record(5, 0.0, lambda: (layout, row(layout, 5)))
    writer.close()
    run = read_run(folder.path)
    assert run.steps.tolist() == [1, 5] and writer.dropped == 4
    assert writer.failures == {"record": "RuntimeError: the copy was lost"}
    (error,) = run.events
    assert (error.kind, error.data["probe"]) == ("error", "writer.record")
    assert "the copy was lost" in error.data["traceback"]


def test_a_failure_of_the_last_record_is_still_reported(writer: Writer, folder: RunFolder) -> None:
    writer.record(0, 0.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    writer.close()
    assert [event.data["message"] for event in read_run(folder.path).events] == ["ZeroDivisionError: division by zero"]


def test_closing_twice_is_safe_and_what_comes_later_is_counted(
    writer: Writer, folder: RunFolder, layout: RecordLayout
) -> None:
    writer.close()
    writer.close()
    writer.record(0, 0.0, lambda: (layout, row(layout, 0)))
    writer.event("note")
    assert writer.dropped == 2 and read_run(folder.path).events == ()


def test_idle_is_called_while_nothing_happens_and_may_fail(folder: RunFolder) -> None:
    calls: list[int] = []

    def idle() -> None:
        calls.append(1)
        raise OSError("no")

    writer = Writer(folder, idle=idle)
    assert eventually(lambda: bool(calls))
    writer.close()
    assert writer.failures == {"idle": "OSError: no"}
    assert [event.data["probe"] for event in read_run(folder.path).events] == ["writer.idle"]


def test_what_the_last_records_show_is_written_before_the_end(folder: RunFolder, layout: RecordLayout) -> None:
    """A slow disk: alerts are judged while the queue is emptied, after `close` was called."""
    gate = threading.Event()
    writer = Writer(folder, capacity=4)

    def shows(step: int) -> tuple[RecordLayout, np.ndarray]:
        gate.wait(10)
        writer.event("alert", step)
        return layout, row(layout, step)

    for step in range(10):
        writer.record(step, 0.0, lambda step=step: shows(step))
    threading.Timer(0.2, gate.set).start()
    writer.close(Event("end", 5.0, 9, {"reason": "finished"}))
    run = read_run(folder.path)
    assert 4 <= len(run.steps) == writer.written < 10
    assert [e.step for e in run.events if e.kind == "alert"] == run.steps.tolist()
    assert run.events[-1].kind == "end" and run.events[-1].data == {"reason": "finished", "dropped": writer.dropped}


def test_a_disk_that_stays_slow_is_said(folder: RunFolder, layout: RecordLayout, caplog) -> None:
    gate = threading.Event()
    writer = Writer(folder)
    for step in range(5):
        writer.record(step, 0.0, lambda step=step: (gate.wait(10), (layout, row(layout, step)))[1])
    writer.close(timeout=0.1)
    assert [r.getMessage() for r in caplog.records] == [
        f"stabwatch: {folder.path} is slow: 5 records and events are not written after 0 s."
    ]
    gate.set()
    writer._thread.join(10)


STUCK = """
import sys, threading
from pathlib import Path
from stabwatch.runlog import Event, Meta, RunFolder, Writer
folder = RunFolder(Path(sys.argv[1]), Meta(run="run", created=1.0, host="host", pid=1, pid_started=1.0))
writer = Writer(folder)
for step in range(5):
    writer.record(step, 0.0, threading.Event().wait)
writer.close(Event("end", 2.0, 4, {"reason": "finished"}), timeout=0.1)
"""


def test_a_process_that_exits_before_all_is_written_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path / "run")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "5 records and events are not written" in done.stderr
    (end,) = [Event.from_json(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert (end.kind, end.step, end.data) == ("end", 4, {"reason": "finished", "dropped": 5})


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_is_gone_is_said_once(
    folder: RunFolder, layout: RecordLayout, caplog, monkeypatch, how: str
) -> None:
    monkeypatch.setattr("stabwatch.runlog.writer.LOOK", 0.1)
    writer = Writer(folder)
    writer.record(0, 0.0, lambda: (layout, row(layout, 0)))
    assert eventually(lambda: writer.written == 1)
    if how == "deleted":
        shutil.rmtree(folder.path)
    else:
        folder.path.rename(folder.path.with_name("else"))
    if how == "replaced":
        RunFolder(folder.path, meta())
    for step in range(1, 30):
        writer.record(step, 0.0, lambda step=step: (layout, row(layout, step)))
        time.sleep(0.02)
    writer.close()
    said = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert len(said) == 1 and "FileNotFoundError" in said[0] and str(folder.path) in said[0]


@pytest.mark.parametrize("name", ["events.jsonl", "meta.json.new", ".lock"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_the_folder_is_never_written_through(tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    if kind == "link":
        (run / name).symlink_to(victim)
    else:
        os.mkfifo(run / name)
    try:
        lock = RunLock.take(run)
        RunFolder(run, meta(), lock).release()
    except OSError:
        assert name != "meta.json.new"  # that one is replaced
    assert victim.read_text() == "precious"


CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from stabwatch.runlog import Accumulator, Meta, RecordLayout, RunFolder, Writer
table = RecordLayout.build([Accumulator("loss", "", "mean")])
writer = Writer(RunFolder(Path(sys.argv[1]), Meta(run="x", created=0.0, host="h", pid=1, pid_started=0.0)))
for step in range(1_000_000):
    writer.record(step, 0.0, lambda step=step: (table, np.array([1, step, 0], np.float32)))
    if step % 10 == 0:
        while writer.written <= step:
            writer.hurry()
            time.sleep(0.0002)
        print(*range(max(0, step - 9), step + 1), sep="\\n", flush=True)
"""


@pytest.mark.parametrize("records", [1, 200])
def test_kill_9_loses_no_record_that_was_written(tmp_path: Path, records: int) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "run")], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(records):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        last = [records - 1, *map(int, child.stdout.read().split())][-1]
    run = read_run(tmp_path / "run")
    assert len(run.steps) >= last + 1  # one more may have been written and not yet told
    assert run.steps.tolist() == list(range(len(run.steps))) and run.damaged_records == 0
    assert run.series("loss")[1].tolist() == run.steps.tolist()


def full_and_free_again(folder: RunFolder, layout: RecordLayout, fill, free) -> None:
    """The story of a full disk; `fill` takes all space and `free` gives it back."""
    writer = Writer(folder)
    step = 0

    def record(number: int, layout: RecordLayout = layout) -> None:
        nonlocal step
        for _ in range(number):
            writer.record(step, 0.0, lambda step=step: (layout, row(layout, step)))
            step += 1
        writer.hurry()
        assert eventually(lambda: writer.written + writer.dropped == step)

    record(3)
    fill()
    while not writer.dropped:
        record(1)
    record(20)
    before = writer.written
    assert writer.dropped >= 21 and "record" in writer.failures
    during = read_run(folder.path)
    assert during.steps.tolist() == list(range(before)) and during.torn_bytes == 0
    writer.event("note", text="lost or late, but never half a line " + "x" * 5000)
    other = RecordLayout.build(
        [*layout.accumulators, *(Accumulator("activation", f"late.{i}", "moments") for i in range(40))]
    )
    record(10, other)  # a layout that changes now finds no space for its segment
    assert len(list(folder.path.glob("signals-*.arrows"))) == 1
    free()
    record(3)
    writer.close()
    run = read_run(folder.path)
    assert len(run.steps) == writer.written == before + 3 and run.damaged_records == 0
    errors = [event for event in run.events if event.kind == "error"]
    assert [event.data["message"] for event in errors if event.data["probe"] == "writer.record"] == [
        writer.failures["record"]
    ]
    assert [event.kind for event in run.events].count("note") == 1


@pytest.fixture
def tiny_disk(tmp_path: Path):
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if made.returncode:
        pytest.skip("only root can mount a full disk here: " + made.stderr.strip()[:80])
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_drops_records_names_it_and_goes_on_when_there_is_space(
    tiny_disk: Path, layout: RecordLayout
) -> None:
    folder = RunFolder(tiny_disk / "run", meta())
    ballast = tiny_disk / "ballast"

    def fill() -> None:
        with open(ballast, "wb", buffering=0) as file:
            for size in (4096, 512, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    full_and_free_again(folder, layout, fill, ballast.unlink)


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from stabwatch.runlog import Accumulator, RecordLayout, RunFolder
from tests.runlog.conftest import meta
from tests.runlog.test_writer import full_and_free_again
table = RecordLayout.build([Accumulator("activation", f"blocks.{i}", "moments") for i in range(40)])
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
folder = RunFolder(Path(sys.argv[1]), meta())
def fill():
    size = (folder.path / "signals-000.arrows").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3000, unlimited[1]))
full_and_free_again(folder, table, fill, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited))
print("went on")
"""


def test_a_file_size_limit_is_survived_in_the_same_way(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr[-3000:]


def test_a_record_that_cannot_be_cut_off_goes_into_a_new_segment(folder: RunFolder, layout: RecordLayout) -> None:
    """The file is closed under it, so that neither the write nor the cut succeeds."""
    folder.append(layout, 0, 0.0, row(layout, 0))
    assert folder._segment is not None
    os.dup2(os.open(os.devnull, os.O_RDONLY), folder._segment._file.fileno())
    with pytest.raises(OSError):
        folder.append(layout, 1, 0.0, row(layout, 1))
    folder.append(layout, 2, 0.0, row(layout, 2))
    assert read_run(folder.path).steps.tolist() == [0, 2]
    assert len(list(folder.path.glob("signals-*.arrows"))) == 2


def test_the_folder_vanishing_is_counted_and_not_raised(folder: RunFolder, layout: RecordLayout) -> None:
    import shutil

    writer = Writer(folder)
    shutil.rmtree(folder.path)
    writer.record(0, 0.0, lambda: (layout, row(layout, 0)))
    writer.event("note")
    writer.close()
    assert writer.dropped >= 1 and "FileNotFoundError" in writer.failures["record"]


HALF_AN_EVENT = """
import resource, sys
from pathlib import Path
from stabwatch.runlog import Event, append_event
run = Path(sys.argv[1])
append_event(run, Event("start", 0.0))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "events.jsonl").stat().st_size + 100, unlimited[1]))
try:
    append_event(run, Event("note", 0.0, None, {"text": "x" * 5000}))
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
append_event(run, Event("end", 0.0))
"""


def test_half_an_event_is_an_error_and_costs_no_other_line(folder: RunFolder) -> None:
    command = [sys.executable, "-c", HALF_AN_EVENT, str(folder.path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "No space left on device\n"
    run = read_run(folder.path)
    assert [event.kind for event in run.events] == ["start", "end"] and run.bad_event_lines == 1


def test_two_processes_append_events_to_one_file(folder: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from stabwatch.runlog import Event, append_event\n"
        "for i in range(300): append_event(Path(sys.argv[1]), Event('note', 0.0, i, {'text': 'x' * 500}))"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(folder.path)]) for _ in range(2)]
    assert [child.wait(30) for child in children] == [0, 0]
    run = read_run(folder.path)
    assert len(run.events) == 600 and run.bad_event_lines == 0
    assert isinstance(run.events[0], Event)

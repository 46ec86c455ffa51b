"""Whatever takes more than two seconds shows a bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.analysis.sources import open_sources
from stabwatch.cli.render import progress_bar as bars
from tests.sampling import sample

STEPS = 4_000


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, Path]:
    """A log of each kind, of a few megabytes."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("logs")
    found = {kind: folder / kind for kind in ("text", "lines", "table", "events")}
    found["text"].write_text(
        "".join(f"step {i} loss: {2 + 1 / (i + 1):.4f} lr: 1e-4 {'.' * 60}\n" for i in range(STEPS))
    )
    found["lines"].write_text(
        "".join(json.dumps({"step": i, "loss": 2.0, "pad": "x" * 60}) + "\n" for i in range(STEPS))
    )
    found["table"].write_text("step,loss,pad\n" + "".join(f"{i},2.0,{'x' * 80}\n" for i in range(STEPS)))
    with SummaryWriter(str(found["events"])) as writer:
        for i in range(STEPS):
            writer.add_scalar("loss", 2.0, i)
    return found


@pytest.mark.parametrize("kind", ["text", "lines", "table", "events"])
def test_every_reader_tells_how_far_it_is(logs, kind, monkeypatch):
    monkeypatch.setattr("stabwatch.analysis.readers.file._CHUNK", 1 << 15)
    monkeypatch.setattr("stabwatch.analysis.readers.tensorboard._AT_ONCE", 1 << 15)
    told: list[tuple[int, int]] = []
    read_log(logs[kind], lambda position, size: told.append((position, size)))
    positions = [position for position, _ in told]
    back = sum(b < a for a, b in pairwise(positions))
    again = kind in ("text", "table")  # text for times of day, the first rows of a table for what counts
    assert len(told) > 4 and back <= again
    assert {size for _, size in told} == {max(positions)}, "it ends where the log does"


def test_a_foreign_log_says_how_far_its_records_are_gone_through(logs, monkeypatch):
    (log,) = open_sources([logs["text"]])
    assert isinstance(log, ForeignLog) and not log.position
    monkeypatch.setattr("stabwatch.analysis.readers.records.BATCH_RECORDS", 1000)
    shares = [log.position / log.size for _ in log.stream()]
    assert len(shares) > 2 and shares == sorted(shares) and shares[-1] == 1


COMMANDS = [
    ["analyze", "text"], ["analyze", "events"], ["report", "text", "-o", "out.html"], ["compare", "text", "lines"],
    ["replay", "table"], ["export", "events", "--csv", "-o", "out.csv"],
]  # fmt: skip
SHOWS_AT_ONCE = """
import rich.progress
import stabwatch.cli.render.console, stabwatch.cli.render.progress_bar as bar
bar.PATIENCE_SECONDS = 0.0
from stabwatch.cli import main
main()
"""


@pytest.mark.parametrize("command", sample(COMMANDS, COMMANDS[0], COMMANDS[-1]), ids=" ".join)
def test_on_a_terminal_a_bar_is_drawn_and_taken_away(logs, command, tmp_path):
    """In a terminal of its own (a pty), without patience."""
    ours, theirs = pty.openpty()
    words = [str(logs.get(word, word)) for word in command]
    child = subprocess.Popen(
        [sys.executable, "-c", SHOWS_AT_ONCE, *words], stderr=theirs, stdout=subprocess.DEVNULL, cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the child has closed it
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    assert child.wait() in (0, 1), drawn
    assert b"\xe2\x94\x81" in drawn, "a bar"
    assert drawn.rstrip().endswith((b"\x1b[2K", b"\x1b[?25h", b"rows")), "and nothing is left of it"


def test_nothing_is_drawn_where_nobody_looks(capsys, monkeypatch):
    monkeypatch.setattr(bars, "PATIENCE_SECONDS", 0.0)
    with bars.ProgressBar("reading") as bar:
        bar.reading(Path("x"))(1, 2)
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_comes_too_late_does_not_come(monkeypatch):
    """What was waited for ends while the bar is being made: no thread stays."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in range(20):
        monkeypatch.setattr(bars, "PATIENCE_SECONDS", 0.001)
        with bars.ProgressBar("reading"):
            time.sleep(0.001)
    deadline = time.monotonic() + 60
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if "Timer" in t.name or "refresh" in t.name.lower()]

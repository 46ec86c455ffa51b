"""`stabwatch top`: what is followed, and how it is drawn."""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from io import StringIO

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from stabwatch.cli.app import app
from stabwatch.cli.render.console import console
from stabwatch.cli.render.live import TopView, select_rows, shown
from stabwatch.cli.render.monitor import LayerRow, LiveView, Monitor
from stabwatch.runlog import Accumulator, Event, Meta, RecordLayout, RunFolder, RunLog, SeriesKey, append_event

NOW = 1_790_000_040.0


def rendered(frame: LiveView, width: int = 80, height: int = 24) -> list[str]:
    out = console(file=StringIO(), width=width, color_system=None)
    out.print(TopView(frame, height))
    return out.file.getvalue().splitlines()


def picture(run, now: float = NOW) -> LiveView:
    monitor = Monitor(run)
    monitor.poll(now)
    return monitor.view(now)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [6, 24, 50])
def test_a_picture_fits(sick_run, width, height):
    lines = rendered(picture(sick_run), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_what_the_picture_says(sick_run):
    text = "\n".join(rendered(picture(sick_run)))
    assert "sick  GPT" in text
    assert "finished" in text
    assert "step 299  " in text
    assert "steps/s" in text
    assert "critical AttentionLogit" in text
    assert "blocks.0.attn" in text
    assert "█" in text


def test_a_calm_run_has_no_alert(healthy_run):
    frame = picture(healthy_run)
    assert [alert for alert in frame.alerts if alert.severity != "info"] == []
    assert not any(row.severities.values() for row in frame.layers)


def test_layers_stand_in_forward_order(healthy_run):
    names = [row.name for row in picture(healthy_run).layers]
    assert names[:4] == ["wte", "blocks.0.attn", "blocks.0.mlp", "blocks.0"]


def test_a_deep_model_shows_the_layers_that_matter(new_run, tmp_path):
    run = new_run(tmp_path / "deep", sick=True, steps=260, layers=[f"model.layers.{i}" for i in range(12)])
    lines = rendered(picture(run))
    assert any("model.layers.0.attn" in line for line in lines)
    assert lines[-1].startswith("and ")
    assert "more layers" in lines[-1]


def row(name: str, logit: float | None = None, alarm: str | None = None) -> LayerRow:
    values = {} if logit is None else {"attention_logit_lower": logit, "attention_logit_upper": logit + 2}
    return LayerRow(name, values, (), {} if alarm is None else {"attention": alarm})


def test_which_layers_are_kept():
    rows = [row("a"), row("b", 5), row("c", math.nan), row("d", 50), row("e", 1, "warning"), row("f", 1, "critical")]
    assert [r.name for r in select_rows(rows, 3)[0]] == ["e", "f"]
    assert [r.name for r in select_rows(rows, 4)[0]] == ["c", "e", "f"], "NaN is worse than any number"
    assert [r.name for r in select_rows(rows, 5)[0]] == ["c", "d", "e", "f"]
    assert select_rows(rows, 6) == (rows, 0)
    assert select_rows(rows, 3)[1] == 4


def test_cells_of_the_layer_table():
    assert shown(row("a", 4.0), "attention") == "4–6"
    assert shown(row("a"), "attention") == ""
    assert shown(LayerRow("a", {"attention_logit_max": None}, (), {}), "exact") == "-", "not measured yet"
    assert shown(LayerRow("a", {"output_rms": math.nan}, (), {}), "output_rms") == "NaN"


def test_a_loss_of_nan_is_shown_as_nan(new_run, tmp_path):
    layout = RecordLayout.build([Accumulator("loss", "", "mean")])
    folder = RunFolder(tmp_path / "nan", Meta(run="nan", created=0, host="h", pid=1, pid_started=0))
    for step, value in enumerate([3.0, 2.9, 2.8, math.nan, math.nan]):
        folder.append(layout, step, NOW + step, np.array([1, value, math.isnan(value)], np.float32))
    folder.close()
    frame = picture(folder.path)
    assert math.isnan(frame.values["loss"])
    line = next(line for line in rendered(frame) if line.startswith("loss"))
    assert "NaN" in line
    assert line.rstrip().endswith("!!")


def test_measured_tells_nan_from_not_measured(tmp_path):
    layout = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("activation", "a", "moments")])
    folder = RunFolder(tmp_path / "run", Meta(run="r", created=0, host="h", pid=1, pid_started=0))
    values = np.full(layout.width, np.nan, np.float32)
    values[:3] = [1, np.nan, 1]
    folder.append(layout, 0, 0.0, values)
    folder.close()
    (block,) = RunLog(folder.path).poll()
    seen = dict(zip(layout.keys, block.measured[0].tolist(), strict=True))
    assert seen[SeriesKey("loss")]
    assert not seen[SeriesKey("output_rms", "a")]


def test_the_state_of_the_process(new_run, tmp_path):
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    run = new_run(tmp_path / "run", sick=False, steps=5, end=None, **mine)
    last = picture(run).last
    assert picture(run, last + 1).state == "training"
    assert picture(run, last + 100).state == "stalled"
    assert any("no records for 1 min 40 s" in line for line in rendered(picture(run, last + 100)))
    gone = new_run(tmp_path / "gone", sick=False, steps=5, end=None, **{**mine, "pid": 2**22 - 1})
    assert picture(gone, last + 1).state == "gone"
    append_event(run, Event("end", NOW, 4, {"reason": "killed\x1b[2J"}))
    text = "\n".join(rendered(picture(run)))
    assert "killed" in text
    assert "\x1b" not in text


def test_hostile_names(new_run, tmp_path):
    hostile = "a\x1b[2J[red]b\nc\u202e"
    run = new_run(tmp_path / "run", sick=True, steps=200, layers=[hostile], run=hostile, model={"name": hostile})
    lines = rendered(picture(run))
    assert "a[red]b c" in lines[0]
    assert len(lines) <= 24
    assert "\x1b" not in "".join(lines)


def test_a_run_without_records(tmp_path):
    folder = RunFolder(tmp_path / "run", Meta(run="new", created=NOW, host="h", pid=1, pid_started=0, model=[]))  # type: ignore[arg-type]
    assert any("no record yet" in line for line in rendered(picture(folder.path)))


def test_without_a_terminal_one_picture_is_printed(sick_run):
    for options in (["--once"], []):
        result = CliRunner().invoke(app, ["top", str(sick_run), *options])
        assert result.exit_code == 0
        assert result.output.count("attn logit") == 1
        assert "\x1b" not in result.output


def test_ctrl_c_leaves_the_live_view_quietly(sick_run):
    reader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "stabwatch", "top", str(sick_run), "--interval", "0.1"]
    env = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=env) as process:
        shown = b""
        while shown.count(b"attn logit") < 2:
            assert select.select([reader], [], [], 30)[0], "no second picture"
            shown += os.read(reader, 65536)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=_drain, args=(reader,), daemon=True).start()
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    os.close(terminal)
    assert b"\x1b[?1049h" in shown, "it draws on the alternate screen"


def _drain(reader: int) -> None:
    with suppress(OSError):
        while os.read(reader, 65536):
            pass


def test_the_newest_run_of_a_folder_is_taken(sick_run):
    assert CliRunner().invoke(app, ["top", str(sick_run.parent)]).output.startswith("sick")

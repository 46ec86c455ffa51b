"""Is it alive? Judged on real processes, and on folders that imitate /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stabwatch.runlog.process import ProcessWatch
from tests.agent.conftest import until
from tests.agent.synthetic import meta


def fake_proc(root: Path, pid: int, state: str = "S", ticks: int = 1000, boot: int = 1_700_000_000) -> Path:
    (root / str(pid)).mkdir(parents=True, exist_ok=True)
    (root / "stat").write_text(f"cpu 1 2 3\nbtime {boot}\n")
    fields = [state, *["0"] * 18, str(ticks), "0"]
    (root / str(pid) / "stat").write_text(f"{pid} (evil) name) {' '.join(fields)}")
    return root


def test_this_process_is_alive():
    assert ProcessWatch(meta("r")).gone(0.0) is None


def test_a_real_child_is_seen_to_die_even_before_it_is_waited_for():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = ProcessWatch(meta("r", pid=child.pid, pid_started=psutil.Process(child.pid).create_time()))
    assert watch.gone(0.0) is None
    child.kill()
    assert until(lambda: watch.gone(0.0)).detail == f"process {child.pid} no longer exists"
    child.communicate()
    assert watch.gone(0.0)


def test_another_process_with_the_same_pid_is_not_it():
    assert ProcessWatch(meta("r", pid_started=psutil.Process().create_time() - 1000)).gone(0.0)


def test_a_wall_clock_that_is_set_later_does_not_kill(tmp_path):
    started = 1_700_000_000 + 1000 / os.sysconf("SC_CLK_TCK")
    watch = ProcessWatch(meta("r", pid=7, pid_started=started), proc=fake_proc(tmp_path, 7))
    assert watch.gone(0.0) is None
    fake_proc(tmp_path, 7, boot=1_700_009_999)
    assert watch.gone(0.0) is None
    fake_proc(tmp_path, 7, ticks=2000)
    assert watch.gone(0.0)


@pytest.mark.parametrize("state", "ZX")
def test_a_zombie_is_dead(tmp_path, state):
    started = 1_700_000_000 + 1000 / os.sysconf("SC_CLK_TCK")
    assert ProcessWatch(meta("r", pid=7, pid_started=started), proc=fake_proc(tmp_path, 7, state)).gone(0.0)


def test_without_proc_psutil_answers(tmp_path):
    assert ProcessWatch(meta("r"), proc=tmp_path).gone(0.0) is None
    assert ProcessWatch(meta("r", pid=2**22 - 1), proc=tmp_path).gone(0.0)


def test_from_another_host_only_a_long_silence_counts():
    watch = ProcessWatch(meta("r", host="elsewhere", pid=2**22 - 1), stale_seconds=100)
    assert watch.gone(99.0) is None
    gone = watch.gone(101.0)
    assert gone is not None and "elsewhere cannot be inspected" in gone.detail

"""Other jobs on the machine do not make the share of what is ours look small."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from stabwatch.runtime.pace import Delay

KNOWN = os.path.exists("/proc/self/schedstat")


def _compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.skipif(not KNOWN, reason="the kernel does not count it")
def test_a_thread_that_shares_its_processor_is_delayed_and_one_that_sleeps_is_not():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        delay = Delay()
        delay.seconds()
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            began = time.perf_counter()
            _compute(0.2)
            wall, delayed = time.perf_counter() - began, delay.seconds()
            other.kill()
        assert 0.05 < delayed <= wall - 0.2 + 0.02
    finally:
        os.sched_setaffinity(0, before)
    delay.seconds()
    time.sleep(0.5)
    assert delay.seconds() < 0.4, "but for the time that a busy machine takes to wake it"


def test_another_thread_begins_anew(monkeypatch):
    delay, found = Delay(), []
    delay.seconds()
    thread = threading.Thread(target=lambda: found.append(delay.seconds()))
    thread.start()
    thread.join()
    assert found[0] == pytest.approx(0.0, abs=0.01)
    monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(OSError("not here")))
    assert Delay().seconds() == 0.0
    monkeypatch.undo()
    delay.seconds()
    monkeypatch.setattr(os, "pread", lambda *args: b"?")
    assert delay.seconds() == 0.0 == delay.seconds()

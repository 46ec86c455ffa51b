"""How long a rank works in a step: what it waits for others is left out."""

from __future__ import annotations

import pytest
import torch

from stabwatch.runtime import work_clock
from stabwatch.runtime.work_clock import WorkClock

PAUSE = 0.05


class Time:
    """A clock that goes on by what is slept alone."""

    def __init__(self) -> None:
        self._now = 100.0

    def perf_counter(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


time = Time()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(work_clock, "time", time)


def _step(clock: WorkClock, waits: bool, passes: int = 1) -> float:
    """A step: a pause before the model, in its backward pass, in the wait after that, and after the pass."""
    began = time.perf_counter()
    clock.step_begins(began)
    time.sleep(PAUSE)
    for _ in range(passes):
        x = torch.ones(3, requires_grad=True)
        clock.forward_begins()
        y = x * 2
        y.register_hook(lambda gradient: time.sleep(PAUSE))
        loss = y.sum()
        clock.forward_ended()
        clock.pass_begins([loss] if waits else ())
        loss.backward()
        time.sleep(PAUSE)  # as ranks wait for each other in the engine's last callback
        clock.pass_ended()
    time.sleep(PAUSE)
    return time.perf_counter()


@pytest.mark.parametrize("passes", [1, 2])
def test_the_wait_after_each_backward_graph_is_left_out(passes):
    clock = WorkClock(cpu=True)
    now = _step(clock, waits=True, passes=passes)
    whole = now - clock._began
    worked = clock.seconds(now, coupled=True, sharded=False)
    assert worked == pytest.approx(whole - passes * PAUSE, abs=1e-9)


def test_of_shards_only_what_is_outside_of_the_passes_counts():
    clock = WorkClock(cpu=True)
    now = _step(clock, waits=False)
    assert clock.seconds(now, coupled=False, sharded=True) == pytest.approx(2 * PAUSE, abs=1e-9)


def test_where_the_loop_reduces_gradients_itself_the_time_after_the_last_pass_does_not_count():
    clock = WorkClock(cpu=True)
    now = _step(clock, waits=False)
    assert clock.seconds(now, coupled=False, sharded=False) == pytest.approx(3 * PAUSE, abs=1e-9)


def test_on_an_accelerator_the_time_before_the_last_pass_counts():
    clock = WorkClock(cpu=False)
    now = _step(clock, waits=True)
    assert clock.seconds(now, coupled=True, sharded=False) == pytest.approx(PAUSE, abs=1e-9)


def test_a_pass_whose_root_is_a_parameter_counts_as_waited_for():
    """It has no graph of which an end could be seen."""
    clock = WorkClock(cpu=True)
    clock.step_begins(time.perf_counter())
    leaf = torch.zeros((), requires_grad=True)
    clock.forward_begins()
    clock.pass_begins([leaf])
    leaf.backward()
    time.sleep(PAUSE)
    clock.pass_ended()
    assert clock.seconds(time.perf_counter(), coupled=True, sharded=False) < 1e-9


def test_a_step_without_the_model_has_no_time():
    clock = WorkClock(cpu=True)
    assert clock.seconds(time.perf_counter(), coupled=True, sharded=False) is None

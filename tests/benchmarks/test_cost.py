"""The benchmark of costs: its meter agrees with the guard's own books, and every probe of the catalogue is found."""

from __future__ import annotations

from benchmarks.cost import HostClock, Meter, as_a_map, measure, of_experts, on_the_cpu, probe_of
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.signals import CATALOGUE

NOT_THERE = {"policy", "dropped", "loop", "loop_step", "loop_gain", "guard"}
"""Probes of guards, of layers that drop tokens, of modules that are called several times, and of `log_policy`."""


class Work(HostClock):
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def mark(self) -> float:
        return self.seconds

    def do(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_probe_s_time_is_without_that_of_the_probes_inside_it():
    work = Work()
    guard = Isolation(lambda *_: None, clock=work.mark)
    meter = Meter(guard, work)

    def outer() -> None:
        work.do(2.0)
        guard.run("inner", "deep", work.do, 8.0)
        guard.run("inner", "deep", work.do, 16.0)

    guard.run("outer", "always", outer)
    assert meter.take() == dict(guard.spent) == {"outer": 2.0, "inner": 24.0}
    assert meter.take() == {}


def test_every_measured_signal_has_a_cost():
    cost = measure(on_the_cpu(width=64, layers=2, context=32), HostClock(), "taylor", "sharpness", rounds=1)
    cost |= measure(of_experts(width=32, layers=1, context=8), HostClock(), rounds=1)
    cost |= measure(as_a_map(width=8, length=16), HostClock(), "jacobian", rounds=1)
    wanted = {probe for signal in CATALOGUE if (probe := probe_of(signal))}
    assert all(share >= 0 for share in cost.values())
    assert wanted - set(cost) <= NOT_THERE

"""The guard: time on the books, once, also when one probe runs another; failures stay inside."""

from __future__ import annotations

from stabwatch.hooks.base.isolation import MAX_ERRORS, Isolation


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nested_probes_have_their_own_time():
    clock, reports = Clock(), []
    guard = Isolation(lambda *args: reports.append(args), clock)

    def inner():
        clock.now += 3

    def outer():
        clock.now += 1
        guard.run("inner", "deep", inner)
        guard.run("inner", "deep", inner)
        clock.now += 1

    guard.run("outer", "sampled", outer)
    assert dict(guard.spent) == {"inner": 6.0, "outer": 2.0}
    assert guard.take_seconds() == {"always": 0.0, "sampled": 2.0, "deep": 6.0}
    assert guard.take_seconds() == {"always": 0.0, "sampled": 0.0, "deep": 0.0}
    assert reports == []


def test_a_probe_that_fails_inside_another_takes_nothing_else_with_it():
    reports, done = [], []
    guard = Isolation(lambda probe, message, trace, off: reports.append((probe, off)))
    for _ in range(MAX_ERRORS + 2):
        guard.run("outer", "deep", lambda: (guard.run("bad", "deep", lambda: 1 / 0), done.append(1)))
    assert len(done) == MAX_ERRORS + 2
    assert reports == [("bad", False), ("bad", True)]
    assert guard.disabled == {"bad"} and guard.errors["bad"] == MAX_ERRORS


def test_probes_of_every_step_are_counted_with_the_entry_point_around_them():
    """The clock costs more than some of them; those of other tiers are still counted apart."""
    clock = Clock()
    guard = Isolation(lambda *args: None, clock)

    def takes(seconds):
        clock.now += seconds

    def sampled():
        takes(3)
        guard.run("inner", "always", takes, 5)

    begun = guard.begin()
    takes(1)
    guard.run("cheap", "always", takes, 2)
    guard.run("dear", "sampled", sampled)
    guard.end(begun)
    guard.run("alone", "always", takes, 7)
    assert dict(guard.spent) == {"entry": 3.0, "dear": 3.0, "inner": 5.0, "alone": 7.0}
    assert guard.take_seconds() == {"always": 15.0, "sampled": 3.0, "deep": 0.0}

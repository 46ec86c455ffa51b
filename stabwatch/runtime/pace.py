"""Which tiers each step measures: the governor, what it learns from, and where its plans go."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch

from stabwatch.config import Config
from stabwatch.distributed.exchange import Exchange
from stabwatch.hooks.base.flags import MeasurementFlags
from stabwatch.runtime.cadence import RankCadence
from stabwatch.runtime.device_timer import StepTimes
from stabwatch.runtime.governor import Governor, Plan
from stabwatch.signals.declaration import Tier

LOOKS = 16
"""Steps after which what losses compare is looked at, and replicas, where the tier `sampled` is measured less often."""
LITTLE = 0.01
"""Share of a step that may be called delay or not."""


class _Spent(NamedTuple):
    """Processor time of one step: by tier, of the whole step in the training thread, and of the writer's thread."""

    cost: dict[Tier, float]
    busy: float
    beside: float


class Delay:
    """How long a thread was ready to run while the processors ran something else: other jobs, or our own threads.

    The kernel of Linux counts it. Elsewhere, and where it may not be read, it is not known, and counts as none.
    """

    def __init__(self) -> None:
        self._unread = 0.0
        self._thread, self._file, self._before = 0, -1, 0.0
        self._close: Callable[[], object] = lambda: None

    def of_step(self, seconds: float, idle: float) -> float:
        """Of a step that is over. idle: its time less the thread's processor time; where that is little, not read."""
        if 0.0 <= idle < LITTLE * seconds:
            self._unread += idle
            return 0.0
        unread, self._unread = self._unread, 0.0
        return max(0.0, self.seconds() - unread)

    def seconds(self) -> float:
        """Of the calling thread, since its last call."""
        if self._thread != threading.get_native_id():
            self._open()
            self._before = self._read()
        before, self._before = self._before, self._read()
        return self._before - before

    def _open(self) -> None:
        self._close()
        self._thread, self._file = threading.get_native_id(), -1
        with suppress(OSError):
            self._file = os.open(f"/proc/self/task/{self._thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._close = weakref.finalize(self, os.close, self._file)

    def _read(self) -> float:
        if self._file < 0:
            return self._before
        try:
            return int(os.pread(self._file, 96, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            self._file = -1
            return self._before


class Pace:
    """Plans each step, and learns from those that are over.

    flags: those that the hooks read; a plan is written there.
    """

    def __init__(self, config: Config, flags: MeasurementFlags, device: torch.device) -> None:
        self.governor = Governor(config.overhead_budget, config.every_step, overlapped=device.type == "cuda")
        self.plan = Plan(True, True, True)
        self._every_step = config.every_step
        self._flags = flags
        self._cadence = RankCadence(self.governor, None)
        self._times: StepTimes[tuple[Plan, _Spent]] = StepTimes(device)
        self._beside = 0.0
        self._busy_began, self._thread = time.thread_time(), threading.get_ident()
        self._overlapped = device.type == "cuda"
        self._delay = Delay()

    def use(self, exchange: Exchange | None) -> None:
        """Keep the cadence of all ranks, which they agree on through this exchange; None: one's own."""
        self._cadence.use(None if self._every_step else exchange)

    def busy_seconds(self) -> float:
        """Processor time of the training thread since the last call; infinite where that was another thread."""
        now, before, thread = time.thread_time(), self._busy_began, self._thread
        self._busy_began, self._thread = now, threading.get_ident()
        return now - before if thread == self._thread else math.inf

    def restart(self) -> None:
        """What follows until the next step ends is no part of a step."""
        self._times.restart()

    def learn(self, seconds: float, cost: dict[Tier, float], busy: float, beside: float) -> None:
        """A step is over, of `seconds` on the host's clock.

        cost: processor time in the probes, by tier. busy: that of the whole step. beside: that of the writer's thread
        since the run began: it and the training take turns in Python. On the CPU the time in which other jobs kept the
        thread waiting is no part of the step: it would make the share of what is ours look small.
        """
        seconds -= 0.0 if self._overlapped else self._delay.of_step(seconds, seconds - busy)
        before, self._beside = self._beside, beside
        spent = _Spent(cost, busy, beside - before)
        for known, (plan, of_step) in self._times.step_ends(seconds, (self.plan, spent)):
            self.governor.observe(plan, known, *of_step)

    def plan_step(self, taken: int, step_seconds: float) -> None:
        """Plan the next step. taken: how many were watched, on which the cadence depends, not on their numbers."""
        flags, governor = self._flags, self.governor
        restarts = self._cadence.restarts(taken, flags.phase, step_seconds)
        flags.phase = flags.phase if restarts is None else restarts
        plan = governor.plan(taken)
        # the graph that measures the sampled tier is the one that measures the deep tier
        self.plan = plan = Plan(plan.always, plan.sampled or (plan.deep and flags.traced), plan.deep)
        flags.open, flags.sampled, flags.deep = plan.always, plan.sampled, plan.deep
        flags.looks = plan.sampled or (plan.always and taken % LOOKS == 0)
        flags.phases = governor.phases
        flags.phase = (flags.phase + plan.deep) % flags.phases
        flags.next_phase = (flags.phase + 1) % flags.phases if governor.plan(taken + 1).deep else None
        flags.in_forward = False

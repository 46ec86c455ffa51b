"""Fault isolation: an exception in a probe is caught, counted and logged once; after three the probe is off."""

from __future__ import annotations

import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from stabwatch.signals.declaration import Tier

MAX_ERRORS = 3
"""Failures after which a probe is switched off."""
ENTRY = "entry"
"""Name under which the time of entry points is kept in `spent`."""
Begun = tuple[float, float] | None
"""When an entry point began, and what was counted around it; None inside of another one, which counts its time."""
ErrorReport = Callable[[str, str, str, bool], None]
"""Called with (probe, message, traceback, disabled) at the first failure of a probe and at the last one."""


class Isolation:
    """Runs probes, keeps their exceptions away from training, and counts the processor time that they take.

    passes: exceptions that are meant for the user and are let through.
    clock: processor time of the calling thread, which other jobs on the machine do not change.
    seconds: time spent in each tier since the last `take_seconds`. What entry points take besides the probes of other
        tiers inside them counts as `always` (`begin`, `end`).
    spent: time by probe, since the start; that of probes of every step as the time of what runs them.
    errors: exceptions by probe. disabled: probes that were switched off.
    running: how many probes are running, one inside the other; tensor operations are those of stabwatch then.
    """

    def __init__(
        self,
        report: ErrorReport,
        clock: Callable[[], float] = time.thread_time,
        passes: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._report = report
        self.passes = passes
        self._clock = clock
        self.errors: Counter[str] = Counter()
        self.disabled: set[str] = set()
        self._inside = 0.0
        self._always = False
        """What runs now is counted as `always` by what runs it."""
        self.running = 0
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.seconds: dict[Tier, float] = {"always": 0.0, "sampled": 0.0, "deep": 0.0}

    def run(self, probe: str, tier: Tier, action: Callable[..., Any], *args: Any) -> None:
        """Call `action(*args)` and return, whatever it raises.

        An action may run other probes; their time is counted as theirs only.
        """
        if probe in self.disabled:
            return
        counted = self._always and tier == "always"  # by what runs it: the clock costs more than some probes
        start, outer, always = 0.0 if counted else self._clock(), self._inside, self._always
        if not counted:
            self._inside, self._always = 0.0, tier == "always"
        self.running += 1
        try:
            action(*args)
        except self.passes:
            raise
        except Exception as error:
            self.caught(probe, error)
        finally:
            self.running -= 1
            if not counted:
                elapsed = self._clock() - start
                own = elapsed - self._inside
                self._inside, self._always = outer + elapsed, always
                self.seconds[tier] += own
                self.spent[probe] += own

    def shield(self, probe: str, action: Callable[..., Any], *args: Any) -> None:
        """The same in another thread, whose time is not that of the training."""
        if probe in self.disabled:
            return
        try:
            action(*args)
        except self.passes:
            raise
        except Exception as error:
            self.caught(probe, error)

    def ask(self, probe: str, question: Callable[..., bool], *args: Any) -> bool:
        """The answer of a part that must not raise an error in training; False if it does. Its time is its caller's."""
        if probe in self.disabled:
            return False
        try:
            return [question(*args)] == [True]
        except self.passes:
            raise
        except Exception as error:
            self.caught(probe, error)
            return False

    def begin(self) -> Begun:
        """An entry point begins; `end` wants what this returns."""
        if self._always:
            return None
        begun = self._clock(), self._inside
        self._inside, self._always = 0.0, True
        return begun

    def end(self, begun: Begun) -> None:
        """It ends: count its time, less that of the probes of other tiers inside it."""
        if begun is None:
            return
        start, outer = begun
        elapsed = self._clock() - start
        own = elapsed - self._inside
        self._inside, self._always = outer + elapsed, False
        self.seconds["always"] += own
        self.spent[ENTRY] += own

    def take_seconds(self) -> dict[Tier, float]:
        """Host seconds by tier since the last call."""
        taken = dict(self.seconds)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return taken

    def caught(self, probe: str, error: Exception) -> None:
        """Count a failure of a probe; the first one and the last one are reported."""
        self.errors[probe] += 1
        off = self.errors[probe] >= MAX_ERRORS
        if off:
            self.disabled.add(probe)
        if off or self.errors[probe] == 1:
            try:
                self._report(probe, f"{type(error).__name__}: {error}", traceback.format_exc(limit=8), off)
            except Exception:
                self.disabled.add(probe)  # it cannot be reported; the counter still goes to the log

"""What a run says about its own records: which taps have measured something, and why there is no record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stabwatch.hooks.base.context import TapContext
from stabwatch.runtime.coverage import OTHER_LOSS, REPORT_AFTER, not_in_graph, summary
from stabwatch.runtime.host_numbers import HostNumbers
from stabwatch.runtime.model_taps import ModelTaps
from stabwatch.runtime.notices import from_here

_log = logging.getLogger("stabwatch")
AGAIN = 8
"""The coverage is reported again after as many times the records: what is trained later is not missing any more."""
SAID = ("missing", "unmeasured", "notes")


class RunReports:
    """Writes the coverage to the run log and warns of what is missing, once per state of the model.

    event: writes to the run log, called with (kind, step, **data). run_dir: gives the folder that warnings name.
    """

    def __init__(
        self, context: TapContext, host: HostNumbers, event: Callable[..., None], run_dir: Callable[[], Path]
    ) -> None:
        self._context, self._host, self._event, self._run_dir = context, host, event, run_dir
        self.records = 0
        """Records that were written."""
        self._due = REPORT_AFTER
        self._reported: tuple[ModelTaps, dict[str, Any]] | None = None
        self._said = ""

    def recorded(self, taps: ModelTaps) -> None:
        """A record was written, measured by `taps`."""
        self.records += 1
        if self.records == self._due:
            self._due *= AGAIN
            self._coverage(taps)

    def model_followed(self) -> None:
        """The model has changed: the coverage is reported again after some records."""
        self._due = self.records + REPORT_AFTER

    def run_ends(self, taps: ModelTaps) -> None:
        """Report the coverage of the model as it is at the end."""
        if self.records:
            self._coverage(taps)

    def no_records(self, reason: str) -> None:
        """Say why there is no record; the same reason is said once."""
        if reason != self._said:
            self._said = reason
            entry = {"tap": "clock", "site": "", "reason": reason}
            self._event("coverage", self._context.step, taps=[], fired=0, missing=[entry])
            _log.warning("stabwatch: %s.", reason)

    @property
    def said_why(self) -> bool:
        """A reason for having no record was given."""
        return bool(self._said)

    def _coverage(self, taps: ModelTaps) -> None:
        """Report what is measured by now, unless all of it was said before; warn once for these taps."""
        if taps.assembler.trains_another_loss:
            self._context.unmeasured("note", "loss", OTHER_LOSS)
        if self._context.flags.traced:
            self._context.unmeasured("residual", "", not_in_graph(self._context.probes))
        report = taps.report(taps.assembler.fired)
        missing = report["missing"]
        self._host.taps_missing = float(len(missing))
        told, self._reported = self._reported, (taps, report)
        if told is None or any(told[1][kind] != report[kind] for kind in SAID):
            self._event("coverage", self._context.step, **report)
        if missing and (told is None or told[0] is not taps):
            verb = "lists it" if len(missing) == 1 else "lists them"
            text = summary(missing, taps.assembler.fired)
            _log.warning("stabwatch: %s `stabwatch doctor %s` %s.", text, from_here(self._run_dir()), verb)

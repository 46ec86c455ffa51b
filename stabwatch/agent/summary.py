"""A message about the end of a run, for those who asked for one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from stabwatch.agent.notify import Notifier
from stabwatch.agent.state import Follower
from stabwatch.alerts.templates import format_seconds


class EndSummary:
    """Tells notifiers once that a run has ended, if it ended while this process followed it."""

    def __init__(self, follower: Follower, notifiers: Sequence[Notifier]) -> None:
        self._follower, self._notifiers = follower, notifiers
        self._began = time.time()
        self._told = False

    def check(self) -> None:
        """Tell of the end, if there is one. Called by the thread that polls the follower, after it."""
        end = self._follower.ended
        if end is None:
            self._told = False  # it goes on from a checkpoint
        elif not self._told:
            self._told = True
            if end.time >= self._began:
                title, text = summary(self._follower)
                for notifier in self._notifiers:
                    notifier.say(title, text)


def summary(follower: Follower) -> tuple[str, str]:
    """Title and text of the message."""
    head, where = follower.head, follower.where
    run, progress = head["run"], head["progress"]
    step = "without a record" if progress["step"] is None else f"at step {progress['step']}"
    title = f"{where.run}: {run['state']} {step}"
    last = follower.ended.time if follower.ended else time.time()
    facts = [f"It ran for {format_seconds(max(0.0, last - run['created']))}."]
    facts += [f"Last loss {progress['loss']:.4g}."] if progress["loss"] is not None else []
    facts += [f"It ended with: {run['end']}."] if run["end"] else []
    fired = len({(mark["rule"], mark["layer"]) for mark in head["marks"]})
    facts += [f"{fired} alerts fired." if fired != 1 else "1 alert fired."]
    place = ":".join(part for part in (where.host, where.folder) if part)
    return title, "\n".join([f"{title}. {' '.join(facts)}", head["diagnosis"]["verdict"], f"Run folder: {place}"])

"""Notifications: alert events are combined into few messages, and each receiver has its own thread."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from stabwatch.agent.receivers import Message, Receiver, Refused
from stabwatch.alerts.rule import Rule
from stabwatch.runlog import Event

GROUP_SECONDS = 2.0
"""Alerts within this time of the first share a message."""
QUIET_SECONDS = 600.0
"""A rule with one severity is reported once in this time, for any number of layers."""
WAITS = (1.0, 4.0, 16.0)


class Notifier:
    """Sends in its own thread, so that a slow receiver delays nothing.

    failed: called for each message that could not be delivered.
    """

    def __init__(
        self,
        receiver: Receiver,
        run: str,
        rules: Sequence[Rule],
        failed: Callable[[], object] = lambda: None,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self._receiver, self._run, self._waits, self._failed = receiver, run, waits, failed
        self._rules = {rule.name: rule for rule in rules}
        self._queue: queue.Queue[list[Event] | None] = queue.Queue()
        self._told: dict[tuple[str, str], float] = {}
        self._thread = threading.Thread(target=self._work, name=f"stabwatch-{receiver.name}", daemon=True)
        self._thread.start()

    def tell(self, events: list[Event]) -> None:
        """Queue alert events; returns immediately."""
        if events:
            self._queue.put(list(events))

    def close(self, timeout: float = 5.0) -> None:
        """Send the rest, for at most `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (events := self._queue.get()) is not None:
            end, over = time.monotonic() + GROUP_SECONDS, False
            while not over and (left := end - time.monotonic()) > 0:
                try:
                    more = self._queue.get(timeout=left)
                except queue.Empty:
                    break
                over = more is None
                events += more or []
            message = self._message(events, time.monotonic())
            if message.alerts:
                self._send(message)
            if over:
                return

    def _message(self, events: list[Event], now: float) -> Message:
        entries: list[dict[str, Any]] = []
        seen = set()
        for event in events:
            rule, severity, state = (str(event.data.get(k, "")) for k in ("rule", "severity", "state"))
            key = (rule, severity if state == "firing" else state)
            if severity == "info" or key in seen or now - self._told.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
                continue
            seen.add(key)
            self._told[key] = now
            same = [e for e in events if e.data.get("rule") == rule and e.data.get("state") == state]
            entries.append(self._entry(rule, severity, state, same))
        return Message(self._run, "\n".join(map(_line, entries)), entries)

    def _entry(self, name: str, severity: str, state: str, events: list[Event]) -> dict[str, Any]:
        rule, first = self._rules.get(name), events[0]
        return {
            "run": self._run,
            "rule": name,
            "severity": severity,
            "state": state,
            "summary": str(first.data.get("summary") or name),
            "description": str(first.data.get("description") or ""),
            "layers": list(dict.fromkeys(str(e.data["layer"]) for e in events if e.data.get("layer"))),
            "onset": first.data.get("onset", first.step),
            "step": first.step,
            "runbook_url": rule.runbook_url if rule else "",
        }

    def _send(self, message: Message) -> None:
        reason = ""
        for wait in (*self._waits, None):
            try:
                return self._receiver.send(message)
            except Refused as error:
                reason = str(error)
                if not error.again:
                    break
            if wait is not None:
                time.sleep(wait)
        self._failed()
        what = f"stabwatch agent: the {self._receiver.name} did not accept a message: {reason}."
        print(what, file=sys.stderr, flush=True)


def _line(entry: dict[str, Any]) -> str:
    if entry["state"] != "firing":
        return f"{entry['run']}: over at step {entry['step']}: {entry['summary']}"
    layers = entry["layers"]
    where = f" First in {layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}." if layers else ""
    page = f" {entry['runbook_url']}".rstrip()
    return f"{entry['severity'].upper()} {entry['run']}: {entry['summary']}{where} Since step {entry['onset']}.{page}"

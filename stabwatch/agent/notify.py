"""Notifications: alert events are combined into few messages, and each receiver has its own thread."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from stabwatch.agent.receivers import Message, Receiver, Refused
from stabwatch.agent.where import Batches, Where, details, no_batches, sentence
from stabwatch.alerts.rule import Rule
from stabwatch.runlog import Event

GROUP_SECONDS = 2.0
"""Alerts within this time of the first share a message."""
QUIET_SECONDS = 600.0
"""A rule with one severity is reported once in this time, for any number of layers."""
WAITS = (1.0, 4.0, 16.0)


class Notifier:
    """Sends in its own thread, so that a slow receiver delays nothing.

    failed: called for each message that could not be delivered. batches: asked when a message is written, as the
    training tells of them after the alert.
    """

    def __init__(
        self,
        receiver: Receiver,
        where: Where,
        rules: Sequence[Rule],
        failed: Callable[[], object] = lambda: None,
        waits: Sequence[float] = WAITS,
        batches: Batches = no_batches,
    ) -> None:
        self._receiver, self._where, self._waits, self._failed = receiver, where, waits, failed
        self._batches = batches
        self._rules = {rule.name: rule for rule in rules}
        self._queue: queue.Queue[list[Event] | Message | None] = queue.Queue()
        self._told: dict[tuple[str, str], float] = {}
        self._thread = threading.Thread(target=self._work, name=f"stabwatch-{receiver.name}", daemon=True)
        self._thread.start()

    def tell(self, events: list[Event]) -> None:
        """Queue alert events; returns immediately."""
        if events:
            self._queue.put(list(events))

    def say(self, title: str, text: str) -> None:
        """Queue a message that is no alert; returns immediately."""
        self._queue.put(Message(self._where.run, title, text))

    def close(self, timeout: float = 5.0) -> None:
        """Send the rest, for at most `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        over = False
        while not over and (first := self._queue.get()) is not None:
            items: list[list[Event] | Message] = [first]
            end = time.monotonic() + GROUP_SECONDS
            while not over and (left := end - time.monotonic()) > 0:
                try:
                    more = self._queue.get(timeout=left)
                except queue.Empty:
                    break
                over = more is None
                items += [more] if more is not None else []
            message = self._message([e for item in items if isinstance(item, list) for e in item], time.monotonic())
            for found in (message, *(item for item in items if isinstance(item, Message))):
                if found.text:
                    self._send(found)

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
        text = "\n".join(line for entry in entries for line in (_line(entry), *_more(entry)))
        return Message(self._where.run, _line(entries[0], link=False) if entries else "", text, entries)

    def _entry(self, name: str, severity: str, state: str, events: list[Event]) -> dict[str, Any]:
        rule, first = self._rules.get(name), events[0]
        return {
            "run": self._where.run,
            "rule": name,
            "severity": severity,
            "state": state,
            "summary": str(first.data.get("summary") or name),
            "description": str(first.data.get("description") or ""),
            "layers": list(dict.fromkeys(str(e.data["layer"]) for e in events if e.data.get("layer"))),
            "onset": first.data.get("onset", first.step),
            "step": first.step,
            **details(self._where, first.data, rule, self._batches),
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


def _more(entry: dict[str, Any]) -> list[str]:
    return [f"  {line}" for line in sentence(entry)] if entry["state"] == "firing" else []


def _line(entry: dict[str, Any], link: bool = True) -> str:
    if entry["state"] != "firing":
        return f"{entry['run']}: over at step {entry['step']}: {entry['summary']}"
    layers = entry["layers"]
    where = f" First in {layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}." if layers else ""
    page = f" {entry['runbook_url']}".rstrip() if link else ""
    return f"{entry['severity'].upper()} {entry['run']}: {entry['summary']}{where} Since step {entry['onset']}.{page}"

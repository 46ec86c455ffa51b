"""Telling somebody: alerts to a webhook, in the JSON that Slack, Mattermost and Discord's Slack address take.

The address is a secret: it comes from the environment or from a file, and stands in no log, no process list, no error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from stabwatch.alerts.rule import Rule
from stabwatch.errors import ConfigError
from stabwatch.runlog import Event

VARIABLE = "STABWATCH_WEBHOOK"
GROUP_SECONDS = 2.0
"""What comes within this time of the first goes into one message."""
QUIET_SECONDS = 600.0
"""A rule of one severity is told once in this time, however many layers follow."""
WAITS = (1.0, 4.0, 16.0)
TIMEOUT = 10.0


def address(environ: Mapping[str, str] = os.environ) -> str | None:
    """The webhook: STABWATCH_WEBHOOK, or the content of the file STABWATCH_WEBHOOK_FILE. Raises ConfigError."""
    path = environ.get(f"{VARIABLE}_FILE")
    try:
        found = Path(path).read_text(encoding="utf-8").strip() if path else environ.get(VARIABLE, "")
    except OSError as error:
        raise ConfigError(f"{VARIABLE}_FILE cannot be read: {error.strerror}.") from None
    if found and not found.startswith(("http://", "https://")):
        raise ConfigError(f"{VARIABLE} must be an address with http:// or https://.")
    return found or None


class Notifier:
    """Sends from a thread of its own, so that a slow receiver delays nothing. failures: messages that were given up."""

    def __init__(self, url: str, run: str, rules: Sequence[Rule], waits: Sequence[float] = WAITS) -> None:
        self._url, self._run, self._waits = url, run, waits
        self._rules = {rule.name: rule for rule in rules}
        self._queue: queue.Queue[list[Event] | None] = queue.Queue()
        self._told: dict[tuple[str, str], float] = {}
        self.failures = 0
        self._thread = threading.Thread(target=self._work, name="stabwatch-notify", daemon=True)
        self._thread.start()

    def tell(self, events: list[Event]) -> None:
        """Take alert events; returns at once."""
        if events:
            self._queue.put(events)

    def close(self, timeout: float = 5.0) -> None:
        """Send what is left, for `timeout` seconds at most."""
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
            text = self._text(events, time.monotonic())
            if text:
                self._send(text)
            if over:
                return

    def _text(self, events: list[Event], now: float) -> str:
        lines, seen = [], set()
        for event in events:
            rule, severity, state = (str(event.data.get(k, "")) for k in ("rule", "severity", "state"))
            key = (rule, severity if state == "firing" else state)
            if severity == "info" or key in seen or now - self._told.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
                continue
            seen.add(key)
            self._told[key] = now
            same = [e for e in events if e.data.get("rule") == rule and e.data.get("state") == state]
            lines.append(self._line(rule, severity, state, same))
        return "\n".join(lines)

    def _line(self, name: str, severity: str, state: str, events: list[Event]) -> str:
        rule, first = self._rules.get(name), events[0]
        summary = str(first.data.get("summary") or name)
        if state != "firing":
            return f"{self._run}: over at step {first.step}: {summary}"
        layers = list(dict.fromkeys(str(e.data["layer"]) for e in events if e.data.get("layer")))
        where = f" First in {layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}." if layers else ""
        page = f" {rule.runbook_url}" if rule else ""
        since = first.data.get("onset", first.step)
        return f"{severity.upper()} {self._run}: {summary}{where} Since step {since}.{page}"

    def _send(self, text: str) -> None:
        request = urllib.request.Request(
            self._url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        said = ""
        for wait in (*self._waits, None):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT):
                    return
            except urllib.error.HTTPError as error:
                said = f"it answers {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except Exception as error:  # the text of some holds the address
                said = type(error).__name__
            if wait is not None:
                time.sleep(wait)
        self.failures += 1
        print(f"stabwatch agent: the webhook did not take a message: {said}.", file=sys.stderr, flush=True)

"""What is served of one run: /metrics, /healthz, the live page and its data. Read-only."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

from stabwatch.agent.asked import AskedSignals
from stabwatch.agent.runbook_page import runbook_page
from stabwatch.agent.scrape import Memo, Scrape
from stabwatch.agent.state import Follower
from stabwatch.agent.view import chart_of, charts
from stabwatch.agent.web import (
    Environ,
    Gate,
    StartResponse,
    encoded,
    file_of,
    nothing,
    respond,
    respond_json,
    whole_number,
)
from stabwatch.alerts import DERIVED
from stabwatch.errors import RuleError, RunLogError
from stabwatch.exporters.prometheus import DerivedMetric, RunCollector
from stabwatch.exporters.signal_text import SignalText

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/heatmap.js": ("heatmap.js", "text/javascript; charset=utf-8"),
    "/changes.js": ("changes.js", "text/javascript; charset=utf-8"),
    "/names.js": ("names.js", "text/javascript; charset=utf-8"),
    "/uPlot.iife.min.js": ("uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uPlot.min.css": ("uplot/uPlot.min.css", "text/css; charset=utf-8"),
}
HEALTHY_SECONDS = 10.0
"""/healthz is ok if the run log was polled within this time."""
SIGNAL_SECONDS = 1.0
DATA_SECONDS = 0.2
"""Readers of the same data within this time get the same answer."""


class RunPages:
    """The addresses of one run. above: address of the list of runs, if there is one."""

    def __init__(self, follower: Follower, above: str = "") -> None:
        self._follower = follower
        self._above = above
        registry = CollectorRegistry(auto_describe=False)
        derived = [DerivedMetric(d.name, d.help) for d in DERIVED]
        registry.register(
            RunCollector(
                lambda: follower.snapshot,
                derived,
                [(rule.name, rule.severity) for rule in follower.rules],
                signals=False,
            )
        )
        text = SignalText(derived)
        self._scrape = Scrape(registry, lambda: follower.snapshot, lambda s, *how: text.encode([s], *how))
        self._data = Memo[tuple[int, int], bytes](DATA_SECONDS)
        self._asked = AskedSignals(follower.log.path)
        self._signal = Memo[str, bytes](SIGNAL_SECONDS)

    def __call__(self, environ: Environ, start_response: StartResponse, path: str) -> Iterable[bytes]:
        """Answer a request for a path below the run's address."""
        if path == "/metrics":
            return self._scrape(environ, start_response)
        if path == "/healthz":
            return self._health(environ, start_response)
        if path == "/api/state.json":
            since = _since(environ.get("QUERY_STRING", ""))
            return respond(environ, start_response, "200 OK", "application/json", self._data.get(since, self._state))
        if path == "/api/signal.json":
            return self._one_signal(environ, start_response)
        if path.startswith("/runbooks/"):
            return runbooks(environ, start_response, path.removeprefix("/runbooks/"))
        if path in FILES:
            return file_of(FILES, PAGE, environ, start_response, path)
        return nothing(environ, start_response)

    def _health(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        health = self._follower.health
        lag = time.monotonic() - health.polled
        ok = lag < HEALTHY_SECONDS
        data = {
            "ok": ok,
            "run": self._follower.meta.run,
            "state": self._follower.state,
            "step": health.step,
            "last_record_age_seconds": health.record_age,
            "lag_seconds": round(lag, 3),
            "errors": health.errors,
        }
        return respond_json(environ, start_response, data, ok)

    def _state(self, since: tuple[int, int]) -> bytes:
        epoch, bucket = since
        follower = self._follower
        with follower.history_lock:
            points = follower.history.since(epoch, bucket)
            head = follower.head
            panels = charts(follower.history, head["layers"])
        data = {**head, "now": time.time(), "above": self._above, "charts": panels, "points": points.to_dict()}
        return encoded(data)

    def _one_signal(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Any signal that layers have, over the whole run."""
        name = parse_qs(environ.get("QUERY_STRING", "")).get("name", [""])[0]
        head = self._follower.head
        if name not in head["signals"]:
            return nothing(environ, start_response)

        def made(name: str) -> bytes:
            asked = self._asked.read(name)
            points = asked.history.since(-1, 0)
            chart = chart_of(name, asked.history, head["layers"])
            return encoded({"chart": chart, "share": round(asked.share, 3), "points": points.to_dict()})

        try:
            body = self._signal.get(name, made)
        except RunLogError as error:
            text = f"The log cannot be read: {error}\n".encode()
            return respond(environ, start_response, "503 Service Unavailable", "text/plain; charset=utf-8", text)
        return respond(environ, start_response, "200 OK", "application/json", body)


class App:
    """The WSGI application of an agent. token, hosts: see `Gate`."""

    def __init__(self, follower: Follower, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._gate = Gate(token, hosts)
        self._pages = RunPages(follower)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        refused = self._gate.refuse(environ, start_response)
        return self._pages(environ, start_response, environ.get("PATH_INFO", "/")) if refused is None else refused


def runbooks(environ: Environ, start_response: StartResponse, name: str) -> Iterable[bytes]:
    """A runbook, or the list of them."""
    try:
        page = runbook_page(name)
    except RuleError:
        return nothing(environ, start_response)
    return respond(environ, start_response, "200 OK", "text/html; charset=utf-8", page)


def _since(query: str) -> tuple[int, int]:
    """Parse `since=EPOCH.BUCKET`; any other value means the beginning."""
    epoch, _, bucket = parse_qs(query).get("since", [""])[0].partition(".")
    found = whole_number(epoch), whole_number(bucket)
    return found if min(found) >= 0 else (-1, 0)

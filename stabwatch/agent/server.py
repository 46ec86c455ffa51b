"""The HTTP server: /metrics, /healthz, the live page and its data. One thread per request, read-only."""

from __future__ import annotations

import base64
import binascii
import gzip
import hmac
import json
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry

from stabwatch.agent.scrape import GZIP_LEVEL, Memo, Scrape, accepts_gzip
from stabwatch.agent.state import Follower
from stabwatch.agent.view import charts
from stabwatch.alerts import DERIVED
from stabwatch.exporters.prometheus import DerivedMetric, RunCollector

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/uPlot.iife.min.js": ("uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uPlot.min.css": ("uplot/uPlot.min.css", "text/css; charset=utf-8"),
}
HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
HEALTHY_SECONDS = 10.0
"""/healthz is ok if the run log was polled within this time."""
SMALLEST_GZIP = 1024

DATA_SECONDS = 0.2
"""Readers of the same data within this time get the same answer."""
OTHER_HOST = b"This is not a name of this machine. STABWATCH_HOSTS=name1,name2 allows others.\n"

StartResponse = Callable[..., Any]
Environ = dict[str, Any]


class App:
    """The WSGI application.

    token: 'user:password' that every request needs, or None. hosts: names of this service besides this machine's own.
    Without a password a request for another name is refused: a web page elsewhere could give its own name this
    machine's address, and read the answers (DNS rebinding).
    """

    def __init__(self, follower: Follower, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._follower = follower
        self._token = token
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            RunCollector(
                lambda: follower.snapshot,
                [DerivedMetric(d.name, d.help) for d in DERIVED],
                [(rule.name, rule.severity) for rule in follower.rules],
            )
        )
        self._scrape = Scrape(registry, lambda: follower.snapshot)
        self._data = Memo[tuple[int, int], bytes](DATA_SECONDS)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self._allowed(environ.get("HTTP_AUTHORIZATION", "")):
            challenge = [("WWW-Authenticate", 'Basic realm="stabwatch", charset="UTF-8"')]
            return _respond(environ, start_response, "401 Unauthorized", "text/plain", b"Log in.\n", challenge)
        if not self._is_mine(environ.get("HTTP_HOST", "")):
            return _respond(environ, start_response, "421 Misdirected Request", "text/plain", OTHER_HOST)
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return self._scrape(environ, start_response)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allow = [("Allow", "GET, HEAD")]
            return _respond(environ, start_response, "405 Method Not Allowed", "text/plain", b"GET only.\n", allow)
        if path == "/healthz":
            return self._health(environ, start_response)
        if path == "/api/state.json":
            return _respond(environ, start_response, "200 OK", "application/json", self._state(environ))
        if path in FILES:
            name, kind = FILES[path]
            return _respond(environ, start_response, "200 OK", kind, (PAGE / name).read_bytes())
        return _respond(environ, start_response, "404 Not Found", "text/plain", b"There is nothing here.\n")

    def _allowed(self, header: str) -> bool:
        if self._token is None:
            return True
        kind, _, given = header.partition(" ")
        try:
            decoded = base64.b64decode(given.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(decoded, self._token.encode())

    def _is_mine(self, header: str) -> bool:
        """Is this `Host` a name of this machine? Addresses are: a name is what an attacker can choose."""
        host = urlsplit(f"//{header}").hostname or "" if "@" not in header else "@"
        if self._token is not None or not host or host in self._hosts or host.partition(".")[0] in self._hosts:
            return True
        with suppress(ValueError):
            ip_address(host)
            return True
        return False

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
        status = "200 OK" if ok else "503 Service Unavailable"
        return _respond(environ, start_response, status, "application/json", json.dumps(data).encode())

    def _state(self, environ: Environ) -> bytes:
        return self._data.get(_since(environ.get("QUERY_STRING", "")), self._state_since)

    def _state_since(self, since: tuple[int, int]) -> bytes:
        epoch, bucket = since
        follower = self._follower
        with follower.history_lock:
            points = follower.history.since(epoch, bucket)
            head = follower.head
            panels = charts(follower.history, head["layers"])
        data = {**head, "now": time.time(), "charts": panels, "points": points.to_dict()}
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _since(query: str) -> tuple[int, int]:
    """Parse `since=EPOCH.BUCKET`; any other value means the beginning."""
    epoch, _, bucket = parse_qs(query).get("since", [""])[0].partition(".")
    return (int(epoch), int(bucket)) if epoch.isdecimal() and bucket.isdecimal() else (-1, 0)


def _respond(
    environ: Environ,
    start_response: StartResponse,
    status: str,
    kind: str,
    body: bytes,
    more: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    headers = [("Content-Type", kind), *HEADERS, *more]
    if len(body) >= SMALLEST_GZIP and accepts_gzip(environ):
        body = gzip.compress(body, GZIP_LEVEL)
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

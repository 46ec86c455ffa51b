"""The HTTP server: /metrics, /healthz, the live page and its data. One thread per request, read-only."""

from __future__ import annotations

import base64
import binascii
import errno
import gzip
import hmac
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from stabwatch.agent.state import Follower
from stabwatch.agent.view import charts
from stabwatch.alerts import DERIVED
from stabwatch.errors import AgentError
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
CLIENT_TIMEOUT_SECONDS = 10.0
HEALTHY_SECONDS = 10.0
"""/healthz is ok if the run log was polled within this time."""
PORTS_TRIED = 50
SMALLEST_GZIP = 1024

StartResponse = Callable[..., Any]
Environ = dict[str, Any]


class _Handler(WSGIRequestHandler):
    """A slow client only blocks its own thread, which times out."""

    timeout = CLIENT_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        """Bind without a DNS lookup of the host name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class App:
    """The WSGI application. token: 'user:password' that every request needs, or None."""

    def __init__(self, follower: Follower, token: str | None = None) -> None:
        self._follower = follower
        self._token = token
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            RunCollector(
                lambda: follower.snapshot,
                [DerivedMetric(d.name, d.help) for d in DERIVED],
                [(rule.name, rule.severity) for rule in follower.rules],
            )
        )
        self._metrics: Callable[[Environ, StartResponse], Iterable[bytes]] = make_wsgi_app(registry)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self._allowed(environ.get("HTTP_AUTHORIZATION", "")):
            challenge = [("WWW-Authenticate", 'Basic realm="stabwatch", charset="UTF-8"')]
            return _respond(environ, start_response, "401 Unauthorized", "text/plain", b"Log in.\n", challenge)
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return self._metrics(environ, start_response)
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
        epoch, bucket = _since(environ.get("QUERY_STRING", ""))
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
    if len(body) >= SMALLEST_GZIP and "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = gzip.compress(body, 3)
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class HttpServer:
    """Listens from its construction, and serves in a daemon thread between `start` and `close`. Raises AgentError."""

    def __init__(
        self, app: App, host: str, port: int, *, certfile: Path | None = None, keyfile: Path | None = None
    ) -> None:
        self.asked = port
        self.host = host
        self.tls = certfile is not None
        context = _tls_context(certfile, keyfile)
        self._server = _bind(host, port)
        self._server.set_app(app)
        self.port = self._server.server_port
        if context is not None:
            # Without a handshake in `accept`, where a silent client would keep all others waiting.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    @property
    def address(self) -> str:
        """host:port of this server."""
        host = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Address of the live page."""
        return f"{'https' if self.tls else 'http'}://{self.address}/"

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _bind(host: str, port: int) -> _Server:
    """Listen on a port, or on the next free one. Raises AgentError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise AgentError(f"`host` must be an address of this machine, but {host!r} is unknown: {error}.") from error
    server: type[_Server] = type("Server", (_Server,), {"address_family": family})
    last: OSError | None = None
    for candidate in [*range(port, min(port + PORTS_TRIED, 65536)), 0] if port else [0]:
        try:
            return server((str(address[0]), candidate), _Handler)
        except OSError as error:
            last = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise AgentError(f"The agent cannot listen on {host} (port {port} or any other): {last}. Give another --host.")


def _tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        raise AgentError("TLS needs both a certificate and its key: give --certfile and --keyfile.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise AgentError(f"The certificate {certfile} and the key {keyfile} cannot be used: {error}.") from error
    return context

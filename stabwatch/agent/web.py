"""What every answer of a service has in common: who may ask, headers, compression, files."""

from __future__ import annotations

import base64
import binascii
import gzip
import hmac
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stabwatch.agent.scrape import GZIP_LEVEL, accepts_gzip
from stabwatch.runlog import plain

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
SMALLEST_GZIP = 1024
OTHER_HOST = b"This is not a name of this machine. STABWATCH_HOSTS=name1,name2 allows others.\n"

StartResponse = Callable[..., Any]
Environ = dict[str, Any]


class Gate:
    """Who may ask.

    token: 'user:password' that every request needs, or None. hosts: names of this service besides this machine's own.
    Without a password a request for another name is refused: a web page elsewhere could give its own name this
    machine's address, and read the answers (DNS rebinding).
    """

    def __init__(self, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._token = token
        machine = socket.gethostname().lower()
        self._hosts = {"localhost", machine, *(host.lower() for host in hosts)}
        self._machine = machine.partition(".")[0]

    def refuse(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes] | None:
        """The answer to who may not ask; None for others."""
        if not self._allowed(environ.get("HTTP_AUTHORIZATION", "")):
            challenge = [("WWW-Authenticate", 'Basic realm="stabwatch", charset="UTF-8"')]
            return respond(environ, start_response, "401 Unauthorized", "text/plain", b"Log in.\n", challenge)
        if not self._is_mine(environ.get("HTTP_HOST", "")):
            return respond(environ, start_response, "421 Misdirected Request", "text/plain", OTHER_HOST)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allow = [("Allow", "GET, HEAD")]
            return respond(environ, start_response, "405 Method Not Allowed", "text/plain", b"GET only.\n", allow)
        return None

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
        try:
            host = urlsplit(f"//{header}").hostname or "" if "@" not in header else "@"
        except ValueError:
            return self._token is not None
        if self._token is not None or not host or host in self._hosts:
            return True
        if host.partition(".")[0] == self._machine != "localhost":  # localhost.evil.org is anybody's
            return True
        with suppress(ValueError):
            ip_address(host)
            return True
        return False


def whole_number(text: str) -> int:
    """The number of a query; -1 if it is none."""
    return int(text) if text.isdecimal() and len(text) < 20 else -1


def respond(
    environ: Environ,
    start_response: StartResponse,
    status: str,
    kind: str,
    body: bytes,
    more: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    """An answer, compressed for clients that take it."""
    headers = [("Content-Type", kind), *HEADERS, *more]
    if len(body) >= SMALLEST_GZIP and accepts_gzip(environ):
        body = gzip.compress(body, GZIP_LEVEL)
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def respond_json(environ: Environ, start_response: StartResponse, data: Any, ok: bool = True) -> list[bytes]:
    """JSON; with the status 503 if not ok."""
    status = "200 OK" if ok else "503 Service Unavailable"
    return respond(environ, start_response, status, "application/json", encoded(data))


def encoded(data: Any) -> bytes:
    """Compact JSON; numbers that are not finite become null."""
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(plain(data), separators=(",", ":"), allow_nan=False).encode()


def nothing(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The answer to an address without anything."""
    return respond(environ, start_response, "404 Not Found", "text/plain", b"There is nothing here.\n")


def file_of(
    files: Mapping[str, tuple[str, str]], folder: Path, environ: Environ, start_response: StartResponse, path: str
) -> list[bytes]:
    """A file of a page. files: file in the folder, and its type, by address."""
    name, kind = files[path]
    return respond(environ, start_response, "200 OK", kind, (folder / name).read_bytes())

"""Answers that are made once for all who ask at the same time."""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from stabwatch.exporters.signal_text import END, Encoder

K = TypeVar("K")
V = TypeVar("V")

KEPT = 16
GZIP_LEVEL = 1


class Memo(Generic[K, V]):
    """Keeps what was computed for a key. While one thread computes, the others wait for its result.

    seconds: how long a result is kept; None for good. The 16 newest are kept.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._kept: dict[K, tuple[float, V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K, compute: Callable[[K], V]) -> V:
        """The kept result, or a new one. Raises what `compute` raises."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None and (self._seconds is None or time.monotonic() - found[0] < self._seconds):
                return found[1]
            value = compute(key)
            self._kept.pop(key, None)
            self._kept[key] = (time.monotonic(), value)
            for old in list(self._kept)[:-KEPT]:
                del self._kept[old]
            return value


class Scrape:
    """/metrics as a WSGI application. A snapshot is written and packed once, however many servers ask for it.

    more: writes what is not in the registry, in the format of an encoder, whose name it gets too.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        snapshot: Callable[[], object],
        more: Callable[[Any, Encoder, str], bytes] | None = None,
    ) -> None:
        self._registry = registry
        self._more = more
        self._snapshot = snapshot
        self._of: object = None
        self._memo: Memo[tuple[str, bool], bytes] = Memo()
        self._other = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            answer: Iterable[bytes] = self._other(environ, start_response)
            return answer
        snapshot = self._snapshot()
        if snapshot is not self._of:
            self._of, self._memo = snapshot, Memo()
        encoder, kind = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        packed = accepts_gzip(environ)
        if names := parse_qs(environ.get("QUERY_STRING", "")).get("name[]"):
            text = only(self._encode(snapshot, encoder, kind, False), set(names))
            start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(text)))])
            return [text]
        body = self._memo.get((kind, packed), lambda _: self._encode(snapshot, encoder, kind, packed))
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, ("Content-Encoding", "gzip")] if packed else headers)
        return [body]

    def _encode(self, snapshot: object, encoder: Encoder, kind: str, packed: bool) -> bytes:
        text = encoder(self._registry)
        if self._more is not None:
            whole = text.removesuffix(END)
            text = whole + self._more(snapshot, encoder, kind) + text[len(whole) :]
        return gzip.compress(text, GZIP_LEVEL) if packed else text


def only(text: bytes, names: Collection[str]) -> bytes:
    """Of a text in one of Prometheus's formats the samples with these names, as `?name[]=` asks for them."""
    kept: list[str] = []
    head: list[str] = []
    for line in text.decode().splitlines(keepends=True):
        if line.startswith("# EOF"):
            kept.append(line)
        elif line.startswith("#"):
            head = [line] if line.startswith("# HELP") else [*head, line]
        elif re.split(r"[{ ]", line, maxsplit=1)[0] in names:
            kept += [*head, line]
            head = []
    return "".join(kept).encode()


def accepts_gzip(environ: dict[str, Any]) -> bool:
    """Does this client take gzip? `gzip;q=0` is a refusal."""
    for part in environ.get("HTTP_ACCEPT_ENCODING", "").split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False

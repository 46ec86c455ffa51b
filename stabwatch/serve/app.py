"""The addresses of the service: the list, the page of each run, comparison, /metrics, discovery, /healthz."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

from stabwatch.agent.scrape import Memo, Scrape
from stabwatch.agent.server import FILES as RUN_FILES
from stabwatch.agent.server import PAGE as RUN_PAGE
from stabwatch.agent.server import runbooks
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
from stabwatch.exporters.prometheus import Snapshot
from stabwatch.exporters.signal_text import SignalText
from stabwatch.runlog.glance import Glance
from stabwatch.serve.clusters import clusters, settings_of
from stabwatch.serve.index import Index
from stabwatch.serve.judges import Judges
from stabwatch.serve.metrics import RunsCollector, ServiceState, names_of, snapshot_of
from stabwatch.serve.opened import Opened
from stabwatch.serve.worker import Worker

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("runs.html", "text/html; charset=utf-8"),
    "/runs.css": ("runs.css", "text/css; charset=utf-8"),
    "/runs.js": ("runs.js", "text/javascript; charset=utf-8"),
    "/compare": ("compare.html", "text/html; charset=utf-8"),
    "/compare.js": ("compare.js", "text/javascript; charset=utf-8"),
}
SHARED_FILES = {path: RUN_FILES[path] for path in ("/page.css", "/uPlot.iife.min.js", "/uPlot.min.css")}
HEALTHY_SECONDS = 30.0
"""/healthz is ok if the runs were looked at within this time."""
METRICS_SECONDS = 1.0
LIST_SECONDS = 0.5
CLUSTER_SECONDS = 5.0
SETTINGS_SECONDS = 5.0
SPARK = 48
"""Points of the small curve of a run."""
MOST_SPARKS = 200
"""Small curves in one answer."""
MOST_COMPARED = 8
COMPARE_SECONDS = 25.0
"""How long a comparison may take before the page asks again."""


@dataclass
class Moment:
    """What /metrics shows of the runs, and since when."""

    made: float
    snapshots: list[Snapshot]


class ServiceApp:
    """The WSGI application. address: of this service, 'host:port'. token, hosts: see `Gate`."""

    def __init__(
        self,
        index: Index,
        judges: Judges,
        opened: Opened,
        worker: Worker,
        errors: Callable[[], int],
        token: str | None = None,
        hosts: Iterable[str] = (),
    ) -> None:
        self._index, self._judges, self._opened, self._worker = index, judges, opened, worker
        self._errors = errors
        self._gate = Gate(token, hosts)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(RunsCollector(lambda: self._moment.snapshots, self._service))
        text = SignalText()
        self._moment = Moment(-1e9, [])
        self._scrape = Scrape(registry, self._now, lambda moment, *how: text.encode(moment.snapshots, *how))
        self._list = Memo[int, bytes](LIST_SECONDS)
        self._clusters = Memo[None, bytes](CLUSTER_SECONDS)
        self._named = Memo[str, bytes](SETTINGS_SECONDS)
        self._sparks: dict[str, tuple[Any, list[float | None]]] = {}
        self._comparing = Memo[tuple[Any, ...], Any]()
        self._routes: dict[str, Callable[[Environ, StartResponse], Iterable[bytes]]] = {
            "/metrics": self._scrape,
            "/healthz": self._health,
            "/sd": self._discovery,
            "/api/runs.json": self._runs,
            "/api/sparks.json": self._small_curves,
            "/api/clusters.json": self._grouped,
            "/api/settings.json": self._settings,
            "/api/compare.json": self._compared,
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        refused = self._gate.refuse(environ, start_response)
        if refused is not None:
            return refused
        path = environ.get("PATH_INFO", "/")
        if path in self._routes:
            return self._routes[path](environ, start_response)
        if path in FILES:
            return file_of(FILES, PAGE, environ, start_response, path)
        if path in SHARED_FILES:
            return file_of(SHARED_FILES, RUN_PAGE, environ, start_response, path)
        if path.startswith("/runbooks/"):
            return runbooks(environ, start_response, path.removeprefix("/runbooks/"))
        if path.startswith("/runs/"):
            return self._run(environ, start_response, path)
        return nothing(environ, start_response)

    def _run(self, environ: Environ, start_response: StartResponse, path: str) -> Iterable[bytes]:
        ident, slash, rest = path.removeprefix("/runs/").partition("/")
        folder = self._index.path(ident)
        if folder is None:
            return nothing(environ, start_response)
        if not slash:
            where = [("Location", f"/runs/{ident}/")]
            return respond(environ, start_response, "301 Moved Permanently", "text/plain", b"", where)
        judged = self._judges.pages(folder) if rest == "metrics" else None
        try:
            pages = judged or self._opened.pages(folder)
        except Exception as error:  # whatever a log may cause
            text = f"This run cannot be read: {error}\n".encode()
            return respond(environ, start_response, "503 Service Unavailable", "text/plain; charset=utf-8", text)
        return pages(environ, start_response, f"/{rest}")

    def _runs(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        since = _asked(environ).get("since", [""])[0]
        version = whole_number(since)
        body = self._list.get(version, lambda v: encoded({"now": time.time(), **self._index.since(v)}))
        return respond(environ, start_response, "200 OK", "application/json", body)

    def _small_curves(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        wanted = _asked(environ).get("ids", [""])[0].split(",")[:MOST_SPARKS]
        found = {ident: self._spark(ident) for ident in wanted if self._index.path(ident) is not None}
        return respond_json(environ, start_response, found)

    def _spark(self, ident: str) -> list[float | None]:
        row, path = self._index.row(ident), self._index.path(ident)
        version = row["step"] if row else None
        known = self._sparks.get(ident)
        if path is not None and (known is None or known[0] != version):
            values = [None if v is None else float(f"{v:.4g}") for v in Glance(path).sample("loss", SPARK)]
            known = self._sparks[ident] = (version, values)
        return known[1] if known else []

    def _grouped(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def made(_: None) -> bytes:
            rows = self._index.rows()
            found = clusters(rows, {row["id"]: self._index.facts(row["id"]) for row in rows})
            return encoded([cluster.to_dict() for cluster in found])

        return respond(environ, start_response, "200 OK", "application/json", self._clusters.get(None, made))

    def _settings(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """All settings with their number of values, or the value of one of them in each run that has it."""

        def made(name: str) -> bytes:
            facts = {row["id"]: self._index.facts(row["id"]) for row in self._index.rows()}
            return encoded({i: mine[name] for i, mine in facts.items() if name in mine} if name else settings_of(facts))

        name = _asked(environ).get("name", [""])[0]
        return respond(environ, start_response, "200 OK", "application/json", self._named.get(name, made))

    def _compared(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        asked = dict.fromkeys(_asked(environ).get("runs", [""])[0].split(","))
        known = {ident: path for ident in asked if (path := self._index.path(ident)) is not None}
        idents, paths = tuple(known)[:MOST_COMPARED], list(known.values())[:MOST_COMPARED]
        if len(paths) < 2:
            return respond_json(environ, start_response, {"error": "Choose two or more runs that are in the list."})
        steps = tuple((self._index.row(ident) or {}).get("step") for ident in idents)
        future = self._comparing.get((idents, steps), lambda _: self._worker.compare(paths))
        try:
            found = {**future.result(COMPARE_SECONDS), "ids": list(idents)}
        except FutureTimeout:
            found = {"pending": True}
        except BrokenProcessPool:
            self._worker.close()
            self._comparing = Memo()
            found = {"error": "The comparison needs more memory than there is, or was ended."}
        except Exception as error:  # whatever a log may cause
            found = {"error": f"These runs cannot be compared: {error}"}
        return respond_json(environ, start_response, found)

    def _health(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        lag = time.monotonic() - self._index.polled
        ok = lag < HEALTHY_SECONDS and not self._index.problem
        data = {
            "ok": ok,
            "complete": self._index.complete,
            "unread": self._index.unread,
            "problem": self._index.problem,
            "runs": self._states(),
            "lag_seconds": round(lag, 3),
            "errors": self._errors(),
        }
        return respond_json(environ, start_response, data, ok)

    def _discovery(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Prometheus http_sd_config: /metrics of each run that is judged here, with all its layers."""
        address = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        rows = self._index.rows()
        names = names_of(rows)
        found = []
        for row in rows:
            path = self._index.path(row["id"])
            if row["state"] == "running" and path is not None and self._judges.pages(path) is not None:
                labels = {"__metrics_path__": f"/runs/{row['id']}/metrics", "run": names[row["id"]]}
                found.append({"targets": [address], "labels": labels})
        return respond_json(environ, start_response, found)

    def _now(self) -> Moment:
        if time.monotonic() - self._moment.made > METRICS_SECONDS:
            self._moment = Moment(time.monotonic(), self._snapshots())
        return self._moment

    def _snapshots(self) -> list[Snapshot]:
        names = names_of(self._index.rows())
        rows = [(run, self._index.row(run.id)) for run in self._index.shown()]
        return [snapshot_of(run, row, names.get(run.id, run.id)) for run, row in rows if row is not None]

    def _service(self) -> ServiceState:
        return ServiceState(self._states(), time.monotonic() - self._index.polled, self._errors())

    def _states(self) -> dict[str, int]:
        return dict(Counter(row["state"] for row in self._index.rows()))


def _asked(environ: Environ) -> dict[str, list[str]]:
    return parse_qs(environ.get("QUERY_STRING", ""))

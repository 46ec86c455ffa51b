"""The life of the service: find runs, follow them, judge those that nobody judges, serve, beat, clean up."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from stabwatch.agent.heartbeat import HEARTBEAT, Heartbeat
from stabwatch.agent.http import HttpServer
from stabwatch.agent.receivers import ALERTMANAGER, TOKEN, address, receivers, secret
from stabwatch.agent.service import host_names, login, page_address, stop_signals, tell_access
from stabwatch.alerts import RULES
from stabwatch.alerts.user_rules import load_rules
from stabwatch.errors import AgentError
from stabwatch.runlog.mirror import Mirror
from stabwatch.runlog.stores import shown, url_of
from stabwatch.serve.app import ServiceApp
from stabwatch.serve.index import Index
from stabwatch.serve.judges import Judges
from stabwatch.serve.opened import Opened
from stabwatch.serve.run import Row
from stabwatch.serve.told import Told
from stabwatch.serve.worker import Worker

POLL_SECONDS = 2.0
JUDGE_SECONDS = 1.0
MIRROR_SECONDS = 30.0
"""How often the runs of an object store are compared with their copies."""


class Service:
    """The threads of the service. errors: how many there were; each kind is reported once on standard error.

    mirror: of the object store that the runs are in, if they are in one. Then nothing is written beside them.
    """

    def __init__(
        self, index: Index, judges: Judges, worker: Worker, analyse: bool = True, mirror: Mirror | None = None
    ) -> None:
        self.index, self.judges, self.worker = index, judges, worker
        self.stopping = threading.Event()
        self.errors = 0
        self._analyse = analyse
        self._mirror = mirror
        self._away = ""
        self._waiting: tuple[str, Future[Row]] | None = None
        self._analysed: set[tuple[str, str]] = set()
        self._reported: set[str] = set()

    def poll(self) -> None:
        """One round over all runs. Never raises."""
        try:
            self.index.poll()
            self.index.problem = self._away
        except OSError as error:
            self.index.problem = f"{self.index.root} cannot be read: {error.strerror}"
            self._report(error)
        except Exception as error:
            self._report(error)
        if self._analyse:
            try:
                self._judge_ended()
            except Exception as error:
                self._report(error)

    def copy(self) -> None:
        """Copy what is new in the object store, until the end."""
        while self._mirror is not None and not self.stopping.is_set():
            try:
                self._mirror.sync()
                self._away = ""
            except OSError as error:
                self._away = f"{shown(self._mirror.url)} cannot be read: {error.strerror or error}"
                self._report(error)
            except Exception as error:
                self._report(error)
            self.stopping.wait(MIRROR_SECONDS)

    def judge(self) -> None:
        """Follow the runs without an agent until the end."""
        while not self.stopping.is_set():
            try:
                self.judges.poll([] if self._mirror else self.index.live(), self.stopping.is_set)
            except Exception as error:
                self._report(error)
            self.stopping.wait(JUDGE_SECONDS)

    def _judge_ended(self) -> None:
        """Analyse one ended run after the other that no agent has judged, in another process."""
        if self._waiting is not None:
            folder, future = self._waiting
            if not future.done():
                return
            self._waiting = None
            try:
                self.index.judge(folder, future.result())
            except Exception:
                self.worker.close()  # it was killed, by lack of memory perhaps: the others are still analysed
                raise
        for row in self.index.rows():
            which = (row["id"], str(row["step"]))
            path = self.index.path(row["id"])
            if path is None or which in self._analysed or not _may_be_analysed(row):
                continue
            self._analysed.add(which)
            self._waiting = (row["folder"], self.worker.analyse(path))
            return

    def _report(self, error: Exception) -> None:
        self.errors += 1
        kind = f"{type(error).__name__}: {error}"
        if kind not in self._reported:
            self._reported.add(kind)
            print(f"stabwatch serve: {kind}", file=sys.stderr)
            traceback.print_exc(limit=8)


def _may_be_analysed(row: Row) -> bool:
    return row["read"] and not row["judged"] and row["state"] not in ("running", "unreadable")


def serve_folder(
    root: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 9478,
    certfile: Path | None = None,
    keyfile: Path | None = None,
    username: str | None = None,
    password: str | None = None,
    rules: str | Path | None = None,
    analyse: bool = True,
    external_url: str | None = None,
) -> int:
    """Follow and serve all runs below a folder until SIGTERM or SIGINT. Returns 0.

    A run that goes on without an agent gets its rules evaluated here. analyse: so do ended runs that no agent has
    judged, one after the other in a process of its own. The rest: see `stabwatch.agent.serve`; of runs that are judged
    here the same receivers are notified.
    root: a folder, or the address of one in an object store.
    Raises AgentError if it cannot be served or the folder cannot be read, and RuleError.
    """
    url = url_of(root)
    mirror = None if url is None else Mirror(url)
    if mirror is not None:
        mirror.folder.mkdir(parents=True, exist_ok=True)
    shown_root = root if url is None else shown(url)
    root = Path(root if mirror is None else mirror.folder).resolve()
    if not root.is_dir():
        raise AgentError(f"{root} is not a folder.")
    token = login(username, password)
    chosen = load_rules(rules) if rules else RULES
    beat_url = address(HEARTBEAT)
    index, worker = Index(root), Worker()
    told = Told(receivers(), address(ALERTMANAGER), secret(TOKEN), chosen)
    judges, opened = Judges({"rules": chosen}, told.add), Opened({"rules": chosen})
    service = Service(index, judges, worker, analyse, mirror)
    with ExitStack() as leave:
        leave.callback(worker.close)
        leave.callback(opened.close)
        leave.enter_context(stop_signals(service.stopping))
        app = ServiceApp(index, judges, opened, worker, lambda: service.errors, token, host_names(host))
        server = HttpServer(app, host, port, certfile=certfile, keyfile=keyfile)
        leave.callback(server.close)
        told.base = page_address(external_url) or server.url
        server.start()
        _print_start(server, str(shown_root), token)
        if beat_url:
            leave.callback(Heartbeat(beat_url, lambda: time.monotonic() - index.polled < 60.0).close)
        judging = threading.Thread(target=service.judge, name="judge", daemon=True)
        judging.start()
        if mirror is not None:
            threading.Thread(target=service.copy, name="mirror", daemon=True).start()
        while not service.stopping.is_set():
            service.poll()
            service.stopping.wait(0.05 if index.unread else POLL_SECONDS)
        judging.join(10.0)
        judges.close()
        index.save()
    return 0


def _print_start(server: HttpServer, root: str, token: str | None) -> None:
    if server.asked not in (0, server.port):
        print(f"stabwatch serve: port {server.asked} is taken, using {server.port}.")
    print(f"stabwatch serve: {root}: {server.url} (Prometheus: {server.url}metrics, discovery: {server.url}sd)")
    tell_access("stabwatch serve", server, token)
    sys.stdout.flush()

"""Folders of many runs, and services over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stabwatch.agent.http import HttpServer
from stabwatch.runlog.mirror import Mirror
from stabwatch.serve.app import ServiceApp
from stabwatch.serve.index import Index
from stabwatch.serve.judges import Judges
from stabwatch.serve.opened import Opened
from stabwatch.serve.service import Service
from stabwatch.serve.worker import Worker
from tests.agent.conftest import new_log as new_log
from tests.agent.synthetic import Log


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Log(folder below the root, ...), closed with the test."""
    made: list[Log] = []

    def new(folder: str, /, **more) -> Log:
        path = tmp_path / "root" / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        now = time.time()
        more = {"sick": False, "created": now, "now": lambda step: now - 60 + 0.1 * step, **more}
        made.append(Log(path, **more))
        return made[-1]

    (tmp_path / "root").mkdir()
    yield new
    for log in made:
        log.folder.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


class Running:
    """A service whose rounds a test makes itself, with a server on a port of its own."""

    def __init__(
        self, root: Path, token: str | None = None, analyse: bool = False, mirror: Mirror | None = None
    ) -> None:
        self.index, self.judges, self.worker = Index(root), Judges({}), Worker()
        self.opened = Opened({})
        self.mirror = mirror
        self.service = Service(self.index, self.judges, self.worker, analyse, mirror)
        app = ServiceApp(self.index, self.judges, self.opened, self.worker, lambda: self.service.errors, token)
        self.server = HttpServer(app, "127.0.0.1", 0)
        self.server.start()
        self.url = self.server.url

    def round(self) -> None:
        self.service.poll()
        self.judges.poll([] if self.mirror else self.index.live())

    def row(self, name: str) -> dict:
        (row,) = [row for row in self.index.rows() if row["name"] == name]
        return row

    def close(self) -> None:
        self.server.close()
        self.opened.close()
        self.judges.close()
        self.worker.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(root: Path, **more) -> Running:
        made.append(Running(root, **more))
        made[-1].round()
        return made[-1]

    yield start
    for running in made:
        running.close()

"""Agents as people run them: processes of their own."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.synthetic import Log

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], Any], timeout: float = 60.0, what: str = "") -> Any:
    """The first true value of a condition; fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        time.sleep(0.05)


def get(
    url: str, *, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None, timeout: float = 10
) -> tuple[int, Any, bytes]:
    """(status, headers, body)."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in a run folder."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["kind"] == kind]


@pytest.fixture
def new_log(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Log(name, ...) in the test's folder, closed with the test."""
    made: list[Log] = []

    def new(name: str = "run", **more: Any) -> Log:
        made.append(Log(tmp_path / name, **more))
        return made[-1]

    yield new
    for log in made:
        log.folder.close()


class AgentProcess:
    """`python -m stabwatch.agent RUN`, and what it said."""

    def __init__(self, run: Path, *options: str, env: dict[str, str] | None = None, port: int = 0) -> None:
        self.run = run
        with open(run / "agent.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stabwatch.agent", str(run), "--port", str(port), *options],
                stdout=log, stderr=log, env={**os.environ, **(env or {})}, cwd=ROOT,
            )  # fmt: skip

    def info(self) -> dict[str, Any]:
        """agent.json, once this process has written it."""

        def read() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.said()
            try:
                info = json.loads((self.run / "agent.json").read_text())
            except OSError:
                return None
            return info if info["pid"] == self.process.pid else None

        return until(read, what="agent.json")

    def metrics(self) -> str:
        """The text of /metrics."""
        return get(self.info()["url"] + "metrics")[2].decode()

    def said(self) -> str:
        return (self.run / "agent.log").read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@pytest.fixture
def start_agent() -> Iterator[Callable[..., AgentProcess]]:
    """AgentProcess, ended with the test."""
    started: list[AgentProcess] = []

    def start(run: Path, *options: str, **more: Any) -> AgentProcess:
        started.append(AgentProcess(run, *options, **more))
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


@pytest.fixture
def start_training() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """A child process that writes a run log until somebody kills it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.agent.synthetic", str(run)]
        started.append(subprocess.Popen(command, cwd=ROOT))
        until(lambda: list(run.glob("signals-*")), what="a run log")
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)

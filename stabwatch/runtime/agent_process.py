"""The agent as a child process: started by the training process, watched, and restarted when it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stabwatch.config import Config
from stabwatch.runtime.notices import say

QUICK_RESTARTS = 3
"""So many times an agent that died is restarted at once; after that it is restarted later and later."""
PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 960.0
STEADY_SECONDS = 600.0
"""An agent that ran for so long has not died again and again."""


def active_runs() -> dict[str, str]:
    """The runs of experiment trackers that are active in this process, as the variables by which they are resumed."""
    found: dict[str, Any] = {}
    for read in (_wandb_run, _mlflow_run):
        with suppress(Exception):  # another version of theirs: the sink then makes a run of its own
            found |= read()
    return {name: str(value) for name, value in found.items() if value}


def _wandb_run() -> dict[str, Any]:
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return {}
    mode, folder = run.settings.mode, run.settings.root_dir
    return {"WANDB_RUN_ID": run.id, "WANDB_PROJECT": run.project, "WANDB_ENTITY": run.entity, "WANDB_MODE": mode,
            "WANDB_DIR": folder}  # fmt: skip


def _mlflow_run() -> dict[str, Any]:
    mlflow: Any = sys.modules.get("mlflow")
    run = mlflow.active_run() if mlflow else None
    return {"MLFLOW_RUN_ID": run.info.run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()} if run else {}


class _Child(subprocess.Popen[bytes]):
    """A process that may outlive this one: that it still runs is nothing to warn of when Python ends."""

    def __del__(self, _warn: Any = None) -> None:
        super().__del__(_warn=lambda *args, **kwargs: None)  # type: ignore[call-arg]


class AgentProcess:
    """Starts `python -m stabwatch.agent RUN`; nothing here raises.

    report: called with (kind, **data) when the agent dies and when it is restarted.
    """

    def __init__(self, run_dir: Path, config: Config, report: Callable[..., None]) -> None:
        self._run_dir = run_dir
        self._config = config
        self._report = report
        self._child: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._began = time.monotonic()
        self._again: float | None = None
        """When an agent that died is started again."""
        self._stopped = self._told = False
        self._tracked = active_runs() if config.sinks else {}
        self._start()

    def _command(self) -> list[str]:
        c = self._config
        command = [sys.executable, "-m", "stabwatch.agent", str(self._run_dir)]
        command += ["--host", c.host, "--port", str(c.port), "--linger", str(c.linger)]
        command += ["--cardinality", c.cardinality, "--worst", str(c.worst), "--max-series", str(c.max_series)]
        command += ["--file-sd", c.file_sd] if c.file_sd else []
        command += ["--external-url", c.external_url] if c.external_url else []
        command += ["--summary"] if c.summary else []
        command += [part for name in c.sink_names for part in ("--sink", name)]
        return command + (["--rules", str(Path(c.rules).resolve())] if c.rules else [])

    def _start(self) -> None:
        self._began = time.monotonic()
        try:
            with open(self._run_dir / "agent.log", "ab") as log:
                self._child = _Child(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the training's terminal must not end it
                    env={**os.environ, **self._tracked, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._stopped = True
            self._report("agent", state="not started", message=f"{type(error).__name__}: {error}")

    def check(self) -> None:
        """Restart the agent if it died, and print its address once it serves. Called about once a second."""
        if self._config.verbose and not self._told and (url := self.url()) is not None:
            self._told = True
            say(f"live page at {url}")
        if self._stopped or self._child is None or self._child.poll() is None:
            return
        code, now = self._child.returncode, time.monotonic()
        if self._again is None:
            self._again = now + self._pause(now)
            if self._again > now:
                message = f"It died {self._restarts + 1} times: see agent.log. It is started again in some minutes."
                self._report("agent", state="waiting", code=code, message=message)
        if now < self._again:
            return
        self._again = None
        self._restarts += 1
        self._report("agent", state="restarted", code=code, restarts=self._restarts)
        self._start()

    def _pause(self, now: float) -> float:
        """Seconds until an agent that has just died is started again."""
        if now - self._began >= STEADY_SECONDS:
            self._restarts = 0
        late = self._restarts - QUICK_RESTARTS
        return 0.0 if late < 0 else min(PAUSE_SECONDS * 2.0**late, LONGEST_PAUSE_SECONDS)

    def url(self, timeout: float = 0.0) -> str | None:
        """Address of the live page, once the agent serves; waits up to `timeout` seconds for it."""
        end = time.monotonic() + timeout
        while True:
            info = self._info()
            if info is not None:
                return str(info["url"])
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)

    def _info(self) -> dict[str, Any] | None:
        try:
            info = json.loads((self._run_dir / "agent.json").read_text())
        except (OSError, ValueError):
            return None
        child = self._child
        return info if child is not None and child.poll() is None and info.get("pid") == child.pid else None

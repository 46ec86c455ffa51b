"""What the training process keeps open of a run that it writes: the writer of its log, its agent, its uploader."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.ranks import Ranks
from stabwatch.runlog import Event, Writer
from stabwatch.runlog.stores import shown
from stabwatch.runlog.upload import Uploader
from stabwatch.runtime.agent_process import AgentProcess
from stabwatch.runtime.lifetime import end_left
from stabwatch.runtime.notices import anywhere, from_here, say
from stabwatch.runtime.resume import launch, open_run


class RunOutput:
    """Opens the run of this process, with its start event. run_dir, resume: see `open_run`; layers: see there.

    idle: called about once a second from the writer's thread.
    """

    def __init__(
        self,
        run_dir: str | Path | None,
        resume: str | Path | None,
        config: Config,
        ranks: Ranks,
        model: nn.Module,
        layers: Iterable[str],
        step: int,
        idle: Callable[[], None],
    ) -> None:
        folder, self.attempt, url = open_run(run_dir, resume, config, ranks, model, layers)
        self._folder = folder
        folder.path = anywhere(folder.path)
        self.run, self.path = folder.run, folder.path
        self._idle = idle
        self._agent: AgentProcess | None = None
        self.writer = Writer(folder, idle=self._now_and_then)
        facts = {"launch": launch()} if launch() else {}
        self.writer.event("start", step, argv=sys.argv[:1], attempt=self.attempt, **facts)
        if config.agent:
            self._agent = AgentProcess(folder.path, config, self.writer.event)
        self._uploader = Uploader(folder, url, self.writer.event) if url is not None else None
        if config.verbose:
            sent = "" if url is None else f", sent to {shown(url)}"
            say(f"watching {type(model).__name__}, run log in {from_here(folder.path)}{sent}")

    def is_of(self, ranks: Ranks) -> None:
        """The run is that of these ranks, which were not known when it began. Raises OSError."""
        self._folder.describe(replace(self._folder.meta, world_size=ranks.world, rank=ranks.rank))

    def _now_and_then(self) -> None:
        if self._agent is not None:
            self._agent.check()
        self._idle()
        end_left(wait=False)

    def settle(self, records: int, seconds: float) -> None:
        """Wait until so many records are written or dropped, at most so long."""
        ends = time.monotonic() + seconds
        while self.writer.written + self.writer.dropped < records:
            self.writer.hurry()
            if time.monotonic() > ends:
                break
            time.sleep(0.01)

    def url(self, timeout: float) -> str | None:
        """Address of the live page, once the agent serves it; waits up to `timeout` seconds."""
        return self._agent.url(timeout) if self._agent is not None else None

    def close(self, end: Event, before: Callable[[], Any]) -> None:
        """Write what is left, then what `before` writes, then `end`; send the rest to the object store."""
        self.writer.close(end, before=before)
        if self._uploader is not None:
            self._uploader.close()

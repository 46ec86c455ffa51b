"""The sink for Weights & Biases: a run of its own, or the user's run that is active already.

Project, folder and mode are W&B's own variables (WANDB_PROJECT, WANDB_DIR, WANDB_MODE, ...). A run whose id is in
WANDB_RUN_ID is continued. Numbers have the prefix `stabwatch/` and a step axis of their own, because W&B refuses steps
that go back.
"""

from __future__ import annotations

import os
from typing import Any

from stabwatch.exporters.scalars import PREFIX, facts, identifier, scalars
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch
from stabwatch.runlog.schema import GOOD_ENDS

PROJECT = "stabwatch"
STEP = f"{PREFIX}step"


class WandbSink:
    """Logs each record; counts values."""

    def __init__(self) -> None:
        self._written = 0
        self._exit_code = 0

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        import wandb

        own = "WANDB_RUN_ID" not in os.environ
        about: dict[str, Any] = {}
        if own:
            about = {"id": identifier(run.meta), "name": run.meta.name or run.meta.run}
            about |= {"tags": run.meta.tags or None, "notes": run.meta.notes or None}
        shared: dict[str, Any] = {}
        if not own and os.environ.get("WANDB_MODE", "online") == "online":  # another process writes to the run
            shared = {"mode": "shared", "x_primary": False, "x_update_finish_state": False, "x_label": "stabwatch"}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            resume="allow",
            config={"stabwatch": facts(run.meta)},
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=True,
                x_disable_meta=not own,
                disable_git=True,
                **shared,
            ),
            **about,
        )
        self._run.define_metric(STEP)
        self._run.define_metric(f"{PREFIX}*", step_metric=STEP)

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        for one in scalars(batch):
            self._run.log({**one.values, STEP: one.step})
            self._written += len(one.values)

    def write_event(self, event: Event) -> None:
        """An alert is a line of the summary: the step since which its rule fires, and where."""
        if event.kind == "alert" and event.data.get("state") == "firing":
            onset, layer = event.data.get("onset", event.step), event.data.get("layer") or "run"
            self._run.summary[f"{PREFIX}alert/{event.data.get('rule')}/{layer}"] = onset
        elif event.kind == "end":
            reason = str(event.data.get("reason", ""))
            self._run.summary[f"{PREFIX}end"] = reason
            self._exit_code = 0 if reason in GOOD_ENDS else 1

    def close(self) -> int:
        """See Sink."""
        self._run.finish(exit_code=self._exit_code)
        return self._written

"""The sink for MLflow: a run of its own, or the user's run that is active already (MLFLOW_RUN_ID).

The server is MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME or `stabwatch`. Numbers have the prefix
`stabwatch/`.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import Any

from stabwatch.exporters.scalars import facts, identifier, scalars
from stabwatch.exporters.sink import RunHeader
from stabwatch.runlog import Event, RecordBatch

EXPERIMENT = "stabwatch"
TAG = "stabwatch.run"
BATCH = 1_000
"""Most metrics that MLflow takes in a request."""
STATUS = {"finished": "FINISHED", "replaced": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}


class MlflowSink:
    """Logs each record; counts values."""

    def __init__(self) -> None:
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._entities = entities
        self._client = MlflowClient()
        self._written = 0
        self._status = "FINISHED"

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        self._own = "MLFLOW_RUN_ID" not in os.environ
        self._id = self._own_run(run) if self._own else os.environ["MLFLOW_RUN_ID"]

    def _own_run(self, run: RunHeader) -> str:
        """The run of an earlier start of this sink, or a new one."""
        group = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(group)
        experiment = found.experiment_id if found else self._client.create_experiment(group)
        mine = identifier(run.meta)
        earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{mine}'", max_results=1)
        if earlier:
            return str(earlier[0].info.run_id)
        labels = {f"stabwatch.tag.{_key(tag)}": "" for tag in run.meta.tags}
        labels |= {"mlflow.note.content": run.meta.notes} if run.meta.notes else {}
        name = run.meta.name or run.meta.run
        made = self._client.create_run(experiment, round(1e3 * run.meta.created), {**labels, TAG: mine}, name)
        told = [(key, str(value)[:500]) for key, value in facts(run.meta).items()]
        self._client.log_batch(
            made.info.run_id, params=[self._entities.Param(f"stabwatch.{key}", value) for key, value in told]
        )
        return str(made.info.run_id)

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        metrics = (
            self._entities.Metric(_key(name), value, round(1e3 * one.time), one.step)
            for one in scalars(batch)
            for name, value in one.values.items()
        )
        while some := list(islice(metrics, BATCH)):
            self._client.log_batch(self._id, metrics=some)
            self._written += len(some)

    def write_event(self, event: Event) -> None:
        """An alert is a tag: the step since which its rule fires, and where."""
        data: dict[str, Any] = event.data
        if event.kind == "alert" and data.get("state") == "firing":
            layer = f" in {data['layer']}" if data.get("layer") else ""
            text = f"{data.get('severity')} since step {data.get('onset', event.step)}{layer}"
            self._client.log_batch(self._id, tags=[self._entities.RunTag(f"stabwatch.alert.{data.get('rule')}", text)])
        elif event.kind == "end":
            self._status = STATUS.get(str(data.get("reason")), "FAILED")

    def close(self) -> int:
        """See Sink. The user's own run goes on."""
        if self._own:
            self._client.set_terminated(self._id, self._status)
        return self._written


def _key(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)

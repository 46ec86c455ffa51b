"""Weights & Biases' own offline file, by W&B's own reader."""

from __future__ import annotations

import json
import math

from stabwatch.analysis.logs import Log
from stabwatch.analysis.readers.documents import flat
from stabwatch.analysis.readers.gather import Gatherer
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.source import Source
from stabwatch.errors import LogError, MissingExtraError


def _read(source: Source) -> Log:
    try:
        from wandb.proto import wandb_internal_pb2
        from wandb.sdk.internal.datastore import DataStore
    except ImportError as error:
        raise MissingExtraError(
            f"{source.path} is a W&B offline file, which W&B's own package reads: pip install wandb; "
            "or export the run's history as CSV."
        ) from error
    store, gatherer, notes = DataStore(), Gatherer(source.path.stem), []
    try:
        store.open_for_scan(str(source.path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                _history(gatherer, record)
    except Exception as error:  # a torn tail raises AssertionError and others
        if not len(gatherer):
            raise LogError(f"{source.path} cannot be read as a W&B file: {error}.") from error
        notes.append("It ends in the middle of a record.")
    return Log(source.path, "W&B offline", (gatherer.run(),), tuple(notes))


def _history(gatherer: Gatherer, record: object) -> None:
    values: dict[str, float] = {}
    step, time = None, math.nan
    for item in record.history.item:  # type: ignore[attr-defined]
        key = item.key or "/".join(item.nested_key)
        try:
            value = json.loads(item.value_json)
        except ValueError:
            continue
        if key == "_step":
            step = int(value)
        elif key == "_timestamp":
            time = float(value)
        elif not key.startswith("_"):
            values |= flat({key: value})
    if values:
        gatherer.add(len(gatherer) if step is None else step, -1, values, time)


READER = Reader(
    "W&B offline",
    "`run-*.wandb` of Weights & Biases, with the package `wandb` installed",
    lambda source: source.head[:4] == b":W&B",
    _read,
)

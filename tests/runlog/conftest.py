"""A small layout with every kind of cell, and run folders written with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from stabwatch.runlog import Cell, Meta, RunFolder, SlotTable, host_cell


def meta(**changes) -> Meta:
    now = time.time()
    return Meta(**{"run": "x", "created": now, "host": "h", "pid": os.getpid(), "pid_started": now, **changes})


def row(table: SlotTable, step: int) -> np.ndarray:
    """Slots that name their step: the count slots are 1, all others the step."""
    values = np.full(table.width, step, dtype=np.float32)
    values[list(table.starts)] = 1
    return values


@pytest.fixture
def table() -> SlotTable:
    return SlotTable.build(
        [
            Cell("loss", "", "mean"),
            Cell("activation", "blocks.0", "moments"),
            Cell("attention", "blocks.0.attn", "attention_bracket"),
            Cell("attention", "blocks.0.attn", "attention_exact"),
            Cell("gradient", "blocks.0", "moments"),
            Cell("gradient", "blocks.1", "moments"),
            host_cell("learning_rate"),
        ]
    )


@pytest.fixture
def folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", meta())
    yield folder
    folder.close()


@pytest.fixture
def run(folder: RunFolder, table: SlotTable) -> Path:
    """A run folder with the records of steps 0 to 4."""
    for step in range(5):
        folder.append(table, step, 100.0 + step, row(table, step))
    folder.close()
    return folder.path

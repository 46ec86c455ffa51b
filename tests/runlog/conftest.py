"""A small layout with every kind of cell, and run folders written with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from stabwatch.runlog import Accumulator, Meta, RecordLayout, RunFolder, host_accumulator


def meta(**changes) -> Meta:
    now = time.time()
    return Meta(**{"run": "x", "created": now, "host": "h", "pid": os.getpid(), "pid_started": now, **changes})


def row(layout: RecordLayout, step: int) -> np.ndarray:
    """Slots that name their step: the count slots are 1, all others the step."""
    values = np.full(layout.width, step, dtype=np.float32)
    values[list(layout.starts)] = 1
    return values


@pytest.fixture
def layout() -> RecordLayout:
    return RecordLayout.build(
        [
            Accumulator("loss", "", "mean"),
            Accumulator("activation", "blocks.0", "moments"),
            Accumulator("attention", "blocks.0.attn", "attention_bracket"),
            Accumulator("attention", "blocks.0.attn", "attention_exact"),
            Accumulator("gradient", "blocks.0", "moments"),
            Accumulator("gradient", "blocks.1", "moments"),
            host_accumulator("learning_rate"),
        ]
    )


@pytest.fixture
def folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", meta())
    yield folder
    folder.close()


@pytest.fixture
def run(folder: RunFolder, layout: RecordLayout) -> Path:
    """A run folder with the records of steps 0 to 4."""
    for step in range(5):
        folder.append(layout, step, 100.0 + step, row(layout, step))
    folder.close()
    return folder.path

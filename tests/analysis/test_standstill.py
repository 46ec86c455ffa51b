"""A calm run's loss that stands still, or that was lower before, is told as what it is; others are not spoken of."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.readers.log import Column, LogRun
from stabwatch.analysis.standstill import standstill

N = 400
T = np.arange(N)
NOISE = np.random.default_rng(0).normal(0, 0.02, N)


def _run(values, comparable=True):
    steps = np.arange(len(values))
    column = Column("loss", "loss", steps, np.asarray(values, np.float64), np.full(len(values), -1))
    return LogRun(
        "run", (column,), steps, np.full(len(values), -1), np.full(len(values), np.nan), comparable=comparable
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (2.0 + 0.3 * np.exp(-T / 20) + NOISE, "hardly fallen"),
        (0.2 + 2.1 * np.exp(-T / 20) + NOISE, ""),
        (2.3 - 1.2 * T / N + NOISE, ""),
        (np.where(T < 200, 2.3 * np.exp(-T / 100), 0.3 + (T - 200) / 150), "lower before"),
        (2.3 + 5 * NOISE, "hardly fallen"),
        (np.full(N, 1.0), ""),
        (2.0 + 0.3 * np.exp(-T[:100] / 20), ""),
    ],
    ids=["stands", "has learned", "falls", "rises", "noise", "one number", "short"],
)
def test_what_is_said_of_a_loss(values, word):
    said = standstill(_run(values), {})
    assert (word in said) if word else not said
    assert not standstill(_run(values, comparable=False), {}) and not standstill(_run(values), {}, changed=True)


def test_the_step_from_which_a_loss_stands_still_is_told():
    said = standstill(_run(2.0 + 0.5 * np.exp(-T / 20)), {"loss": 2.0, "token_loss": 0.5})
    assert "since step 60: it is 2, 87% of what it was at first" in said
    assert "Of the last loss, 2, the cross-entropy is 0.5: most of it is another term." in said

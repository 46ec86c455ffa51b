"""On which rank non-finite values began: of the record in which they did, also where an event told of them first."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.alerts import Engine, diagnose
from stabwatch.runlog import Accumulator, Event, RecordBatch, RecordLayout

LOSS, COUNTS = Accumulator("loss", "", "mean"), Accumulator("rank_nonfinite", "", "rank_spread")
AT = 20


def _records(first, numbers, worst):
    """Records with these numbers of non-finite values on the rank that counted the most."""
    layout = RecordLayout.build((LOSS, COUNTS))
    rows = [[1, np.nan if n else 1.0, n > 0, 4, n, n, worst if n else -1, 0] for n in numbers]
    steps = np.arange(first, first + len(numbers))
    return RecordBatch(layout, steps, 1000.0 + steps, np.array(rows, np.float32))


@pytest.mark.parametrize("many", [False, True], ids=["one by one", "blocks"])
@pytest.mark.parametrize("worst", [2, -1])
@pytest.mark.parametrize("event", [False, True], ids=["records", "event first"])
def test_the_rank_is_that_of_the_record_in_which_it_began(many, worst, event):
    engine = Engine()
    engine.observe(_records(0, [0] * AT, -1))
    if event:
        engine.observe_event(Event("nonfinite", 0.0, AT, {"place": "loss", "since": AT, "loss": "nan"}))
    numbers = [7, 90, 90, *([90] * 30)]
    for first in [AT] if many else range(AT, AT + len(numbers)):
        size = len(numbers) if many else 1
        engine.observe(_records(first, numbers[first - AT : first - AT + size], worst if first == AT else -1))
    [cause] = [c for c in diagnose(engine).causes if c.name == "NonFinite"]
    said = " ".join(cause.evidence)
    assert ("Rank 2 counted the most non-finite values at first" in said) == (worst == 2)
    assert ("Which was first is not known" in said) == (worst == -1)


def test_a_run_of_one_rank_says_nothing_of_ranks():
    engine = Engine()
    steps = np.arange(AT + 4)
    rows = [[1, np.nan if i >= AT else 1.0, i >= AT] for i in steps]
    engine.observe(RecordBatch(RecordLayout.build((LOSS,)), steps, 1000.0 + steps, np.array(rows, np.float32)))
    [cause] = [c for c in diagnose(engine).causes if c.name == "NonFinite"]
    assert "ank " not in " ".join(cause.evidence)

"""A loss that jumps together with the data: new data are learned, odd ones end, or the loss diverges."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.alerts import Engine
from stabwatch.alerts.diagnosis import diagnose
from tests.alerts.scenarios import block

AT, END = 100, 300
NOISE = np.exp(0.05 * np.random.default_rng(0).standard_normal(END))


def _told(loss, shift, each):
    engine = Engine()
    values = (np.array([loss(step) for step in range(END)]) * NOISE).tolist()
    shifts = [shift(step) for step in range(END)]
    for first in range(0, END, each):
        engine.observe(block({"loss": values[first : first + each], "shift": shifts[first : first + each]}, first))
    return engine, {a.rule for a in engine.history if a.severity != "info"}


def _changes(step):
    return 1.0 if step < AT or step > AT + 80 else 30.0


def _never(step):
    return 1.0


def _learned(step):
    return 0.2 if step < AT else 1.0 + 2 * 0.9 ** (step - AT)


def _stays(step):
    return 0.2 if step < AT else 3.0


def _climbs(step):
    return 0.2 if step < AT else 2.0 * 1.03 ** (step - AT)


@pytest.mark.parametrize("each", [1, END])
def test_new_data_that_are_learned_are_no_alarm_and_are_told(each):
    engine, rules = _told(_learned, _changes, each)
    assert rules == set() and engine.data_changes == (AT,)
    assert diagnose(engine).verdict.endswith(f"The data changed, and the loss with them, at step {AT}.")
    _, without = _told(_learned, _never, each)
    assert "LossSpike" in without, "the same loss on the same data"


@pytest.mark.parametrize("first", range(150, 190, 3))
def test_records_after_the_change_may_come_in_any_pieces(first):
    """The new data are the usual ones after a while; what comes then is judged in a block, whatever windows have."""
    engine, at_once = Engine(), Engine()
    losses = (np.array([_learned(step) for step in range(END)]) * NOISE).tolist()
    shifts = [30.0 if AT <= step <= AT + 47 else 1.0 if step < AT else None for step in range(END)]
    for step in range(first):
        engine.observe(block({"loss": losses[step : step + 1], "shift": shifts[step : step + 1]}, step))
    engine.observe(block({"loss": losses[first:], "shift": shifts[first:]}, first))
    at_once.observe(block({"loss": losses, "shift": shifts}, 0))
    assert engine.data_changes == at_once.data_changes == (AT,)
    assert engine.history == at_once.history


@pytest.mark.parametrize("each", [1, END])
def test_a_loss_that_scatters_shows_the_change_later_and_the_step_is_that_of_the_data(each):
    scatter = np.random.default_rng(1)
    losses = [0.7 if step < AT else 0.7 + 0.8 * 0.985 ** (step - AT) for step in range(END)]
    losses = [loss * float(np.exp(0.2 * scatter.standard_normal())) for loss in losses]
    engine, rules = _told(lambda step: losses[step], _changes, each)
    assert rules == set() and engine.data_changes == (AT,)
    _, without = _told(lambda step: losses[step], _never, each)
    assert "LossShift" in without, "the same loss on the same data"


@pytest.mark.parametrize("loss", [_stays, _climbs])
@pytest.mark.parametrize("each", [1, END])
def test_a_loss_that_is_not_learned_or_climbs_after_the_change_is_told(loss, each):
    engine, rules = _told(loss, _changes, each)
    assert "LossDivergence" in rules and not engine.data_changes


@pytest.mark.parametrize("each", [1, END])
def test_odd_batches_are_told_when_they_end(each):
    engine, rules = _told(
        lambda step: 3.0 if AT <= step < AT + 12 else 0.2, lambda step: 90.0 if AT <= step < AT + 14 else 1.0, each
    )
    assert rules == {"OddBatches"}
    assert diagnose(engine).causes[0].name == "BadBatch"

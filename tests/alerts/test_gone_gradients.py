"""Gradients whose norms are exactly zero, and a cross-entropy beside another term of the loss."""

from __future__ import annotations

import pytest

from stabwatch.alerts import Engine
from tests.alerts.scenarios import around, block, wave


def _told(series: dict[str, object], rule: str) -> list[int]:
    engine = Engine()
    engine.observe(block(series))
    return [a.step for a in engine.history if a.rule == rule and a.state == "firing"]


@pytest.mark.parametrize(("loss", "told"), [(2.0, [62]), (0.0, [])], ids=["a loss is left", "all is learned"])
def test_norms_of_zero_tell_that_all_gradients_are_while_a_loss_is_left(loss, told):
    """Shares of zeros are measured once, at the start; norms at each step."""
    zeros = {f"zeros {layer}": [0.1] + [None] * 119 for layer in "ab"}
    norms = {f"flow {layer}": [*wave(60, 1e-3, 0.1), *([0.0] * 60)] for layer in "ab"}
    assert _told({**zeros, **norms, "loss": [2.0] * 60 + [loss] * 60}, "ZeroGradients") == told


def test_gradients_that_were_sparse_before_are_told_when_all_are_gone():
    zeros = {f"zeros {layer}": [0.95] + [None] * 119 for layer in "ab"}
    norms = {f"flow {layer}": [*wave(60, 1e-3, 0.1), *([0.0] * 60)] for layer in "ab"}
    assert _told({**zeros, **norms, "loss": [2.0] * 120}, "ZeroGradients") == [93]


def test_a_layer_without_a_gradient_beside_others_is_no_end_of_all():
    zeros = {f"zeros {layer}": [0.1] + [None] * 119 for layer in "ab"}
    norms = {"flow a": wave(120, 1e-3, 0.1), "flow b": [*wave(60, 1e-3, 0.1), *([0.0] * 60)]}
    assert _told({**zeros, **norms, "loss": [2.0] * 120}, "ZeroGradients") == []


def _beside(rest: list[float]) -> list[int]:
    length = len(rest)
    series = {"token_loss": [2.302] * length, "loss": [2.302 + x for x in rest]}
    return _told({**series, **around({"ten_classes": 1.0}, 0, length)}, "NotLearning")


def test_classes_that_wait_until_boxes_are_learned_are_told_later():
    falls = [7.0 * 0.98**step for step in range(200)]
    assert _beside([*falls, *([falls[-1]] * 100)]) == []
    assert 320 < _beside([*falls, *([falls[-1]] * 200)])[0] < 400


@pytest.mark.parametrize("rest", [0.0, 7.0], ids=["the only term", "another that is not learned either"])
def test_a_cross_entropy_that_stays_a_guess_is_told_as_ever(rest):
    assert _beside([0.0 if not rest else x for x in wave(240, rest or 1.0)]) == [201]

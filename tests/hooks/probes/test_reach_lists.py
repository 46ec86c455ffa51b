"""Parameters in plain lists, which the model does not know, and parts that lose their gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.hooks.probes.reach import unregistered


def test_flat_parameters_of_a_wrapper_are_none():
    """FSDP1 keeps them in a list beside the parameters that they are made of, which the model knows."""
    model = nn.Linear(2, 2)
    layer, flat = nn.Linear(2, 2), nn.Parameter(torch.zeros(6))
    flat._shard_param_infos = ()
    model.layers, model.params = [layer], [flat]
    assert [name for name, _ in unregistered(model)] == ["layers", "layers"]


class _TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 1)
        self.how = ""

    def forward(self, x):
        side = 0.0 if self.how == "left out" else self.side(x)
        changed = {"cut": lambda: side.detach(), "off": lambda: side * 0.0, "clamped": lambda: (side + 9.0).clamp(0, 1)}
        return self.head(self.body(x) + changed.get(self.how, lambda: side)())


@pytest.mark.parametrize(
    ("how", "told"), [("cut", True), ("frozen", False), ("left out", False), ("", False)], ids=lambda x: str(x)
)
def test_a_part_that_loses_its_gradient_is_told_unless_it_is_meant(how, told, tmp_path):
    torch.manual_seed(0)
    model = _TwoParts()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(150):
        if step == 30:
            model.how = how
            model.side.requires_grad_(how != "frozen")
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()
    watch.detach()
    found = [(a.rule, a.layer) for a in analyze(watch.run_dir).alerts if a.rule == "PartLostGradient"]
    assert found == ([("PartLostGradient", "side")] if told else [])


@pytest.mark.parametrize(
    ("how", "told"), [("off", True), ("clamped", True), ("left out", False), ("", False)], ids=lambda x: str(x)
)
def test_a_part_whose_gradient_becomes_zero_is_told_unless_it_is_left_out(how, told, tmp_path):
    torch.manual_seed(0)
    model = _TwoParts()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    for step in range(120):
        model.how = how if step >= 30 else ""
        optimizer.zero_grad(set_to_none=False)
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()
    watch.detach()
    found = [(a.rule, a.layer, a.step) for a in analyze(watch.run_dir).alerts if a.rule == "PartGradientBecameZero"]
    assert found == ([("PartGradientBecameZero", "side", 97)] if told else [])

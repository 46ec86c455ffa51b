"""A probe is one declaration: everything else, from the accumulators to the cost, follows from it."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.cost import probe_of
from stabwatch.hooks.base.parameter_views import ParameterChange
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.signals import CATALOGUE
from stabwatch.signals.reductions import MEAN, REDUCTIONS

KERNEL = """
import torch

def positive(x):
    return torch.stack((torch.full((), float(x.numel())), (x > 0).sum(dtype=torch.float32)))
"""
PROBE = """
from stabwatch.hooks.base.probe import PROBES, Need, Probe, new_reduction, on
from stabwatch.hooks.base.views import ResidualOutput
from stabwatch.signals import Signal

from a_package.kernel import positive

POSITIVE = new_reduction("positive", count="sum", positive="sum")
SHARE = PROBES.register(
    Probe(
        name="positive", tap="residual", reduction=POSITIVE, tier="deep", round_robin=True, optional=True,
        needs=(Need("samples", "it has no token axis"),), compute=on(ResidualOutput, lambda x: positive(x.rows)),
        signals=(
            Signal(
                name="residual_positive_ratio", help="Share of the residual stream above zero.", unit="ratio",
                tap="residual", reduction="positive", fields=("positive", "count"), formula="mean", tier="deep",
            ),
        ),
    )
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one kernel file and one probe file, imported."""
    folder = tmp_path / "a_package"
    folder.mkdir()
    for name, text in (("__init__", ""), ("kernel", KERNEL), ("probe", PROBE)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("a_package.probe")
    yield module
    PROBES.remove(module.SHARE)
    for name in [name for name in sys.modules if name.startswith("a_package")]:
        del sys.modules[name]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.up(x)


def _train(attach, shape, steps=10):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(Block(), Block()), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs = []
    model[0][1].register_forward_hook(lambda module, args, out: outputs.append((out > 0).float().mean().item()))
    watch = attach(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(torch.randn(*shape, 4)).flatten(0, -2)
        nn.functional.cross_entropy(out, torch.randint(3, (len(out),))).backward()
        optimizer.step()
    return watch, outputs, attach.finish()


def test_one_kernel_file_and_one_probe_file_are_a_signal(package, attach):
    watch, outputs, log = _train(attach, (2, 5))
    steps, values = log.series("residual_positive_ratio", "0.1")
    measured = ~np.isnan(values)
    assert measured.sum() >= 1
    truth = [outputs[int(step)] for step in steps[measured]]
    assert values[measured].tolist() == pytest.approx(truth)
    assert [signal["name"] for signal in log.meta.signals] == ["residual_positive_ratio"]
    assert CATALOGUE["residual_positive_ratio"].metric == "stabwatch_residual_positive_ratio"
    assert watch._session.isolation.spent["positive"] > 0, "its cost is counted under its name"
    assert probe_of(CATALOGUE["residual_positive_ratio"]) == "positive"
    assert not [e for e in log.events if e.kind == "error"]
    assert not [e for e in watch.coverage()["unmeasured"] if e["tap"] == "positive"]


def test_it_takes_turns_and_the_first_site_brings_all_others_into_the_record(package, attach):
    _, _, log = _train(attach, (2, 5))
    sites = [{a.site for a in block.layout.accumulators if a.reduction == "positive"} for block in log.blocks]
    assert sites[-1] >= {"0.0", "0.1"}
    assert all(found in (set(), sites[-1]) for found in sites)


def test_what_a_view_cannot_provide_is_reported_with_the_reason_of_the_declaration(package, attach):
    watch, _, log = _train(attach, (6,))
    found = {(e["site"], e["reason"]) for e in watch.coverage()["unmeasured"] if e["tap"] == "positive"}
    assert ("0.1", "it has no token axis") in found
    assert not [key for key in log.keys if key.signal == "residual_positive_ratio" and len(log.series(*_of(key))[1])]


def _of(key):
    return key.signal, key.layer


def test_what_a_probe_brings_along_goes_with_it(package):
    PROBES.remove(package.SHARE)
    assert "positive" not in REDUCTIONS and "residual_positive_ratio" not in CATALOGUE
    REDUCTIONS["positive"] = package.POSITIVE
    PROBES.register(package.SHARE)


def test_a_probe_that_is_declared_twice_is_refused(package):
    with pytest.raises(ValueError, match="`positive` is measured at the tap `residual` already"):
        PROBES.register(package.SHARE)


def test_a_probe_of_copies_must_be_measured_in_turn():
    with pytest.raises(ValueError, match="must be `round_robin`"):
        Probe(name="x", tap="update", reduction=MEAN, tier="deep", compute=on(ParameterChange, lambda x: None))


def test_the_tier_of_a_probe_is_that_of_its_signals():
    tiers = {(p.name, p.key, p.tier, s.tier) for p in PROBES for s in CATALOGUE.at(*p.key)}
    assert [row for row in tiers if row[2] != row[3]] == []


def test_every_signal_that_is_measured_by_hooks_has_a_probe():
    hostside = {"host", "logged", "rank_busy", "rank_loss", "rank_loss_low", "rank_nonfinite", "replica"}
    assert [s.name for s in CATALOGUE if s.tap not in hostside and PROBES.find(s.tap, s.reduction) is None] == []

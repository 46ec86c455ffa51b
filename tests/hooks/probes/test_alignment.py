"""Log-alignment of linear layers: against its definition in float64, and at its two ends."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.linear_view import SHARDED, LinearCall
from stabwatch.kernels.alignment import alignment


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 12)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Sequential(Block(), Block()), nn.LayerNorm(12), nn.Linear(12, 300))


def train(model, steps=PHASES, rate=0.1, size=(4, 9, 6)):
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    yield optimizer
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(size, generator=draw)).square().mean().backward()
        optimizer.step()
    yield optimizer


@pytest.mark.parametrize("size", [(4, 9, 6), (64, 40, 6)], ids=["small", "sampled"])
def test_it_is_that_of_the_definition(size, attach):
    model, seen = network(), {}

    def note(name):
        def hook(module, args, out):
            x, w = args[0].detach().double(), module.weight.detach().double()
            rms = [y.square().mean().sqrt() for y in (x @ w.T, w, x)]
            seen.setdefault(name, []).append((torch.log(rms[0] / rms[1] / rms[2]) / math.log(w.shape[1])).item())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note(name))
    loop = train(model, size=size)
    watch = attach(model, next(loop))
    next(loop)
    assert not watch._session.isolation.errors
    log = attach.finish()
    layers = {key.layer for key in log.keys if key.signal == "log_alignment_ratio"}
    assert layers == {"0", "1.0.up", "1.0.down", "1.1.up", "1.1.down", "3"}
    for layer in layers:
        steps, found = log.series("log_alignment_ratio", layer)
        assert len(steps)
        truth = [seen[layer][int(step)] for step in steps]
        assert found.tolist() == pytest.approx(truth, abs=1e-5 if size[0] == 4 else 0.02)


def test_what_is_independent_is_at_one_half_and_what_fits_at_one():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(400, 256, generator=draw), torch.randn(300, 256, generator=draw)
    assert alignment(x, x @ weight.T, weight)[1].item() == pytest.approx(0.5, abs=0.01)
    x = weight[:1] * torch.randn(400, 1, generator=draw)
    weight = weight[:1] * torch.randn(300, 1, generator=draw)
    assert alignment(x, x @ weight.T, weight)[1].item() == pytest.approx(1.0, abs=1e-3)
    assert alignment(0 * x, 0 * x @ weight.T, weight).tolist() == [0, 0]


def test_a_weight_of_which_a_rank_has_a_part_says_so():
    module, said = nn.Linear(4, 3), []
    module.weight._local_tensor = module.weight.detach()
    context = SimpleNamespace(unmeasured=lambda *reason: said.append(reason))
    site = SimpleNamespace(name="a", context=context)
    assert LinearCall.from_call(site, module, (torch.ones(2, 4),), torch.ones(2, 3)) is None
    assert said == [("alignment", "a", SHARDED)]


def test_training_is_the_same(attach):
    ends = []
    for watched in (False, True):
        model = network()
        loop = train(model)
        optimizer = next(loop)
        if watched:
            attach(model, optimizer)
        next(loop)
        ends.append(copy.deepcopy(list(model.state_dict().values())))
    attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))

"""Accumulators of sites: few tensors however many sites there are, and what moved to another device is merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.hooks.base.site_accumulators import Strays
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.merge import merge_
from stabwatch.signals.reductions import REDUCTIONS

CPU = torch.device("cpu")


def _pieces(layers, folder):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(layers)])
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=folder, every_step=True, agent=False, verbose=False)
    found = len(watch._session._taps.now.buffer._pieces)
    watch.detach()
    return found


def test_a_step_is_put_together_from_as_few_pieces_with_many_layers(tmp_path):
    assert _pieces(50, tmp_path / "many") == _pieces(4, tmp_path / "few")


@pytest.mark.parametrize("name", ["moments", "attention_exact"])
def test_what_moved_twice_becomes_part_of_the_first(name):
    reduction = REDUCTIONS[name]
    generator = torch.Generator().manual_seed(1)
    parts = torch.rand(3, len(reduction.fields), generator=generator)
    first = new_accumulator(name, CPU)
    strays = Strays()
    second = strays.on(CPU, reduction, first)
    third = strays.on(CPU, reduction, second)
    wanted = new_accumulator(name, CPU)
    for accumulator, part in zip((first, second, third), parts, strict=True):
        merge_(reduction, accumulator, part)
        merge_(reduction, wanted, part)
    torch.testing.assert_close(strays.source_of(first)(), wanted)
    assert torch.equal(second, new_accumulator(name, CPU)) and torch.equal(third, new_accumulator(name, CPU))
    torch.testing.assert_close(strays.source_of(first)(), wanted)

"""A step that measures little is put together from few fields: its record is the same as that of all fields."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.testing import assert_array_equal
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.runtime.governor import Governor, Plan
from stabwatch.runtime.record import Assembler
from stabwatch.runtime.step_buffer import identity_of_all

PLANS = (Plan(True, True, True), Plan(False, False, False), Plan(True, False, False), Plan(True, True, False))


def test_a_record_of_some_fields_is_that_of_all(attach, monkeypatch):
    assemble, compared = Assembler.assemble, []

    def both(self, row, health, host, logged, places=None):
        layout, values = assemble(self, row, health, host, logged, places)
        if places is not None:
            whole = identity_of_all(self._device.accumulators)
            whole[places] = row
            again, expected = assemble(self, whole, health, host, logged)
            assert again is layout
            assert_array_equal(values, expected)
            compared.append(int(np.isfinite(values).sum()))
        return layout, values

    monkeypatch.setattr(Assembler, "assemble", both)
    monkeypatch.setattr(Governor, "plan", lambda self, step: PLANS[step % 4])
    torch.manual_seed(0)
    config = DemoConfig(width=32, layers=2, context=16, batch=2, heads=4)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer, every_step=False)
    tokens = torch.randint(0, 96, (40, 2, 17))
    for step in range(40):
        loss = F.cross_entropy(model(tokens[step, :, :-1]).flatten(0, 1), tokens[step, :, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 7 == 5:
            watch.log(**{f"mine{step % 2}": float(step)})
    run = attach.finish()
    assert len(run.steps) == 40 and len(compared) == 20 and min(compared) > 10
    assert run.series("loss")[0].tolist() == list(range(40))
    assert run.series("logged_value", "mine0")[1].tolist() == [12.0, 26.0]

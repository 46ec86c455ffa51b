"""What a run prints: on standard error, or nowhere."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn


class Broken:
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [None, Broken()])
def test_a_program_without_standard_error_is_watched_and_its_output_is_its_own(stream, attach, monkeypatch, capsys):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(sys, "stderr", stream)
    attach(model, optimizer, verbose=True)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert len(attach.finish().steps) == 1
    assert capsys.readouterr().out == ""

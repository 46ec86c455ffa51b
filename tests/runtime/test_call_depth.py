"""Modules deep inside each other: what Python can call without a watch, it can call with one."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from stabwatch.runtime.call_depth import MOST


def nested(depth: int) -> nn.Module:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


def deepest() -> int:
    """Nested modules that can just be called."""
    depth, step = 0, 256
    while step:
        try:
            nested(depth + step)(torch.randn(2, 4))
            depth += step
        except RecursionError:
            step //= 2
    return depth


def test_a_model_as_deep_as_python_allows_is_trained(attach):
    model = nested(deepest() - 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = sys.getrecursionlimit()
    watch, other = attach(model, optimizer), attach(nn.Linear(2, 2))
    for _ in range(3):
        model(torch.randn(2, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other.detach()
    assert sys.getrecursionlimit() > before
    watch.detach()
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("limit", [4321, MOST + 1])
def test_a_limit_that_the_program_sets_is_kept(limit, attach):
    before = sys.getrecursionlimit()
    try:
        watch = attach(nn.Linear(2, 2))
        sys.setrecursionlimit(limit)
        watch.detach()
        assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(before)

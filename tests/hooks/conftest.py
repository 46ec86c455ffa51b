"""Each test of hooks begins in a process that looks as if it had compiled nothing."""

from __future__ import annotations

import pytest
import torch

from stabwatch.kernels.where import compilers_used


@pytest.fixture(autouse=True)
def _nothing_was_compiled():
    """Where `torch.compile` was used in the process, all hooks stay in the modules' tables."""
    if compilers_used():
        torch._dynamo.reset()

"""The states of the random number generators of a process, as plain data."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """States of torch (of each accelerator that is in use, too), of Python and, if it is loaded, of NumPy."""
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    if (numpy := sys.modules.get("numpy.random")) is not None:
        name, keys, *rest = numpy.get_state()
        found["numpy"] = (name, keys.tolist(), *rest)
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`; what went through JSON will do."""
    torch.set_rng_state(torch.as_tensor(state["torch"], dtype=torch.uint8))
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.as_tensor(state["cuda"], dtype=torch.uint8))
    if "numpy" in state:
        import numpy

        numpy.random.set_state(tuple(state["numpy"]))

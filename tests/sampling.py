"""Large parametrised families: a sample runs by default, the whole under `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sample(values: Iterable[Any], *kept: Any, every: int = 0) -> list[Any]:
    """All values, for `parametrize`: the kept ones run by default, the others are marked slow.

    kept: members that always run. every: the first value and each `every`-th after it run too. Raises ValueError if
    something kept is no member, or if nothing is kept: no family can leave the default run.
    """
    family = list(values)
    absent = [each for each in kept if each not in family]
    if absent:
        raise ValueError(f"kept, and no member of the family: {absent}")
    chosen = [value in kept or (every > 0 and i % every == 0) for i, value in enumerate(family)]
    if not any(chosen):
        raise ValueError("a family keeps at least one member")
    return [
        value if keep else pytest.param(value, marks=pytest.mark.slow)
        for value, keep in zip(family, chosen, strict=True)
    ]

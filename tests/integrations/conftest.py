"""Tiny models and data of the recipes, and settings for quiet watches."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.recipes import HOOKS


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, collected: None) -> Any:
    """The module hooks/tiny.py."""
    monkeypatch.syspath_prepend(str(HOOKS))
    import tiny

    return tiny


@pytest.fixture
def settings(tmp_path: Path, collected: None) -> dict[str, Any]:
    """Keywords of `attach`: everything measured, no agent."""
    return {"run_dir": tmp_path / "run", "agent": False, "verbose": False, "every_step": True}


@pytest.fixture
def collected() -> Iterator[None]:
    """No trainer of an earlier test is left to be found."""
    yield
    gc.collect()

"""For every test: a clean environment, few threads, no network, and skips that say why."""

from __future__ import annotations

import gc
import os
import shutil

# Before anything imports torch: the models are small, and on a busy machine a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Programs that tests start compile the sources once, and not each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.attaching import Attacher
from tests.processes import made_once

hypothesis.settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("default")

ALERTMANAGERS = ("prometheus-alertmanager", "alertmanager")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _lacking(marker: str) -> str:
    """Why tests with a marker cannot run here; '' when they can."""
    if marker == "prometheus":
        absent = [name for name in ("prometheus", "promtool") if not shutil.which(name)]
        absent += [] if any(map(shutil.which, ALERTMANAGERS)) else [ALERTMANAGERS[0]]
        return f"not installed: {', '.join(absent)}" if absent else ""
    if marker == "chromium":
        return "" if any(map(shutil.which, BROWSERS)) else "no Chromium or Chrome is installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where there is no GPU, the fused kernels run in Triton's interpreter, which reads this when it is first imported.

    The process that hands tests to others runs none: it does not import torch.
    """
    if not session.config.getoption("numprocesses", None) and _lacking("gpu"):
        os.environ["TRITON_INTERPRET"] = "1"


COLLECTED = pytest.StashKey[list[tuple[str, bool, bool]]]()
"""Of each test before any is deselected: its name, whether it is slow, and whether its whole function is."""


def _slow(item: pytest.Item) -> tuple[str, bool, bool]:
    whole = any(mark.name == "slow" for mark in getattr(getattr(item, "function", None), "pytestmark", ()))
    return item.nodeid, item.get_closest_marker("slow") is not None, whole


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the machine cannot run, and say why."""
    config.stash[COLLECTED] = [_slow(item) for item in items]
    reasons: dict[str, str] = {}
    for item in items:
        for marker in ("prometheus", "chromium", "gpu"):
            if item.get_closest_marker(marker):
                if marker not in reasons:
                    reasons[marker] = _lacking(marker)
                if reasons[marker]:
                    item.add_marker(pytest.mark.skip(reason=f"{marker}: {reasons[marker]}"))


@pytest.fixture(autouse=True, scope="module")
def few_objects() -> None:
    """What tests have imported is left out where Python, or `attach`, goes through all objects; Python does so less."""
    gc.freeze()
    gc.set_threshold(2_000, 10, 30)


def pytest_unconfigure() -> None:
    """Objects are freed at the end as they would be without `few_objects`."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches a test, and no test reaches the network."""
    for name in list(os.environ):
        if name.startswith("STABWATCH_"):
            monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Attaches like a user, with no agent, in a fresh folder; detached at the end whatever happens."""
    attacher = Attacher(tmp_path)
    yield attacher
    for watch in attacher.watches:
        watch.detach()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make): a folder that `make(folder)` fills once for all tests, also when they run side by side."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    return lambda name, make: made_once(shared / "once" / name, make)

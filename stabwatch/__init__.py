"""stabwatch: sees a PyTorch training run go unstable before the loss does.

    import stabwatch
    watch = stabwatch.attach(model, optimizer)

Everything here is loaded on first use, so that `import stabwatch` is cheap and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabwatch.analysis.query import RecordedRun as RecordedRun
    from stabwatch.analysis.query import open_run as open_run
    from stabwatch.analysis.query import runs as runs
    from stabwatch.config import Config as Config
    from stabwatch.errors import TrainingUnstableError as TrainingUnstableError
    from stabwatch.guards import TaylorGuard as TaylorGuard
    from stabwatch.hooks.probes.batches import fingerprint as fingerprint
    from stabwatch.plugins import signal as signal
    from stabwatch.watch import Watch as Watch
    from stabwatch.watch import attach as attach

__version__ = "0.2.0"
__all__ = [
    "Config", "RecordedRun", "TaylorGuard", "TrainingUnstableError", "Watch", "__version__", "attach", "fingerprint",
    "open_run", "runs", "signal",
]  # fmt: skip

_HOME = {
    "attach": "stabwatch.watch",
    "Watch": "stabwatch.watch",
    "Config": "stabwatch.config",
    "TaylorGuard": "stabwatch.guards",
    "TrainingUnstableError": "stabwatch.errors",
    "open_run": "stabwatch.analysis.query",
    "runs": "stabwatch.analysis.query",
    "RecordedRun": "stabwatch.analysis.query",
    "fingerprint": "stabwatch.hooks.probes.batches",
    "signal": "stabwatch.plugins",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stabwatch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

"""Lightning's `Trainer` under its older name, the package `pytorch_lightning`.

    from stabwatch.integrations.pytorch_lightning import StabwatchCallback
    trainer = Trainer(..., callbacks=[StabwatchCallback()])

or, for a trainer that is there already, `stabwatch.attach(trainer)`.
"""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, Trainer

from stabwatch.integrations.lightning_hooks import LightningHooks
from stabwatch.integrations.trainer_watch import TrainerWatch

__all__ = ["StabwatchCallback", "attach_to"]


class StabwatchCallback(LightningHooks, Callback):
    """Watches each `fit` of a Trainer: see `LightningHooks`. settings: keywords of `stabwatch.attach`."""


def attach_to(trainer: Trainer, settings: dict[str, Any]) -> TrainerWatch:
    """Add the callback."""
    callback = StabwatchCallback(**settings)
    trainer.callbacks.append(callback)
    return callback.watch

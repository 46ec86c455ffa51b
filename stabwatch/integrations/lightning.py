"""Lightning's `Trainer`.

    from stabwatch.integrations.lightning import StabwatchCallback
    trainer = Trainer(..., callbacks=[StabwatchCallback()])

or, for a trainer that is there already, `stabwatch.attach(trainer)`. Fabric leaves the loop to its user: there
`stabwatch.attach(model, optimizer)` is the line, after `fabric.setup`.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from stabwatch.integrations.lightning_hooks import LightningHooks, trained
from stabwatch.integrations.trainer_watch import TrainerWatch

__all__ = ["StabwatchCallback", "attach_to", "trained"]


class StabwatchCallback(LightningHooks, Callback):
    """Watches each `fit` of a Trainer: see `LightningHooks`. settings: keywords of `stabwatch.attach`."""


def attach_to(trainer: Trainer, settings: dict[str, Any]) -> TrainerWatch:
    """Add the callback."""
    callback = StabwatchCallback(**settings)
    trainer.callbacks.append(callback)
    return callback.watch

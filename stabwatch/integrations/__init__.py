"""Trainers of other libraries: one file each, over `stabwatch.attach`, loaded when its trainer is watched.

    watch = stabwatch.attach(trainer)

A trainer is declared once, in `TRAINERS`. Its module offers `attach_to(trainer, settings)`, which returns a
`TrainerWatch` or a Watch, and the callback of the trainer, for who builds the list of callbacks himself. A module here
imports its trainer, and of stabwatch only what users import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stabwatch.errors import ConfigError
from stabwatch.integrations.trainer_watch import TrainerWatch

__all__ = ["TRAINERS", "TrainerWatch", "attach_to_trainer"]

TRAINERS = {
    "transformers.trainer.Trainer": "transformers",
    "lightning.pytorch.trainer.trainer.Trainer": "lightning",
    "ignite.engine.engine.Engine": "ignite",
    "fastai.learner.Learner": "fastai",
    "accelerate.accelerator.Accelerator": "accelerate",
    "pytorch_lightning.trainer.trainer.Trainer": "pytorch_lightning",
}
"""Class of a trainer, by its module and name -> the module here that knows it. Subclasses are known too."""


def attach_to_trainer(trainer: object, settings: dict[str, Any]) -> Any:
    """Watch what a trainer trains. settings: keywords of `stabwatch.attach`.

    Raises ConfigError for an object that is no known trainer.
    """
    for kind in type(trainer).__mro__:
        name = TRAINERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            return import_module(f"stabwatch.integrations.{name}").attach_to(trainer, settings)
    raise ConfigError(
        f"`attach` takes a torch.nn.Module or a trainer of {', '.join(TRAINERS.values())}, and not an object of "
        f"{type(trainer).__module__}.{type(trainer).__qualname__}: give it the model and the optimizer."
    )

"""Hugging Face Accelerate: `stabwatch.attach(accelerator)`, after `accelerator.prepare`."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from stabwatch.errors import ConfigError
from stabwatch.integrations.trainer_watch import TrainerWatch


class StabwatchTracker(GeneralTracker):
    """Hands what `accelerator.log` is given to a watch, and ends it with `accelerator.end_training`."""

    name = "stabwatch"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, watch: TrainerWatch) -> None:
        super().__init__()
        self._watch = watch

    @property
    def tracker(self) -> TrainerWatch:
        """The watch, as `accelerator.get_tracker("stabwatch")` gives it."""
        return self._watch

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Hyperparameters are not recorded."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers with the step that is open."""
        self._watch.metrics(values)

    def finish(self) -> None:
        """The training has ended."""
        self._watch.end()


def attach_to(accelerator: Accelerator, settings: dict[str, Any]) -> TrainerWatch:
    """Watch the model and the optimizers that were prepared. Raises ConfigError if that is not one model."""
    if len(accelerator._models) != 1:
        raise ConfigError(
            f"{len(accelerator._models)} models have been prepared by this Accelerator: call `attach` after "
            "`accelerator.prepare`, and give it the model and the optimizer where there are several."
        )
    watch = TrainerWatch(settings)
    watch.begin(accelerator._models[0], list(accelerator._optimizers) or None)
    accelerator.trackers.append(StabwatchTracker(watch))
    return watch

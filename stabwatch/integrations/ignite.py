"""PyTorch-Ignite's `Engine`.

    from stabwatch.integrations.ignite import StabwatchHandler
    StabwatchHandler(model, optimizer).attach(trainer)

or, for an engine made by `create_supervised_trainer`, `stabwatch.attach(trainer)`.
"""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from stabwatch.errors import ConfigError
from stabwatch.integrations.trainer_watch import TrainerWatch


class StabwatchHandler:
    """Watches each run of a training engine.

    Attaches when the run begins. Steps have the engine's numbers: the record with number n ends with iteration n, and
    with gradient accumulation not every iteration ends a step. `engine.state.metrics` is recorded when an epoch
    completes.

    settings: keywords of `stabwatch.attach`. `watch` is the TrainerWatch.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None, **settings: Any) -> None:
        self.watch = TrainerWatch(settings)
        self._model = model
        self._optimizer = optimizer

    def attach(self, engine: Engine) -> StabwatchHandler:
        """Add the handlers to the engine that trains."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: self.watch.step(engine.state.iteration))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self.watch.metrics(engine.state.metrics))
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, lambda engine: self.watch.end())
        engine.run = self.watch.guard(engine.run)
        return self

    def _started(self, engine: Engine) -> None:
        self.watch.begin(self._model, self._optimizer, first_step=engine.state.iteration + 1)


def attach_to(engine: Engine, settings: dict[str, Any]) -> TrainerWatch:
    """Add the handlers. Raises ConfigError if the engine's function does not show what it trains."""
    parts = [cell.cell_contents for cell in getattr(engine._process_function, "__closure__", None) or ()]
    models = [part for part in parts if isinstance(part, nn.Module) and any(True for _ in part.parameters())]
    optimizers = [part for part in parts if isinstance(part, Optimizer)]
    if len(models) != 1:
        raise ConfigError(
            "The engine's function does not show which model it trains: use "
            "`stabwatch.integrations.ignite.StabwatchHandler(model, optimizer).attach(engine)`."
        )
    return StabwatchHandler(models[0], optimizers or None, **settings).attach(engine).watch

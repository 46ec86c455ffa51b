"""What the callbacks for Lightning's two packages, `lightning` and `pytorch_lightning`, have in common."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import nn

from stabwatch.integrations.trainer_watch import TrainerWatch


class LightningHooks:
    """Watches each `fit` of a Trainer.

    Attaches when the training begins: the strategy has wrapped and moved the model. Steps have the trainer's numbers:
    the record with number n is the step during which `trainer.global_step` is n. What the module logs is recorded with
    the step, metrics of the validation too. `loss` becomes `trainer_loss`.

    settings: keywords of `stabwatch.attach`. `watch` is the TrainerWatch.
    """

    def __init__(self, **settings: Any) -> None:
        self.watch = TrainerWatch(settings)
        self._logged: dict[str, Any] = {}
        self._of_training: set[str] = set()
        """Metrics of the last training batch: a validation gives them again as other objects."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch.begin(trained(pl_module), list(trainer.optimizers), first_step=trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.watch.step(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._of_training = set(self._log(trainer))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, leave_out=self._of_training)

    def _log(self, trainer: Any, leave_out: Set[str] = frozenset()) -> dict[str, Any]:
        """Record what was logged since the last time; the trainer keeps the old values beside the new ones."""
        found = dict(trainer.callback_metrics)
        new = {n: v for n, v in found.items() if v is not self._logged.get(n) and n not in leave_out}
        self.watch.metrics(new)
        self._logged = found
        return new

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.watch.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.watch.end(exception)


def trained(module: nn.Module) -> nn.Module:
    """What is called in a training step: the module's only child with parameters to train, else the module.

    Lightning calls `training_step`, and that may call the child or the module.
    """
    children = [child for child in module.children() if any(p.requires_grad for p in child.parameters())]
    single = len(children) == 1 and type(children[0]) not in (nn.ModuleList, nn.ModuleDict)
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    return children[0] if single and not own else module

"""Hugging Face `Trainer`, and what is built on it: TRL, sentence-transformers.

    from stabwatch.integrations.transformers import StabwatchCallback
    trainer = Trainer(..., callbacks=[StabwatchCallback()])

or, for a trainer that is there already, `stabwatch.attach(trainer)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from stabwatch.integrations.trainer_watch import TrainerWatch


class StabwatchCallback(TrainerCallback, ExportableState):
    """Watches each training of a Trainer.

    Attaches when the training begins: the model has been wrapped by PEFT, DDP or FSDP, and has not been called. Steps
    have the trainer's numbers: the record with number n is the step that the trainer logs as n. What it logs, metrics
    of evaluations too, is recorded with the step. `loss` becomes `trainer_loss`. The run folder is kept in checkpoints,
    and a training that goes on from one goes on in the same folder, unless `run_dir` says otherwise.

    settings: keywords of `stabwatch.attach`. `watch` is the TrainerWatch.
    """

    def __init__(self, **settings: Any) -> None:
        self.watch = TrainerWatch(settings)
        self._folder: str | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        settings: dict[str, Any] = {"first_step": state.global_step + 1}
        folder = self._folder_of_checkpoint(state) if state.global_step else None
        if folder is not None and self.watch.settings.get("run_dir") is None:
            settings["run_dir"] = folder
        self.watch.begin(model, optimizer, **settings)
        self._folder = str(self.watch.run_dir)

    def _folder_of_checkpoint(self, state: Any) -> str | None:
        """The run folder of the training that made the checkpoint, if it is still there."""
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        saved = saved[-1] if isinstance(saved, list) and saved else saved
        folder = saved["attributes"].get("_folder") if isinstance(saved, dict) else None
        return folder if folder and Path(folder).is_dir() else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.step(state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.watch.metrics(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.end()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"_folder": self._folder}}


def attach_to(trainer: Trainer, settings: dict[str, Any]) -> TrainerWatch:
    """Add the callback, and end the run when an exception leaves `trainer.train`."""
    callback = StabwatchCallback(**settings)
    trainer.add_callback(callback)
    trainer.train = callback.watch.guard(trainer.train)
    return callback.watch

"""fastai's `Learner`.

    from stabwatch.integrations.fastai import StabwatchCallback
    learner = Learner(..., cbs=StabwatchCallback())

or, for a learner that is there already, `stabwatch.attach(learner)`.
"""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner

from stabwatch.integrations.trainer_watch import TrainerWatch


class StabwatchCallback(Callback):
    """Watches each `fit` of a Learner.

    An exception is seen at the next `fit`, or at the end of the process: fastai does not say it to callbacks.

    Attaches when `fit` begins. Steps have the learner's numbers: the record with number n ends with batch n of the
    training (`learn.train_iter`, from 0). The recorder's values (losses and metrics) are recorded when an epoch ends.

    settings: keywords of `stabwatch.attach`. `watch` is the TrainerWatch.
    """

    order = 70  # after the callbacks that change the model and the optimizer, and after the recorder
    learn: Any

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.watch = TrainerWatch(settings)

    def before_fit(self) -> None:
        if not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds"):
            self.watch.begin(self.learn.model, self._optimizer())

    def _optimizer(self) -> Any:
        """The torch optimizer inside fastai's wrapper; None for fastai's own."""
        return getattr(self.learn.opt, "opt", None)

    def before_batch(self) -> None:
        if self.learn.training:
            self.watch.step(self.learn.train_iter)

    def after_epoch(self) -> None:
        recorder = getattr(self.learn, "recorder", None)
        if recorder is not None:
            self.watch.metrics(dict(zip(recorder.metric_names, recorder.log, strict=False)))

    def after_fit(self) -> None:
        self.watch.end()


def attach_to(learner: Learner, settings: dict[str, Any]) -> TrainerWatch:
    """Add the callback."""
    callback = StabwatchCallback(**settings)
    learner.add_cb(callback)
    return callback.watch

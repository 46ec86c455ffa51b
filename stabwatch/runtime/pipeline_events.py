"""What pipelines report to a session: which stages are of its model, and the losses of micro-batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stabwatch.distributed.ranks import Ranks, is_part
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.naming import unwrap
from stabwatch.runtime.loss_events import LossEvents

OTHER_STAGE = "this rank runs another stage of the pipeline: the loss is on the rank of the last one"
STAGES_APART = (
    "this rank runs stages of a pipeline that are not of this model, and they are not in this run: to have all stages "
    "in one run, attach `nn.ModuleList(stages)` on each rank"
)
WITHIN_STAGE = (
    "the model is spread over the stages of a pipeline: growth over depth (residual_growth, backward_growth) is "
    "measured within each stage, and gradients of activations are those of a micro-batch"
)


class PipelineEvents:
    """Follows the stages of a pipeline."""

    context: TapContext
    _ranks: Ranks
    _model: nn.Module
    _loss: LossEvents

    def __init__(self) -> None:
        self._stages: dict[int, bool] = {}
        """By id of a pipeline's stage: is it of this model?"""

    def stage_called(self, stage: Any, around: list[nn.Module]) -> None:
        """A stage of a pipeline computes a micro-batch: if it is of this model, ranks merge as stages."""
        if id(stage) not in self._stages:
            self._stages[id(stage)] = is_part(stage.submod, self._ranks.model)
            if self._stages[id(stage)]:
                self._loss.staged = True
                self._new_stage(stage)
            if len(set(self._stages.values())) > 1:
                self.context.unmeasured("note", "stages", STAGES_APART)
        if self._stages[id(stage)] and unwrap(stage.submod) is not self._model:
            around.append(self._model)

    def _new_stage(self, stage: Any) -> None:
        self.context.unmeasured("note", "pipeline", WITHIN_STAGE)
        site = vars(unwrap(stage.submod)).get("_stabwatch")
        self._ranks.staged(stage, "" if site is None else site.name)
        for what in ("loss", "logits"):
            if self._ranks.has_last_stage:
                self.context.reasons.withdraw(what, "")
            else:
                self.context.unmeasured(what, "", OTHER_STAGE)

    def stage_loss(self, stage: Any, loss: Tensor) -> None:
        """Count the loss of a micro-batch of the last stage."""
        if self._stages.get(id(stage)):
            self._loss.of_last_stage(loss)

    def gradients_divided(self, stage: Any, factor: float) -> None:
        """The mean over micro-batches is of the loss as well."""
        if self._stages.get(id(stage)) and stage.is_last:
            self._loss.divided(factor)

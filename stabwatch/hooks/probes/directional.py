"""The derivative of the model's logits along the optimizer's step: the model is called again on a slice of the batch.

This is done only for what a user asks for (`taylor=True`, `guard="taylor"`), because other people's hooks may see the
second call. Nothing of the model is changed: parameters and buffers are replaced for the call, random states and
attributes are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from stabwatch.hooks.base.entry import Callback, runs_for_real
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.hooks.base.side_effects import SCRIPTED, is_scripted, restore_side_effects
from stabwatch.hooks.base.tensors import first_tensor

_DIFFERENCE = 2.0**-4
"""Share of the step by which a symmetric difference goes to either side."""
MOST = 8
"""Most samples of a slice, and the part of the batch that it may be: an eighth. It costs three eighths of a forward."""


LONGEST = 200
"""Characters of an error of the model that are told."""


class NotCallable(ValueError):
    """The model cannot be called on a part of its batch."""

    def __init__(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        super().__init__(f"it cannot be called on a part of its batch ({said[:LONGEST]})")


class OwnCall:
    """True while stabwatch itself calls a model: hooks measure nothing then."""

    now = False


class DirectionalDerivative:
    """Keeps a slice of the last training batch of a model, and evaluates the model on it along a direction.

    samples: of the batch; by default an eighth of it, at most eight, and at least one, or two for batch normalisation.
    isolation: counts what fails while a batch is kept.
    """

    def __init__(self, model: nn.Module, samples: int | None = None, isolation: Isolation | None = None) -> None:
        self._model = model
        self._samples = samples
        self._fewest = 1 + any(isinstance(m, _BatchNorm) for m in model.modules())
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._forward_mode = True
        self.refusal = SCRIPTED if is_scripted(model) else None
        """Why the model is not called at all."""
        self.sizes = 0, 0
        """Samples of the batch, and of the slice."""
        keep = Callback("directional", isolation or Isolation(lambda *_: None), self._keep)
        self._handle: RemovableHandle | None = None
        if self.refusal is None:
            self._handle = model.register_forward_pre_hook(keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module.training and torch.is_grad_enabled() and not OwnCall.now and runs_for_real():
            inputs = (*args, *kwargs.values())
            size = _batch_size(inputs)
            count = min(size, self._samples or max(self._fewest, min(MOST, size // MOST)))
            if any(isinstance(x, Tensor) and x.is_nested for x in inputs):
                count = size  # these have no slices
            part = _first(size, count)
            self._call = part(args), part(kwargs)
            self.sizes = size, count

    @property
    def ready(self) -> bool:
        """A batch has been seen."""
        return self._call is not None

    @torch.no_grad()
    def rates(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivative of the logits along the step from `before` to `after`, over the whole step, and the logits.

        Both (..., K). By forward-mode differentiation, or by a symmetric difference where an operation of the model
        has none.
        """
        step = {name: after[name].detach() - p for name, p in before.items()}
        OwnCall.now = True
        try:
            if self._forward_mode:
                try:
                    logits, rates = jvp(self._logits, (dict(before),), (step,))[:2]
                    return rates.detach(), logits.detach()
                except (RuntimeError, NotImplementedError, NotCallable):
                    self._forward_mode = False
            ends = [self._logits({n: p + s * step[n] for n, p in before.items()}) for s in (_DIFFERENCE, -_DIFFERENCE)]
            return (ends[0] - ends[1]) / (2 * _DIFFERENCE), (ends[0] + ends[1]) / 2
        finally:
            OwnCall.now = False

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords of the slice."""
        assert self._call is not None
        return self._call

    def output(self, parameters: Mapping[str, Tensor], call: tuple[Any, Any] | None = None) -> Any:
        """What the model returns for the slice, with these parameters in the place of its own.

        call: other arguments and keywords in the place of the slice's. Raises NotCallable.
        """
        args, kwargs = call or self.call
        buffers = {name: b.detach().clone() for name, b in self._model.named_buffers()}
        with restore_side_effects(self._model), sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
            try:
                return functional_call(self._model, {**buffers, **parameters}, args, kwargs, tie_weights=True)
            except Exception as error:  # of the user's forward
                raise NotCallable(error) from error

    def _logits(self, parameters: dict[str, Tensor]) -> Tensor:
        out = self.output(parameters)
        found = out.get("logits") if isinstance(out, dict) else getattr(out, "logits", None)
        logits = found if isinstance(found, Tensor) else first_tensor(out)
        if logits is not None and logits.dim() > 3:
            logits = logits.movedim(1, -1)  # of an image: `cross_entropy` takes classes there
        if logits is None or logits.dim() < 2 or logits.shape[-1] < 2:
            raise ValueError("the model gives no logits: no floating-point tensor (..., classes) in its output")
        return logits

    def remove(self) -> None:
        """Remove the hook from the model, and release the batch."""
        if self._handle is not None:
            self._handle.remove()
        self._call = None


def _batch_size(inputs: Sequence[Any]) -> int:
    sizes = [x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim()]
    return int(sizes[0]) if sizes else 0


def detached(x: Any) -> Any:
    """Copies of all tensors of a call, through tuples, lists and dicts."""
    return _mapped(x, lambda t: t.detach().clone())


def _first(size: int, most: int) -> Callable[[Any], Any]:
    """Cuts every tensor of the batch's size in its first dimension to `most`."""
    if most == size:
        return detached
    return lambda x: _mapped(x, lambda t: t.detach()[:most].clone() if t.dim() and len(t) == size else t.detach())


def _mapped(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, dict):
        return {key: _mapped(value, change) for key, value in x.items()}
    if type(x) in (tuple, list):
        return type(x)(_mapped(value, change) for value in x)
    return x

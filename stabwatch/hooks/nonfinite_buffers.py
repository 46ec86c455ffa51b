"""Running statistics of normalisations that are not finite: training goes on, and evaluation mode gives NaN."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stabwatch.hooks.base.trace import PLAIN
from stabwatch.hooks.nonfinite import Origin


class BufferCheck:
    """Looks at the running statistics of one normalisation after each step, in turn; on the host alone."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._norms: list[tuple[str, _NormBase]] = []
        self._next = 0
        self._told = False

    def follow(self) -> None:
        """The model consists of these normalisations now."""
        self._norms = [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, _NormBase) and any(_on_host(x) for x in _statistics(module))
        ]

    def stepped(self, step: int) -> Origin | None:
        """A step was taken: the first statistics that are found not to be finite; once in a run."""
        if self._told or not self._norms:
            return None
        self._next = (self._next + 1) % len(self._norms)
        if not _bad(self._norms[self._next][1]):
            return None
        self._told = True
        return Origin("buffer", step, step, tuple(name for name, module in self._norms if _bad(module)))


def _statistics(module: _NormBase) -> list[Tensor]:
    return [x for x in (module.running_mean, module.running_var) if isinstance(x, Tensor)]


def _on_host(x: Tensor) -> bool:
    return type(x) in PLAIN and x.device.type == "cpu"


def _bad(module: _NormBase) -> bool:
    return any(_on_host(x) and not bool(x.isfinite().all()) for x in _statistics(module))

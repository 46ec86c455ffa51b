"""What the hooks may measure in the current step."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Tier

PHASES = 8
"""Fewest phases of the round robin: each deep step measures one in so many of the sites that are measured in turn."""


class MeasurementFlags:
    """What is to be measured now.

    Plain attributes, because torch.compile guards on them: each setting has a graph of its own.
    """

    def __init__(self) -> None:
        self.attached = True
        """The trained loss, the gradient norm, the learning rate and the time of every step are noted."""
        self.open = False
        """Anything at all may be measured in this step."""
        self.sampled = False
        self.looks = False
        """What losses compare is looked at, and replicas: cheap numbers, more often than the tier `sampled`."""
        self.deep = False
        self.phases = PHASES
        """Number of deep steps in which every site that is measured in turn is measured once."""
        self.phase = 0
        """The current phase of the round robin: which sites this deep step measures."""
        self.next_phase: int | None = None
        """The phase of the next step, if that is going to be a deep one."""
        self.traced = False
        """A compiler has traced the hooks: parts of the model run inside a compiled graph."""
        self.loss_in_graph = False
        """A compiled graph computes the loss, and measures it whenever it runs: then every record has it."""
        self.outputs = False
        """A probe of module outputs is measured at every step."""
        self.in_forward = False
        """The model's forward is under way (or has just run) in training mode with gradients enabled."""

    @property
    def recording(self) -> bool:
        """Is what the model does now measured at all? Not stored: a compiled model would be guarded by `open`."""
        return self.in_forward and self.open

    def is_due(self, index: int | None) -> bool:
        """Is the site with this index due in the current phase?"""
        return self.deep and index is not None and index % self.phases == self.phase

    def allows(self, tier: Tier) -> bool:
        """Is this tier measured now?"""
        return {"always": self.open, "sampled": self.sampled, "deep": self.deep}[tier]

    @property
    def tier(self) -> Tier:
        """The most expensive tier that is measured now."""
        return "deep" if self.deep else "sampled" if self.sampled else "always"

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

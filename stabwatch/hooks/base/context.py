"""What the hooks may measure in the current step."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Tier


class MeasurementFlags:
    """What is to be measured now. Plain attributes: torch.compile guards on them, so each setting has its own graph."""

    def __init__(self) -> None:
        self.open = False
        """Anything at all may be measured in this step."""
        self.sampled = False
        self.deep = False
        self.phases = PHASES
        """Over how many deep steps the sites that take turns are dealt out."""
        self.phase = 0
        """Which of the sites that share the deep steps is measured in this one."""
        self.next_phase: int | None = None
        """The turn of the next step, if that is going to be a deep one."""
        self.traced = False
        """A compiler has traced the taps: parts of the model run inside a compiled graph."""
        self.plugins = False
        """A plugin wants to see module outputs at every step."""
        self.recording = False
        """The model's forward is under way (or has just run) with gradients enabled."""

    def is_due(self, index: int | None) -> bool:
        """Is the site with this index due in the current phase?"""
        return self.deep and index is not None and index % self.phases == self.phase

    def allows(self, tier: Tier) -> bool:
        """Is this tier measured now?"""
        return {"always": self.open, "sampled": self.sampled, "deep": self.deep}[tier]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


PHASES = 8
"""Fewest deep steps of a round: each measures one in so many of the sites that take turns."""

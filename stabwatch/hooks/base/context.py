"""What the hooks may measure in the current step."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Tier


class Gate:
    """What is to be measured now. Plain attributes: torch.compile guards on them, so each setting has its own graph."""

    def __init__(self) -> None:
        self.open = False
        """Anything at all may be measured in this step."""
        self.sampled = False
        self.deep = False
        self.turns = TURNS
        """Over how many deep steps the sites that take turns are dealt out."""
        self.turn = 0
        """Which of the sites that share the deep steps is measured in this one."""
        self.coming: int | None = None
        """The turn of the next step, if that is going to be a deep one."""
        self.traced = False
        """A compiler has traced the taps: parts of the model run inside a compiled graph."""
        self.plugins = False
        """A plugin wants to see module outputs at every step."""
        self.recording = False
        """The model's forward is under way (or has just run) with gradients enabled."""

    def takes(self, place: int | None) -> bool:
        """Has the site with this place in the order of turns its turn now?"""
        return self.deep and place is not None and place % self.turns == self.turn

    def allows(self, tier: Tier) -> bool:
        """Is this tier measured now?"""
        return {"always": self.open, "sampled": self.sampled, "deep": self.deep}[tier]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


TURNS = 8
"""Fewest deep steps of a round: each measures one in so many of the sites that take turns."""

"""One rank against the others: who is slow, whose batch is odd, whose replica is another. In jobs of several ranks.

All of it is read off the rows that the one collective of a step gathers anyway. Where parameters are replicated, every
rank does the same arithmetic on the same numbers: replicas that differ at all were changed by something else.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SDC = "Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245"


def _rank(name: str, tap: str, help: str, field: str, unit: str = "1", **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap=tap, reduction="rank_spread", fields=(field,), formula="same",
        scope="run", tier="always", **more,
    )  # fmt: skip


SIGNALS = (
    _rank(
        "rank_busy_max_seconds", "rank_busy",
        "Longest time that a rank took from the end of the last step to the end of its forward, on its host's clock.",
        "max", "seconds",
    ),
    _rank(
        "rank_busy_min_seconds", "rank_busy",
        "Shortest time that a rank took from the end of the last step to the end of its forward, on its host's clock.",
        "min", "seconds", worst="min",
    ),
    _rank("rank_slowest", "rank_busy", "The rank with the longest time to the end of its forward.", "rank"),
    _rank("rank_loss_max", "rank_loss", "Largest loss of a rank's own batch.", "max"),
    _rank("rank_loss_min", "rank_loss", "Smallest loss of a rank's own batch.", "min", worst="min"),
    _rank("rank_loss_highest", "rank_loss", "The rank with the largest loss.", "rank"),
    _rank(
        "rank_nonfinite_max", "rank_nonfinite",
        "Most non-finite values that one rank counted in its own batch, over all layers.", "max",
    ),
    _rank("rank_nonfinite_worst", "rank_nonfinite", "The rank that counted the most non-finite values.", "rank"),
    Signal(
        name="replica_difference_ratio",
        help="Sum of squares of a layer's weights on the rank that is farthest from the others, less their median, "
        "over it.",
        unit="ratio",
        tap="replica",
        reduction="replica",
        fields=("max",),
        formula="same",
        source=_SDC,
    ),
    Signal(
        name="replica_difference_rank",
        help="The rank whose weights are farthest from the others (of two, the one that jumped); -1: none, or unclear.",
        unit="1",
        tap="replica",
        reduction="replica",
        fields=("rank",),
        formula="same",
        source=_SDC,
    ),
)  # fmt: skip

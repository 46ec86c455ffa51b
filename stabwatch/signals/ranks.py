"""Comparison of ranks: slow ranks, ranks with a high loss, and replicas that differ.

Each rank reports its own numbers, and these are merged over ranks like all others. Replicated parameters go through
the same arithmetic on every rank, so replicas that differ were changed by something else.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SDC = "Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245"


_OTHERS, _OTHERS_OF_LOWEST = ("sum", "max", "count"), ("sum", "min", "count")


def _rank(name: str, tap: str, help: str, *fields: str, unit: str = "1", worst: Any = "max") -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap=tap, reduction="rank_spread", fields=fields,
        formula="mean_of_others" if len(fields) > 1 else "same", scope="run", tier="always", worst=worst,
    )  # fmt: skip


SIGNALS = (
    _rank(
        "rank_busy_max_seconds", "rank_busy",
        "Longest time in a step for which a rank worked, without what it waited for others, on the host's clock.",
        "max", unit="seconds",
    ),
    _rank(
        "rank_busy_min_seconds", "rank_busy",
        "Shortest time in a step for which a rank worked, without what it waited for others, on the host's clock.",
        "min", unit="seconds", worst="min",
    ),
    _rank(
        "rank_busy_others_seconds", "rank_busy",
        "Mean time in a step for which the ranks other than the slowest worked, on the host's clock.",
        *_OTHERS, unit="seconds",
    ),
    _rank("rank_slowest", "rank_busy", "Rank that worked longest.", "rank"),
    _rank("ranks_compared", "rank_busy", "Number of ranks whose working times were compared.", "count", worst="min"),
    _rank("rank_loss_max", "rank_loss", "Largest loss of a rank's own batch.", "max"),
    _rank("rank_loss_min", "rank_loss", "Smallest loss of a rank's own batch.", "min", worst="min"),
    _rank("rank_loss_highest", "rank_loss", "Rank with the largest loss.", "rank"),
    _rank("rank_loss_lowest", "rank_loss_low", "Rank with the smallest loss.", "rank"),
    _rank(
        "rank_loss_others", "rank_loss", "Mean loss of the ranks other than that with the smallest.", *_OTHERS_OF_LOWEST
    ),
    Signal(
        name="rank_loss_alike",
        help="Whether all ranks had the same loss to the last bit (1 or 0), where each should have data of its own.",
        unit="1",
        tap="rank_loss",
        reduction="host",
        fields=("last",),
        formula="same",
        scope="run",
        tier="always",
    ),
    _rank(
        "rank_nonfinite_max", "rank_nonfinite",
        "Largest number of non-finite values that one rank counted in its own batch, over all layers.", "max",
    ),
    _rank(
        "rank_nonfinite_worst", "rank_nonfinite",
        "Rank that counted the most non-finite values; -1: none, or every rank counted some.",
        "rank",
    ),
    Signal(
        name="replica_difference_ratio",
        help="Relative difference between replicas' sums of squares, by layer or buffer; 0: all bits are equal, "
        "6e-08: bits alone differ.",
        unit="ratio",
        tap="replica",
        reduction="replica",
        fields=("max",),
        formula="same",
        source=_SDC,
    ),
    Signal(
        name="replica_difference_rank",
        help="Rank whose weights differ from the others (of two, the one that changed by itself); -1: none, or not "
        "known; -2: each steps on its own.",
        unit="1",
        tap="replica",
        reduction="replica",
        fields=("rank",),
        formula="same",
        source=_SDC,
    ),
)  # fmt: skip

"""The tree over which ranks merge, and sets of ranks as ranges.

Rank 0 is the root. The node of a range [first, end) is its first rank; what remains is split into at most `FAN_OUT`
ranges of nearly equal length, each a subtree. So a subtree is a range of ranks: neighbours, which schedulers put on
one host, merge first, and "which ranks" is a short text.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

FAN_OUT = 3
"""Most children of a node: 10,000 ranks are nine levels below the root, and four ranks are one. With more, a node would
receive more than a megabyte with the record of a model of 80 blocks whose parameters are sharded."""

RankSet = tuple[tuple[int, int], ...]
"""Ascending, disjoint, non-adjacent half-open ranges."""


def ancestors(rank: int, world: int, fan_out: int = FAN_OUT) -> list[int]:
    """From the parent of a rank to the root; empty for rank 0."""
    path: list[int] = []
    first, end = 0, world
    while first != rank:
        path.append(first)
        first, end = next((a, b) for a, b in _parts(first + 1, end, fan_out) if a <= rank < b)
    return path[::-1]


def children(rank: int, world: int, fan_out: int = FAN_OUT) -> list[tuple[int, int]]:
    """The subtrees below a rank, as ranges; the first rank of each is the child."""
    first, end = 0, world
    while first != rank:
        first, end = next((a, b) for a, b in _parts(first + 1, end, fan_out) if a <= rank < b)
    return _parts(first + 1, end, fan_out)


def height(rank: int, world: int, fan_out: int = FAN_OUT) -> int:
    """Levels below a rank: 0 for a leaf."""
    below = children(rank, world, fan_out)
    return 1 + height(below[0][0], world, fan_out) if below else 0


def _parts(first: int, end: int, fan_out: int) -> list[tuple[int, int]]:
    total = end - first
    parts = min(fan_out, total)
    edges = [first + total * i // parts for i in range(parts + 1)] if parts else []
    return sorted(pairwise(edges), key=lambda part: part[0] - part[1])


def union(sets: Iterable[RankSet]) -> RankSet:
    """All ranks of several sets."""
    out: list[tuple[int, int]] = []
    for first, end in sorted(part for each in sets for part in each):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((first, end))
    return tuple(out)


def size(ranks: RankSet) -> int:
    """How many ranks there are in a set."""
    return sum(end - first for first, end in ranks)


def missing(ranks: RankSet, world: int, most: int) -> list[int]:
    """The first ranks below `world` that are not in a set, `most` of them at the most."""
    out: list[int] = []
    at = 0
    for first, end in (*ranks, (world, world)):
        out += range(at, min(first, at + most - len(out)))
        at = end
    return out

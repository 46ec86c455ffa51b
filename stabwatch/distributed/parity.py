"""Where the copies of a rank's state go: a partner's keeper, or the parity of a group of four.

In a group of n ranks the state of each is cut into n - 1 stripes, one for each of the others. A rank keeps the
exclusive or of the stripes that the others have sent it: as many bytes as one stripe. If one member is lost, each of
its stripes is the exclusive or of a parity and of the stripes that the other members have sent there. A shorter state
counts as if zeros followed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROUP = 4
"""Most ranks of a group; all have as many, or one less."""


def in_node_order(hosts: Sequence[str]) -> list[list[int]]:
    """The ranks of each node. hosts: the node of each rank."""
    nodes: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    return list(nodes.values())


def partner(rank: int, hosts: Sequence[str]) -> int | None:
    """Who keeps the copy of a rank: the rank at its place on a node half the nodes on, or else the next rank."""
    if len(hosts) < 2:
        return None
    nodes = in_node_order(hosts)
    if len(nodes) == 1:
        return (rank + 1) % len(hosts)
    node = next(i for i, ranks in enumerate(nodes) if rank in ranks)
    other = nodes[(node + len(nodes) // 2) % len(nodes)]
    return other[nodes[node].index(rank) % len(other)]


def group(rank: int, hosts: Sequence[str]) -> tuple[int, ...]:
    """The ranks that share a parity with this one, itself included: as far apart in node order as can be."""
    ordered = [rank for ranks in in_node_order(hosts) for rank in ranks]
    groups = -(-len(ordered) // GROUP)
    return tuple(sorted(ordered[ordered.index(rank) % groups :: groups]))


def stripe(size: int, members: Sequence[int], sender: int, keeper: int) -> tuple[int, int]:
    """Which bytes of a state go to another member of the group."""
    parts = len(members) - 1
    number = (members.index(keeper) - members.index(sender) - 1) % len(members)
    each = -(-size // parts)
    return min(size, number * each), min(size, (number + 1) * each)


def mix(into: NDArray[np.uint8], at: int, data: memoryview) -> None:
    """Exclusive or of some bytes into others, in place."""
    place = into[at : at + len(data)]
    np.bitwise_xor(place, np.frombuffer(data, np.uint8), out=place)

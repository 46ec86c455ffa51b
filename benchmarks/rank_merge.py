"""What merging a record over thousands of ranks costs, without processes: python -m benchmarks.rank_merge [RANKS ...].

One record of a model of 80 blocks whose ranks are replicas, and of one whose parameters are sharded, with sketches of
the gradients of its norms, of which each rank has a summand (sequence parallelism): as many numbers as a rank may send.
Every node of the tree unpacks what its children sent, merges it with its own and
packs the result, exactly as `stabwatch.distributed.exchange` does; the nodes of a level work side by side, so a record
costs the slowest path from a leaf to rank 0. Bytes are those that one rank receives for a record.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.health import REPLICATED, RankHealth
from stabwatch.distributed.layout import Kind, MergeLayout, Partial, room
from stabwatch.distributed.summands import Piece, Summands, buckets
from stabwatch.distributed.tree import children, height
from stabwatch.runlog import Accumulator, RecordLayout

BLOCKS = 80
MODULES = (
    "", "input_layernorm", "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


HIDDEN = 8192
"""Numbers of a norm."""


def layout(kind: Kind = "replicated", blocks: int = BLOCKS) -> MergeLayout:
    """What a watch of a Llama-like model measures: the sampled tier, and formats and attention of the deep one."""
    names = [f"layers.{i}{'.' * bool(m)}{m}" for i in range(blocks) for m in MODULES]
    accumulators = [Accumulator("loss_source", "function", "mean"), Accumulator("rank_source", "busy", "host")]
    for name in names:
        accumulators += [Accumulator(tap, name, "moments") for tap in ("activation", "gradient", "weight")]
        accumulators.append(Accumulator("update", name, "update"))
        if name.endswith(("proj", "layernorm")):  # they have parameters of their own
            accumulators.append(Accumulator("checksum", name, "checksum"))
        if name.endswith("proj"):
            accumulators += [Accumulator(tap, name, "precision") for tap in ("gradient", "weight")]
        if name.endswith("self_attn"):
            accumulators += [Accumulator("attention", name, r) for r in ("attention_bracket", "attention_exact")]
    layout = RecordLayout.build(accumulators)
    kinds = {accumulator: kind for accumulator in accumulators if accumulator.tap in REPLICATED}
    return MergeLayout(RecordLayout.build((*accumulators, *RankHealth(layout).sources)), kinds, frozenset())


def norms(merge: MergeLayout, world: int) -> Summands:
    """What a rank sends of the gradients of the norms."""
    layers = [Accumulator("gradient", f"layers.{i}.input_layernorm", "moments") for i in range(BLOCKS)]
    layers += [Accumulator("gradient", f"layers.{i}.post_attention_layernorm", "moments") for i in range(BLOCKS)]
    sizes = buckets([HIDDEN] * len(layers), room(merge.layout, 1))
    numbers = np.random.default_rng(0).standard_normal(sum(sizes), np.float32)
    return Summands([Piece(a, None, (world, 0), n, HIDDEN) for a, n in zip(layers, sizes, strict=True)], Sent(numbers))


class Sent:
    """Numbers that have arrived."""

    def __init__(self, numbers: NDArray[np.float32]) -> None:
        self._numbers = numbers

    def arrived(self) -> bool:
        """They have."""
        return True

    def wait(self) -> NDArray[np.float32]:
        """The numbers."""
        return self._numbers


class Simulation:
    """partial(rank): what a rank measured. Times the nodes on the longest path and counts bytes."""

    def __init__(self, merge: MergeLayout, world: int, summands: Summands | None = None) -> None:
        self._summands = summands
        self._merge = merge
        self._world = world
        numbers = np.abs(np.random.default_rng(0).standard_normal(merge.layout.width, np.float32)) + 1
        self._row = numbers.astype(np.float64)
        self._row[[merge.layout.start(a) for a in merge.layout.accumulators if a.tap == "checksum"]] = 0

    def own(self, rank: int) -> Partial:
        """Equal numbers on all ranks: the cost does not depend on them."""
        return self._merge.partial(rank, self._row, summands=self._summands)

    def node(self, rank: int, blocks: list[bytes]) -> tuple[bytes, float]:
        """What a node sends on, and the seconds it takes."""
        began = time.perf_counter()
        merged = self.own(rank)
        for (first, end), block in zip(children(rank, self._world), blocks, strict=True):
            merged = self._merge.merge(merged, self._merge.unpack(((first, end),), block))
        return self._merge.pack(merged), time.perf_counter() - began

    def path(self) -> tuple[float, int, int]:
        """Seconds of the longest path, its levels, and the most bytes that a rank receives."""
        seconds, received, levels = 0.0, 0, height(0, self._world)
        nodes = [0]
        for _ in range(levels):
            nodes.append(children(nodes[-1], self._world)[0][0])
        block, spent = self.node(nodes[-1], [])
        for rank in nodes[-2::-1]:
            seconds += spent
            blocks = [block] * len(children(rank, self._world))
            received = max(received, sum(map(len, blocks)))
            block, spent = self.node(rank, blocks)
        return seconds + spent, levels, received


def main(worlds: list[int]) -> None:
    """Print a line for each number of ranks."""
    kinds: tuple[Kind, ...] = ("replicated", "part")
    for kind in kinds:
        merge = layout(kind)
        sketched = norms(merge, 1).pieces[0].size if kind == "part" else 0
        print(f"{kind}: {len(merge.layout.accumulators)} accumulators, {merge.layout.width} fields", end="")
        print(f", {2 * BLOCKS} sketches of {sketched} buckets" if sketched else "")
        for world in worlds:
            simulation = Simulation(merge, world, norms(merge, world) if sketched else None)
            runs = [simulation.path() for _ in range(7)]
            seconds, levels, received = sorted(runs)[len(runs) // 2]
            print(
                f"{world:7d} ranks, {levels} levels: {1e3 * seconds:6.1f} ms a record (best {1e3 * min(runs)[0]:.1f}), "
                f"{received / 1e6:.2f} MB received by a rank"
            )


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or [10, 100, 1000, 10_000])

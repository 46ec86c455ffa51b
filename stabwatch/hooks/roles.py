"""Which part a module plays: the residual stream after a block, the last projection of a branch, a router."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

_CHOSEN = ("top_k", "num_experts_per_tok", "k", "topk")


@dataclass(frozen=True)
class Role:
    """residual: its output is the residual stream. writer: it writes into that. top_k: of a router; 0 for none."""

    residual: bool = False
    writer: bool = False
    top_k: int = 0

    def __bool__(self) -> bool:
        return self.residual or self.writer or self.top_k > 0


NO_ROLE = Role()


def find_roles(modules: Mapping[str, nn.Module], blocks: set[str], shown: set[str]) -> dict[str, Role]:
    """The roles of modules by path. Where no block repeats, the stream is seen at every module in `shown`."""
    residual = {path for path in blocks if path in shown} or shown
    writers = {path for block in blocks for path in _writers(block, modules)}
    routers = {path: k for path in modules if (k := _top_k(path, modules))}
    paths = residual | writers | set(routers)
    return {path: Role(path in residual, path in writers, routers.get(path, 0)) for path in modules if path in paths}


def _writers(block: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """The last projection of each branch, where it gives as many features as the block's norms have."""
    children = [f"{block}.{name}" for name, _ in modules[block].named_children()]
    inner = [[p for p in modules if p.startswith(child + ".")] for child in children if list(modules[child].children())]
    branches = [*inner, [child for child in children if not list(modules[child].children())]]
    last = [projections[-1] for b in branches if (projections := [p for p in b if _projects(modules[p])])]
    width = _width(modules[block])
    return [path for path in last if width in (None, _features(modules[path]))]


def _projects(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # of nn.MultiheadAttention, which never calls it
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)
    return is_matrix and not list(module.children())


def _features(projection: nn.Module) -> int:
    """How many numbers a projection gives per token: `out_features`, or `nf` of transformers' Conv1D."""
    given = getattr(projection, "out_features", getattr(projection, "nf", None))
    return given if isinstance(given, int) else len(projection.weight)  # type: ignore[arg-type]


def _width(block: nn.Module) -> int | None:
    """Features of the residual stream: what most norms of the block normalise."""
    norms = [m for m in block.modules() if "norm" in type(m).__name__.lower() and not list(m.children())]
    sizes = Counter(w.numel() for m in norms if isinstance(w := getattr(m, "weight", None), Tensor) and w.dim() == 1)
    return max(sizes, key=lambda n: (sizes[n], n)) if sizes else None


def _top_k(path: str, modules: Mapping[str, nn.Module]) -> int:
    parent_path, _, name = path.rpartition(".")
    parent = modules.get(parent_path)
    if not path or parent is None or not hasattr(parent, "experts") or not re.search(r"router|^gate$|gating", name):
        return 0
    weight = getattr(modules[path], "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return 0
    found = (getattr(owner, word, None) for owner in (modules[path], parent) for word in _CHOSEN)
    return next((k for k in found if isinstance(k, int) and 0 < k <= len(weight)), 1)

"""Which part a module plays: the residual stream after a block, the last projection of a branch, a router."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_BENDS = re.compile(
    r"(GELU|SiLU|Swish|Mish|Tanh|Sigmoid|Softsign|ELU)(Tanh|Activation)?$|^Hard(tanh|sigmoid|swish)$|^ReLU6$"
)
"""Classes of elementwise functions that go flat somewhere; ReLU, which is flat by design, is not among them."""
_GATE = re.compile(r"^(gate_proj|gate_up_proj|fc_gate|wi_0)$")
_ROUTER = re.compile(r"router|^gate$|gating")
_CHOSEN = ("top_k", "num_experts_per_tok", "k", "topk")


@dataclass(frozen=True)
class Role:
    """residual: its output is the residual stream. writer: it writes into that. bends: an activation function.
    gate: the projection that gates another one, in a gated MLP.

    top_k, experts, capacity: of a router; 0 for none, and the capacity factor that it states. stack: how many experts
    one module holds; 0 for any other.
    """

    residual: bool = False
    writer: bool = False
    bends: bool = False
    gate: bool = False
    top_k: int = 0
    experts: int = 0
    capacity: float = 0.0
    stack: int = 0

    def __bool__(self) -> bool:
        return self != NO_ROLE

    @property
    def asks_inputs(self) -> bool:
        """What is measured is found from what the module was called with."""
        return self.bends or self.top_k > 0 or self.stack > 0


NO_ROLE = Role()


def find_roles(modules: Mapping[str, nn.Module], blocks: set[str], shown: set[str]) -> dict[str, Role]:
    """The roles of modules by path. Where no block repeats, the stream is seen at every module in `shown`."""
    residual = {path for path in blocks if path in shown} or shown
    writers = {path for block in blocks for path in _writers(block, modules)}
    found = {
        path: Role(
            residual=path in residual,
            writer=path in writers,
            bends=bool(_BENDS.search(type(module).__name__)) and not list(module.children()),
            gate=is_gate(path, modules),
            stack=_stack(path, module),
            **_router(path, modules),
        )
        for path, module in modules.items()
    }
    return {path: role for path, role in found.items() if role}


def is_gate(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """By the names in use: of LLaMA, Phi-3 (which keeps both projections in one), T5, and LLaMA's own code (w1).

    Not those of single experts, which are seen as a whole.
    """
    owner, _, name = path.rpartition(".")
    known = _GATE.search(name) or (name == "w1" and f"{owner}.w3" in modules)
    return bool(known) and "experts" not in owner.split(".")


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


def _router(path: str, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What is known of a router: a matrix beside `experts`, or inside of what lies beside them."""
    weight = getattr(modules[path], "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return {}
    above = [path.rsplit(".", up)[0] for up in (1, 2) if path.count(".") >= up] + [""] * (path.count(".") < 2)
    for child, owner in zip([path, *above], above, strict=False):
        if hasattr(modules.get(owner), "experts") and _ROUTER.search(child.rpartition(".")[2]):
            owners = [modules[p] for p in dict.fromkeys((path, child, owner))]
            chosen = (getattr(o, word, None) for o in owners for word in _CHOSEN)
            top_k = next((k for k in chosen if isinstance(k, int) and 0 < k <= len(weight)), 1)
            stated = (getattr(o, "capacity_factor", None) for o in owners)
            capacity = next((float(c) for c in stated if isinstance(c, int | float) and c > 0), 0.0)
            return {"top_k": top_k, "experts": len(weight), "capacity": capacity}
    return {}


def _stack(path: str, module: nn.Module) -> int:
    """Experts in one module that is called with tokens, the experts of each, and their weights."""
    stacked = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    if not stacked or path.rpartition(".")[2] != "experts":
        return 0
    return len(stacked[0]) if len(inspect.signature(module.forward).parameters) >= 3 else 0

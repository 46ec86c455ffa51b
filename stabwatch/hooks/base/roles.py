"""Which part a module plays: the residual stream after a block, the last projection of a branch, a router."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
_CORRECTIONS = ("e_score_correction_bias", "expert_bias")
_SCORING = ("scoring_func", "score_func")


@dataclass(frozen=True)
class Choice:
    """How a router chooses that is balanced without an auxiliary loss (DeepSeek-V3): by its scores plus a correction.

    The correction is looked up anew in its holder. groups, kept: only the best groups of experts are chosen from.
    """

    holder: nn.Module
    correction: str
    softmax: bool = False
    groups: int = 1
    kept: int = 1


@dataclass(frozen=True)
class Role:
    """residual: its output is the residual stream. writer: it writes into that. nonlinear: an activation function.
    gate: the projection that gates another one, in a gated MLP.

    top_k, experts, capacity: of a router; 0 for none, and the capacity factor that it states. choice: of a router that
    does not choose by its logits. stack: how many experts one module holds; 0 for any other.

    sequence_first: its tensors are (tokens, batch, features). widths: how many features its norms and projections have
    along the last dimension, where it has norms that work there.
    """

    residual: bool = False
    writer: bool = False
    nonlinear: bool = False
    gate: bool = False
    top_k: int = 0
    experts: int = 0
    capacity: float = 0.0
    choice: Choice | None = None
    stack: int = 0
    sequence_first: bool = False
    widths: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return self != NO_ROLE

    @property
    def asks_inputs(self) -> bool:
        """What is measured is found from what the module was called with."""
        return self.nonlinear or self.top_k > 0 or self.stack > 0

    def features_last(self, shape: Sequence[int]) -> bool:
        """Of an image: is it (batch, height, width, channels)?"""
        return shape[-1] in self.widths and shape[1] not in self.widths


NO_ROLE = Role()


def find_roles(modules: Mapping[str, nn.Module], blocks: set[str], shown: set[str]) -> dict[str, Role]:
    """The roles of modules by path. Where no block repeats, the stream is seen at every module in `shown`."""
    residual = {path for path in blocks if path in shown} or shown
    writers = {path for block in blocks for path in _writers(block, modules)}
    found = {
        path: Role(
            residual=path in residual,
            writer=path in writers,
            nonlinear=bool(_BENDS.search(type(module).__name__)) and not list(module.children()),
            gate=is_gate(path, modules),
            stack=_stack(path, module),
            sequence_first=path in residual | writers and _is_sequence_first(path, modules, blocks),
            widths=_widths(module) if path in residual else frozenset(),
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


def _is_sequence_first(path: str, modules: Mapping[str, nn.Module], blocks: set[str]) -> bool:
    """By `batch_first` of what is inside of it, or of the blocks that it stands in: where all say no."""
    around = [p for p in (path[:i] for i, c in enumerate(path) if c == ".") if p in blocks]
    inside = (m for p in (path, *around) for m in modules[p].modules())
    return {getattr(m, "batch_first", None) for m in inside} - {None} == {False}


def _widths(block: nn.Module) -> frozenset[int]:
    """Sizes of the last dimension where features are: of layer norms, and of projections beside them."""
    sizes = {m.normalized_shape[-1] for m in block.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
    return frozenset(sizes | {m.out_features for m in block.modules() if isinstance(m, nn.Linear)} if sizes else ())


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
            return {"top_k": top_k, "experts": len(weight), "capacity": capacity, "choice": _choice(owners)}
    return {}


def _choice(owners: list[nn.Module]) -> Choice | None:
    """Of a router, given it and what it lies in, from the inside to the outside."""
    near = [*owners, *(part for owner in owners for part in owner.children())]
    held = ((o, name) for o in near for name in _CORRECTIONS if isinstance(getattr(o, name, None), Tensor))
    holder, name = next(held, (None, ""))
    if holder is None:
        return None
    return Choice(
        holder, name, _scores_are_softmax(owners), _count(owners, "num_group", "n_group"), _count(owners, "topk_group")
    )


def _count(owners: list[nn.Module], *names: str) -> int:
    stated = (getattr(o, name, None) for o in owners for name in names)
    return next((n for n in stated if isinstance(n, int) and n > 0), 1)


def _scores_are_softmax(owners: list[nn.Module]) -> bool:
    """By what is stated, or else by what the code of the innermost that names one calls; sigmoid is the custom."""
    stated = [str(getattr(o, name)) for o in owners for name in _SCORING if hasattr(o, name)]
    codes = (getattr(inspect.unwrap(type(o).forward), "__code__", None) for o in owners)
    named = (set(code.co_names) & {"softmax", "sigmoid"} for code in codes if code is not None)
    return "softmax" in stated[0] if stated else next((n == {"softmax"} for n in named if n), False)


def _stack(path: str, module: nn.Module) -> int:
    """Experts in one module that is called with tokens, the experts of each, and their weights."""
    stacked = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    if not stacked or path.rpartition(".")[2] != "experts":
        return 0
    return len(stacked[0]) if len(inspect.signature(module.forward).parameters) >= 3 else 0

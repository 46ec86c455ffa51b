"""The role of a module: a block of the residual stream, the last projection of a branch, a router and so on."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from stabwatch.hooks.base.tree import ModuleTree, held

_NONLINEAR = re.compile(
    r"(GELU|SiLU|Swish|Mish|Tanh|Sigmoid|Softsign|ELU)(Tanh|Activation)?$|^Hard(tanh|sigmoid|swish)$|^ReLU6$"
)
"""Classes of elementwise functions that are flat somewhere. ReLU, which is flat by design, is not among them."""
_GATE = re.compile(r"^(gate_proj|gate_up_proj|fc_gate|wi_0)$")
_ROUTER = re.compile(r"router|^gate$|gating")
_CHOSEN = ("top_k", "num_experts_per_tok", "k", "topk")
_CORRECTIONS = ("e_score_correction_bias", "expert_bias")
_SCORING = ("scoring_func", "score_func")


@dataclass(frozen=True)
class Choice:
    """How a router chooses experts by its scores plus a correction, which balances them (DeepSeek-V3).

    The correction is an attribute of `holder` and is read at each call. It has a number for each expert: logits
    behind those belong to experts that are always used. groups, kept: experts are chosen from the best
    `kept` of so many groups.
    """

    holder: nn.Module
    correction: str
    softmax: bool = False
    groups: int = 1
    kept: int = 1


@dataclass(frozen=True)
class Role:
    """residual: its output is the residual stream. writer: it writes into that stream. nonlinear: an activation
    function.
    gate: the projection that gates another one, in a gated MLP.

    top_k, experts, capacity: of a router, the experts per token, all experts, and the capacity factor that it states;
    0 for none. choice: of a router that does not choose by its logits. stack: experts that this one module contains.

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
    def needs_inputs(self) -> bool:
        """Is the module measured by its inputs?"""
        return self.nonlinear or self.top_k > 0 or self.stack > 0

    def features_last(self, shape: Sequence[int]) -> bool:
        """Of an image: is it (batch, height, width, channels)?"""
        return shape[-1] in self.widths and shape[1] not in self.widths


NO_ROLE = Role()


def find_roles(tree: ModuleTree, blocks: set[str], shown: set[str]) -> dict[str, Role]:
    """The roles of modules by name. Without repeated blocks, every module in `shown` is part of the stream."""
    residual = {name for name in blocks if name in shown} or shown
    writers = {name for block in blocks for name in _writers(block, tree)} - tree.shared
    stream = residual | writers
    found = {
        name: Role(
            residual=name in residual,
            writer=name in writers,
            nonlinear=bool(_NONLINEAR.search(type(module).__name__)) and not tree.children(name),
            gate=is_gate(name, tree),
            stack=_stack(name, module),
            sequence_first=name in stream and _is_sequence_first(name, tree, blocks),
            widths=_widths(module) if name in residual else frozenset(),
            **_router(name, tree),
        )
        for name, module in tree.modules.items()
    }
    return {name: role for name, role in found.items() if role}


def is_gate(name: str, tree: ModuleTree) -> bool:
    """By the names in use: of LLaMA, Phi-3 (which keeps both projections in one), T5, and LLaMA's own code (w1).

    Gates inside of single experts do not count.
    """
    owner, _, last = name.rpartition(".")
    known = _GATE.search(last) or (last == "w1" and f"{owner}.w3" in tree.modules)
    return bool(known) and "experts" not in owner.split(".")


def _writers(block: str, tree: ModuleTree) -> list[str]:
    """The last projection of each branch, where it returns as many features as the block's norms have."""
    modules, width = tree.modules, _width(tree.modules[block])
    while len(tree.children(block)) == 1 and not modules[block]._parameters:
        block = tree.children(block)[0]  # a wrapper of the user's around the block
    children = tree.children(block)
    inner = [tree.below(child) for child in children if tree.children(child)]
    branches = [*inner, [child for child in children if not tree.children(child)]]
    last = [projections[-1] for b in branches if (projections := [p for p in b if _projects(modules[p])])]
    return [name for name in last if width in (None, _features(modules[name]))]


def _projects(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # of nn.MultiheadAttention, which never calls it
    weight = held(module)
    is_matrix = weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding)
    return is_matrix and not _contains(module)


def _contains(module: nn.Module) -> bool:
    """Does a module contain others, save the parametrizations of its own weights?"""
    return any(name != "parametrizations" for name, child in module._modules.items() if child is not None)


def _features(projection: nn.Module) -> int:
    """How many numbers a projection returns per token: `out_features`, or `nf` of transformers' Conv1D."""
    stated = projection.__dict__.get("out_features", projection.__dict__.get("nf"))
    weight = held(projection)
    return stated if isinstance(stated, int) else 0 if weight is None else len(weight)


def _width(block: nn.Module) -> int | None:
    """Features of the residual stream: what most norms of the block normalise."""
    norms = [m for m in block.modules() if "norm" in type(m).__name__.lower() and not _contains(m)]
    sizes = Counter(w.numel() for m in norms if (w := held(m)) is not None and w.dim() == 1)
    return max(sizes, key=lambda n: (sizes[n], n)) if sizes else None


def _is_sequence_first(name: str, tree: ModuleTree, blocks: set[str]) -> bool:
    """By `batch_first` of the modules inside of it or of the blocks around it: true where all of them say False."""
    around = [outer for outer in tree.above(name) if outer in blocks]
    inside = (m for outer in (name, *around) for m in tree.modules[outer].modules())
    return {m.__dict__.get("batch_first") for m in inside} - {None} == {False}


def _widths(block: nn.Module) -> frozenset[int]:
    """Numbers of features along the last dimension: of layer norms, and of the projections beside them."""
    sizes = {m.normalized_shape[-1] for m in block.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
    return frozenset(sizes | {m.out_features for m in block.modules() if isinstance(m, nn.Linear)} if sizes else ())


def _router(name: str, tree: ModuleTree) -> dict[str, Any]:
    """What is known of a router: a matrix beside `experts`, or inside of a module beside them."""
    modules, weight = tree.modules, held(tree.modules[name])
    if weight is None or weight.dim() != 2:
        return {}
    above = [*tree.above(name), ""][:2]
    for child, owner in zip([name, *above], above, strict=False):
        if hasattr(modules[owner], "experts") and _ROUTER.search(child.rpartition(".")[2]):
            owners = [modules[p] for p in dict.fromkeys((name, child, owner))]
            chosen = (getattr(o, word, None) for o in owners for word in _CHOSEN)
            top_k = next((k for k in chosen if isinstance(k, int) and 0 < k <= len(weight)), 1)
            stated = (getattr(o, "capacity_factor", None) for o in owners)
            capacity = next((float(c) for c in stated if isinstance(c, int | float) and c > 0), 0.0)
            choice = _choice(owners)
            corrected = None if choice is None else held(choice.holder, choice.correction)
            experts = len(weight) if corrected is None else min(len(weight), corrected.numel())
            return {"top_k": top_k, "experts": experts, "capacity": capacity, "choice": choice}
    return {}


def _choice(owners: list[nn.Module]) -> Choice | None:
    """How a router chooses. owners: the router and the modules around it, from the inside to the outside."""
    near = [*owners, *(part for owner in owners for part in owner.children())]
    found = ((o, name) for o in near for name in _CORRECTIONS if held(o, name) is not None)
    holder, name = next(found, (None, ""))
    if holder is None:
        return None
    return Choice(
        holder, name, _scores_are_softmax(owners), _count(owners, "num_group", "n_group"), _count(owners, "topk_group")
    )


def _count(owners: list[nn.Module], *names: str) -> int:
    stated = (getattr(o, name, None) for o in owners for name in names)
    return next((n for n in stated if isinstance(n, int) and n > 0), 1)


def _scores_are_softmax(owners: list[nn.Module]) -> bool:
    """By what a module states, or else by which of the two the innermost `forward` calls; sigmoid if unclear."""
    stated = [str(getattr(o, name)) for o in owners for name in _SCORING if hasattr(o, name)]
    codes = (getattr(inspect.unwrap(type(o).forward), "__code__", None) for o in owners)
    named = (set(code.co_names) & {"softmax", "sigmoid"} for code in codes if code is not None)
    return "softmax" in stated[0] if stated else next((n == {"softmax"} for n in named if n), False)


def _stack(name: str, module: nn.Module) -> int:
    """Number of experts in a module called with tokens, the experts of each, and their weights; 0 for others."""
    stacked = [p for p in module.parameters(recurse=False) if not nn.parameter.is_lazy(p) and p.dim() == 3]
    if not stacked or name.rpartition(".")[2] != "experts":
        return 0
    return len(stacked[0]) if len(inspect.signature(module.forward).parameters) >= 3 else 0

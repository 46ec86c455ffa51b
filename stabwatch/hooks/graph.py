"""Autograd's graph of a loss that is not finite: the first operation that shows such a value, and what led to it.

Read before the backward pass, while the graph holds its tensors; they are only looked at. Tensors that are packed
(checkpoints, offloading) are left alone: to unpack them would compute them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.trace import PLAIN, spoiled

_NUMBERED = re.compile(r"Backward\d*$")
MOST_NODES = 200_000
"""Nodes of a graph that are looked at."""
_VIEWS = frozenset(
    (
        "T", "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "ToCopy", "Expand", "Slice", "Select",
        "Unbind", "Unsqueeze", "Squeeze", "Split", "SplitWithSizes", "Alias", "Clone", "AsStrided", "Cat", "Stack",
    )
)  # fmt: skip
"""Operations between a parameter and the operation that uses it."""
_STRICT = frozenset(
    (
        "Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "NativeLayerNorm", "NativeBatchNorm", "NativeGroupNorm",
        "FusedRmsNorm", "Gelu", "Silu", "Pow",
    )
)  # fmt: skip
"""Operations that take no masks: they make NaN of -inf, or a power of it."""
_PASS_ON = _VIEWS | {"Sub", "Rsub", "Add", "Neg", "Abs"}
"""Operations that make no NaN of numbers that are finite."""
_INPUTS = {
    "Addmm": ("mat1",), "Mm": ("self", "mat2"), "Bmm": ("self", "mat2"), "Baddbmm": ("batch1", "batch2"),
    "Mul": ("self", "other"), "Div": ("self", "other"), "Convolution": ("input",), "NativeLayerNorm": ("input",),
    "NativeBatchNorm": ("input",), "NativeGroupNorm": ("input",), "FusedRmsNorm": ("input",),
    "ScaledDotProductFlashAttentionForCpu": ("query", "key", "value"),
}  # fmt: skip
"""Names under which an operation of several inputs keeps them, without parameters. Operations of one input: `self`."""
_EDGES = {
    "Mul": ("self", "other"), "Div": ("self", "other"), "Mm": ("self", "mat2"), "Bmm": ("self", "mat2"),
    "Addmm": ("", "mat1", "mat2"), "MseLoss": ("self", "target"), "SmoothL1Loss": ("self", "target"),
    "HuberLoss": ("self", "target"), "BinaryCrossEntropy": ("self", "target"),
    "BinaryCrossEntropyWithLogits": ("self", "target"), "KlDiv": ("self", "target"),
}  # fmt: skip
"""Names of the inputs of an operation in the order of the nodes before it."""
_RESULTS = ("result", "output", "tensors")
"""How the names of saved results begin; all other saved tensors are inputs. `tensors`: of functions of the user."""
_WHOLE = ("result", "result0", "output")
"""Saved results that are all that the operation returned."""


def _any(x: Any, of: Callable[[Tensor], Tensor]) -> bool:
    return isinstance(x, Tensor) and bool(of(x.detach()).any())


def _empty_mean(saved: Mapping[str, Any], node: Any) -> bool:
    return getattr(node, "_saved_self_sym_numel", 1) == 0


def _no_targets(saved: Mapping[str, Any], node: Any) -> bool:
    return getattr(node, "_saved_reduction", 0) == 1 and _any(saved.get("total_weight"), lambda x: x == 0)


def _power(saved: Mapping[str, Any], node: Any) -> bool:
    exponent, base = getattr(node, "_saved_exponent", 1), saved.get("self")
    if isinstance(exponent, Tensor | complex):
        return False
    return (exponent < 0 and _any(base, lambda x: x == 0)) or (exponent % 1 != 0 and _any(base, lambda x: x < 0))


_MAKES: dict[str, tuple[str, Callable[[Mapping[str, Any], Any], bool]]] = {
    "Div": ("a division by 0", lambda saved, node: _any(saved.get("other"), lambda x: x == 0)),
    "Log": ("the logarithm of a number that is not positive", lambda s, n: _any(s.get("self"), lambda x: x <= 0)),
    "Log2": ("the logarithm of a number that is not positive", lambda s, n: _any(s.get("self"), lambda x: x <= 0)),
    "Log10": ("the logarithm of a number that is not positive", lambda s, n: _any(s.get("self"), lambda x: x <= 0)),
    "Log1P": ("log1p of a number that is at most -1", lambda s, n: _any(s.get("self"), lambda x: x <= -1)),
    "Acos": ("acos of a number beyond 1", lambda s, n: _any(s.get("self"), lambda x: x.abs() > 1)),
    "Asin": ("asin of a number beyond 1", lambda s, n: _any(s.get("self"), lambda x: x.abs() > 1)),
    "Atanh": ("atanh of a number that is not below 1", lambda s, n: _any(s.get("self"), lambda x: x.abs() >= 1)),
    "Pow": ("a power that is not defined", _power),
    "Mean": ("the mean of no numbers", _empty_mean),
    "NllLoss": ("the mean over no targets", _no_targets),
    "NllLoss2D": ("the mean over no targets", _no_targets),
}  # fmt: skip
"""Operations that do not save what they make, and when what they saved shows that it is not finite."""
_SHOWN = {
    "Sqrt": "the square root of a negative number",
    "Rsqrt": "the inverse square root of a number that is not positive",
    "Reciprocal": "the inverse of 0",
    "Exp": "an exponential that is too large",
    "Softmax": "a softmax without a finite number in a row",
    "LogSoftmax": "a softmax without a finite number in a row",
    "Std": "the deviation of too few numbers",
    "CtcLoss": "a CTC loss whose targets do not fit into their inputs",
}
"""What it means if an operation whose inputs were finite shows such a result."""


@dataclass(eq=False)
class Node:
    """One operation. order: autograd's number. layers: whose parameters it uses. inputs: the nodes before it."""

    node: Any
    order: int
    name: str
    layers: tuple[str, ...] = ()
    inputs: list[Node] = field(default_factory=list)
    detached: bool = False
    """One of its inputs came from outside of the graph."""
    weights: bool = False
    """A view of parameters."""

    def saved(self) -> dict[str, Tensor]:
        """The tensors that the node keeps, of those on the host that are not packed."""
        found = {}
        for attribute in dir(self.node):
            if attribute.startswith("_raw_saved_"):
                name = attribute.removeprefix("_raw_saved_")
                for i, tensor in enumerate(saved_plainly(self.node, name)):
                    if type(tensor) in PLAIN and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                        found[f"{name}.{i}" if i else name] = tensor
        return found


def saved_plainly(node: Any, name: str) -> Sequence[Any]:
    """What a node saved under a name; nothing where it is packed, or where this version of torch does not say."""
    raw = getattr(node, f"_raw_saved_{name}")
    if any(getattr(one, "unpack_hook", one) is not None for one in (raw if isinstance(raw, list | tuple) else (raw,))):
        return ()
    try:
        found = getattr(node, f"_saved_{name}" if name != "tensors" else "saved_tensors")
    except RuntimeError:  # written into since, or freed
        return ()
    return found if isinstance(found, list | tuple) else (found,)


@dataclass(frozen=True)
class Birth:
    """Where the graph shows a value that is not finite first.

    first, last: numbers of the nodes in which it was made. seen: of the node that showed it; what is made before its
    inputs came from outside of the graph has first > last. before, after: layers whose parameters were used last before
    it, and first from there on. operation: what made it, in words, or ''. grown: numbers had grown until they were too
    large. dtype: the narrowest of those that were computed with there. target: the targets of a loss held it.
    """

    first: int
    last: int
    seen: int
    before: str = ""
    after: str = ""
    operation: str = ""
    grown: bool = False
    dtype: str = ""
    target: bool = False


class Graph:
    """The graph of some roots. owners: id of a parameter to the name of its module."""

    def __init__(self, roots: Iterable[Tensor], owners: Mapping[int, str]) -> None:
        self.mine = False
        """Parameters of the model are in it."""
        self._finite_until = -1
        self._nodes: dict[Any, Node] = {}
        self._users: dict[Node, list[Node]] = {}
        self._collect([root.grad_fn for root in roots if root.grad_fn is not None], owners)
        self.nodes = sorted(self._nodes.values(), key=lambda n: n.order)
        self._saved: dict[Node, dict[str, Tensor]] = {}

    def _collect(self, begin: Sequence[Any], owners: Mapping[int, str]) -> None:
        todo, uses = list(begin), []
        while todo and len(self._nodes) < MOST_NODES:
            node = todo.pop()
            if node in self._nodes:
                continue
            name = _NUMBERED.sub("", node.name().rpartition("::")[2]).lstrip("_")
            self._nodes[node] = Node(node, node._sequence_nr(), name)
            for before, _ in node.next_functions:
                if hasattr(before, "variable"):
                    owner = owners.get(id(before.variable))
                    uses += [(node, owner)] if owner is not None else []
                elif before is not None:
                    todo.append(before)
        self.mine = bool(uses)
        users = self._users
        for known in self._nodes.values():
            known.detached = any(before is None for before, _ in known.node.next_functions)
            known.inputs = [self._nodes[b] for b, _ in known.node.next_functions if b in self._nodes]
            for before in known.inputs:
                users.setdefault(before, []).append(known)
        for node, owner in uses:
            self._use(self._nodes[node], owner, users)

    def _use(self, node: Node, owner: str, users: Mapping[Node, list[Node]], depth: int = 4) -> None:
        """A parameter goes into a node, and on through views of it."""
        if depth and node.name in _VIEWS and node in users:
            node.weights = True
            for user in users[node]:
                self._use(user, owner, users, depth - 1)
        elif owner not in node.layers:
            node.layers = (*node.layers, owner)

    @property
    def layers(self) -> list[str]:
        """Modules in the order in which their parameters are used."""
        return list(dict.fromkeys(layer for node in self.nodes for layer in node.layers))

    def _of(self, node: Node) -> dict[str, Tensor]:
        if node not in self._saved:
            self._saved[node] = node.saved()
        return self._saved[node]

    def birth(self, finite_until: int = -1) -> Birth | None:
        """Where a value that is not finite was made, if the root is not finite; None for an empty graph.

        finite_until: what nodes with smaller numbers gave to others is known to be finite.
        """
        self._finite_until = finite_until
        for node in self.nodes:
            given = self._spoiled_inputs(node)
            if given or any(spoiled(x) for name, x in self._of(node).items() if name.startswith(_RESULTS)):
                return self._between(node, given)
        return self._between(self.nodes[-1], []) if self.nodes else None

    def _between(self, seen: Node, given: Sequence[str]) -> Birth:
        """seen: the first node that shows it: in those of its inputs that are `given`, or else in its result."""
        some = self._candidates(seen, given)
        maker, operation = self._maker(some, None if given else seen)
        if maker is not None:
            some = [maker]
        first, last = (some[0].order, some[-1].order) if some else (seen.order, seen.order - 1)
        before = [layer for node in self.nodes if node.order < first for layer in node.layers]
        after = [layer for node in self.nodes if node.order >= max(first, last) for layer in node.layers]
        if maker is None and some and self._given_nan(seen, given) and all(n.name in _PASS_ON for n in some):
            some = [] if any(n.detached for n in some) else some  # it came from outside of the graph
            first, last = (seen.order, seen.order - 1) if not some else (first, last)
        grown = not operation and self._grown([*some, seen])
        return Birth(
            first, last, seen.order, before[-1] if before else "", after[0] if after else "", operation, grown,
            _narrowest([*some, seen]), "target" in given,
        )  # fmt: skip

    def _candidates(self, seen: Node, given: Sequence[str]) -> list[Node]:
        """The nodes in which it may have been made: back to those whose inputs or results are known to be finite."""
        found: set[Node] = set() if given else {seen}
        todo = self._givers(seen, given) if given else [] if self._bounded(seen) else list(seen.inputs)
        while todo:
            node = todo.pop()
            if node in found or node.weights or self._finite(node):
                continue
            found.add(node)
            if not self._bounded(node):
                todo += node.inputs
        return sorted(found, key=lambda n: n.order)

    def _givers(self, seen: Node, given: Sequence[str]) -> list[Node]:
        """The nodes from which some inputs of a node came."""
        names = _EDGES.get(seen.name, ())
        if not set(given) <= set(names) or len(names) != len(seen.node.next_functions):
            return list(seen.inputs)
        edges = [seen.node.next_functions[names.index(name)][0] for name in given]
        return [self._nodes[before] for before in edges if before in self._nodes]

    def _finite(self, node: Node) -> bool:
        """Is the result of a node known to be finite, from itself or from an operation that got it?"""
        if node.order < self._finite_until:
            return True
        if any(name in _WHOLE and not spoiled(x) for name, x in self._of(node).items()):
            return True
        users = self._users.get(node, ())
        if any(user.name in _STRICT and len(user.inputs) == 1 and self._spoiled_inputs(user) for user in users):
            return False  # another user may take -inf for a mask
        return any(self._bounded(user) and not self._spoiled_inputs(user) for user in users)

    def _spoiled_inputs(self, node: Node) -> list[str]:
        masks = node.name not in _STRICT
        return [k for k, x in self._of(node).items() if not k.startswith(_RESULTS) and spoiled(x, masks)]

    def _bounded(self, node: Node) -> bool:
        """Did a node keep all of its inputs, save parameters? Where it shows it first, they are finite."""
        saved = self._of(node)
        if len(node.node.next_functions) == 1:
            return "self" in saved or "input" in saved
        return all(name in saved for name in _INPUTS.get(node.name, ("",)))

    def _maker(self, some: Sequence[Node], seen: Node | None) -> tuple[Node | None, str]:
        for node in some:
            words, made = _MAKES.get(node.name, ("", None))
            if made is not None and made(self._of(node), node.node):
                return node, words
        alone = seen is not None and all(n is seen or n.name not in _MAKES or self._of(n) for n in some)
        return (seen, _SHOWN[seen.name]) if seen is not None and alone and seen.name in _SHOWN else (None, "")

    def _given_nan(self, node: Node, given: Sequence[str]) -> bool:
        """Is there NaN, and not only infinity, in these inputs of a node?"""
        return any(bool(self._of(node)[name].detach().isnan().any()) for name in given)

    def _grown(self, some: Iterable[Node]) -> bool:
        """Are numbers so large that their product is not finite?"""
        for node in some:
            for x in self._of(node).values():
                if x.is_floating_point() and x.numel():
                    size = x.detach().abs()
                    size = size[torch.isfinite(size)]
                    if size.numel() and float(size.max()) > torch.finfo(x.dtype).max ** 0.5:
                        return True
        return False


def _narrowest(nodes: Iterable[Node]) -> str:
    """The type with the smallest range, of those that some nodes return; '' if none is known."""
    kinds = {m.dtype for node in nodes for m in getattr(node.node, "_input_metadata", ()) if m.dtype.is_floating_point}
    return str(min(kinds, key=lambda kind: torch.finfo(kind).max)).removeprefix("torch.") if kinds else ""

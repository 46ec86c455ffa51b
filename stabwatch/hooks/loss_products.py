"""Products in a loss that the program writes by itself: of a row and a column, and with a mask (overlap, dice)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from stabwatch.hooks.base.graph_kinds import SHAPES, inputs_of, kind_of
from stabwatch.hooks.base.last_function import is_sum_of_products
from stabwatch.hooks.graph import saved_plainly

_NODES = 32
"""Functions to look through, from the loss or from a division."""
_ADDED = ("Mean", "Sum", "Neg", "Add", "Sub", "Rsub", *SHAPES)
_LINEAR = (*_ADDED, "Div", "Mul")
_SUMMED = ("Sum", "Mean", "Add", "Sub", "Mul", "Pow", "Clamp", "ClampMin", *SHAPES)
_SIDES = ("self", "other")


def rows_by_columns(root: Any) -> int | None:
    """How many numbers of a row (n,) a loss multiplies with each of a column (n, 1); None where it does not.

    The mean over all of these products is that of the row times that of the column: nobody means that.
    """
    for node in _behind(root, _ADDED, _is_scaled):
        n, *columns = shape_of(node, 0) or (0,)
        if kind_of(node) == "Mul" and columns == [n] and n > 1 and {*_shapes_of_sides(node)} == {(n,), (n, 1)}:
            return n
    return None


def overlap(root: Any) -> bool | None:
    """Does a loss divide the sum of an output where a mask is 1 by sums of the output, and are these logits?

    Dice, IoU and Tversky are such, of probabilities. None where a loss is no overlap.
    """
    for node in _behind(root, _LINEAR):
        if kind_of(node) == "Div" and len(parts := inputs_of(node)) == 2:
            masked = {id(n): n for product in _behind(parts[0], _SUMMED) for n in _masked(product)}
            below = {id(n) for n in _behind(parts[1], _SUMMED)}
            if both := [n for i, n in masked.items() if i in below]:
                return all(map(is_sum_of_products, both))
    return None


def shape_of(node: Any, at: int) -> tuple[int, ...] | None:
    """Of the result of a node, where this version of torch says it."""
    known = getattr(node, "_input_metadata", ())
    return tuple(known[at].shape) if at < len(known) else None


def _behind(node: Any, through: Iterable[str], also: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """A node, and those before it that are reached through some kinds and what is `also` one; each is given once."""
    todo: list[Any] = [node]
    seen: set[int] = set()
    for node in todo:
        if node is None or id(node) in seen:
            continue
        if len(seen) == _NODES:
            return
        seen.add(id(node))
        yield node
        if kind_of(node) in through or also(node):
            todo += inputs_of(node)


def _is_scaled(node: Any) -> bool:
    """Is this a product of numbers, or of a tensor and a number?"""
    return kind_of(node) in ("Mul", "Div") and (shape_of(node, 0) == () or () in _shapes_of_sides(node))


def _shapes_of_sides(product: Any) -> Iterator[tuple[int, ...] | None]:
    """Of both factors: the graph knows those with a gradient, and keeps the others."""
    for (node, at), name in zip(product.next_functions, _SIDES, strict=False):
        if node is not None:
            yield shape_of(node, at)
        else:
            yield next((tuple(x.shape) for x in saved_plainly(product, name) if isinstance(x, Tensor)), None)


def _masked(product: Any) -> Iterator[Any]:
    """What a product multiplies with a mask of 0 and 1, without what only lays it out."""
    if kind_of(product) != "Mul":
        return
    for (node, _), name in zip(product.next_functions, reversed(_SIDES), strict=False):
        if node is not None and any(map(_is_mask, saved_plainly(product, name))):
            yield [*_behind(node, SHAPES)][-1]


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and bool(((x == 0) | (x == 1)).all())

"""The singular values of the matrices that a parameter consists of, and of what a step did to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.kernels.power_iteration import iterate, matrices, start
from stabwatch.signals.reductions import SPECTRUM

RANK = 4
"""Columns of the basis that is iterated: more than are reported, so that the first ones converge fast."""
FIRST_ITERATIONS = 4
"""At the first measurement, when there is no warm start."""
UPDATE_ITERATIONS = 2
"""For an update, whose directions are partly new each time."""

WEIGHT_SPECTRUM, UPDATE_SPECTRUM = (
    PROBES.register(
        Probe(
            name="spectrum", tap=tap, reduction=SPECTRUM, tier="deep", round_robin=True, optional=True,
            reported_as="matrix",
        )
    )
    for tap in ("matrix", "matrix_update")
)  # fmt: skip
"""Collected by `of_weights` and `of_updates`: matrices of one shape are iterated together."""


class Spectra:
    """The spectra of one parameter, by its whole shape; None while it is lazy.

    names: of its matrices (fused queries, keys and values are three, a stack of experts is many).
    basis, update_basis: where the last measurement ended, float32 (matrices, columns, RANK).
    """

    def __init__(self, name: str, shape: torch.Size | None, module: nn.Module | None) -> None:
        self._module = module
        parts = () if shape is None else matrices(name, torch.empty(shape, device="meta"), module)[0]
        self._name = name
        self.names = tuple(f"{name}.{part}" if part else name for part in parts)
        self.basis: Tensor | None = None
        self.update_basis: Tensor | None = None

    def parts(self, x: Tensor) -> Tensor:
        """The matrices (n, R, C) of the parameter, or of something of its shape."""
        return matrices(self._name, x, self._module)[1]


def of_weights(found: Sequence[tuple[Spectra, Tensor]]) -> Iterator[tuple[Spectra, Tensor]]:
    """float32 (matrices, 5) of each: aggregates of `spectrum`, by one more iteration from the last basis."""
    for group in _by_shape(found, [s.basis for s, _ in found]):
        basis = group.basis
        if basis is None:
            basis = start(group.x, RANK)
            for _ in range(FIRST_ITERATIONS):
                basis = iterate(group.x, basis)[1]
        values, basis, residual = iterate(group.x, basis)
        for spectra, kept, aggregates in group.split(basis, _aggregates(group.x, values, residual)):
            spectra.basis = kept
            yield spectra, aggregates


def of_updates(found: Sequence[tuple[Spectra, Tensor]]) -> Iterator[tuple[Spectra, Tensor]]:
    """The same of a step's changes."""
    for group in _by_shape(found, [s.update_basis for s, _ in found]):
        basis = start(group.x, RANK) if group.basis is None else group.basis
        for _ in range(UPDATE_ITERATIONS):
            values, basis, residual = iterate(group.x, basis)
        for spectra, kept, aggregates in group.split(basis, _aggregates(group.x, values, residual)):
            spectra.update_basis = kept
            yield spectra, aggregates


@dataclass
class _Group:
    """Matrices of one shape (n, R, C), of several parameters, and the bases of those that were measured before."""

    members: list[Spectra]
    sizes: list[int]
    x: Tensor
    basis: Tensor | None

    def split(self, basis: Tensor, aggregates: Tensor) -> Iterator[tuple[Spectra, Tensor, Tensor]]:
        parts = zip(self.members, basis.split(self.sizes), aggregates.split(self.sizes), strict=True)
        return ((spectra, kept.clone(), rows) for spectra, kept, rows in parts)


def _by_shape(found: Sequence[tuple[Spectra, Tensor]], bases: Sequence[Tensor | None]) -> Iterator[_Group]:
    """Matrices of one shape are iterated together, in a few launches."""
    groups: dict[tuple[object, ...], list[tuple[Spectra, Tensor, Tensor | None]]] = {}
    for (spectra, tensor), basis in zip(found, bases, strict=True):
        x = spectra.parts(tensor)
        if basis is not None and (basis.shape[:2] != (len(x), x.shape[2]) or basis.device != x.device):
            basis = None  # the parameter was moved, or has another shape now
        groups.setdefault((x.shape[1:], x.dtype, x.device, basis is None), []).append((spectra, x, basis))
    for group in groups.values():
        members, xs, kept = (list(column) for column in zip(*group, strict=True))
        visited = [basis for basis in kept if basis is not None]
        x = xs[0] if len(xs) == 1 else torch.cat(xs)
        yield _Group(members, [len(y) for y in xs], x, torch.cat(visited) if visited else None)


def _aggregates(x: Tensor, values: Tensor, residual: Tensor) -> Tensor:
    sumsq = torch.linalg.vector_norm(x.float(), dim=-1).square().sum(dim=-1)  # by rows: see `host_sumsq`
    return torch.stack((torch.ones_like(sumsq), sumsq, values[:, 0], values[:, 1], residual), dim=1)

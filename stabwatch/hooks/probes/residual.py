"""The residual stream: tails, token similarity, geometry and narrow formats of each block's output."""

from __future__ import annotations

from stabwatch.hooks.base.probe import PROBES, Computation, Probe, on
from stabwatch.hooks.base.sampling import ROUNDED, some_rows
from stabwatch.hooks.base.views import ResidualOutput
from stabwatch.kernels.exponent_histogram import exponents
from stabwatch.kernels.geometry import stability
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.precision import precision, rounding
from stabwatch.kernels.shape import shape
from stabwatch.kernels.tokens import tokens
from stabwatch.signals.reductions import EXPONENTS, GEOMETRY, PRECISION, ROUNDING, SHAPE, TOKENS, Reduction

PARTITIONS = 8
"""Random halves of the features per measurement."""
MIN_POINTS = MIN_FEATURES = 4
"""Distances between fewer points, or over fewer features, say nothing about geometry."""


def _tokens(x: ResidualOutput) -> Aggregates | None:
    return None if x.samples is None else tokens(x.samples, x.groups)


def _geometry(x: ResidualOutput) -> Aggregates | None:
    count, features = x.points.shape
    if count < MIN_POINTS or features < MIN_FEATURES:
        return None
    return stability(x.points, PARTITIONS, x.generator)


def _declare(reduction: Reduction, compute: Computation) -> Probe:
    return PROBES.register(
        Probe(
            name=reduction.name, tap="residual", reduction=reduction, tier="deep", compute=compute, round_robin=True,
            optional=True, reported_as="residual",
        )
    )  # fmt: skip


_declare(SHAPE, on(ResidualOutput, lambda x: shape(x.rows)))
_declare(PRECISION, on(ResidualOutput, lambda x: precision(x.rows)))
_declare(ROUNDING, on(ResidualOutput, lambda x: rounding(some_rows(x.rows, ROUNDED), x.rows)))
_declare(EXPONENTS, on(ResidualOutput, lambda x: exponents(x.rows)))
_declare(TOKENS, on(ResidualOutput, _tokens))
_declare(GEOMETRY, on(ResidualOutput, _geometry))

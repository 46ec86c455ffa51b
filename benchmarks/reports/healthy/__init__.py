"""Healthy workloads in the manner of classic PyTorch examples. Importing this package declares them all."""

from benchmarks.reports.case import REGISTRY
from benchmarks.reports.healthy import (
    again,
    again_more,
    by_hand,
    common,
    common_more,
    fresh,
    generative,
    others,
    others_more,
    policies,
    rewriting,
    sequences,
    tables,
    typical,
    unseen,
    vision,
    world,
    world_again,
    world_models,
    world_more,
    world_tuning,
)

__all__ = [
    "WORKLOADS",
    "again",
    "again_more",
    "by_hand",
    "common",
    "common_more",
    "fresh",
    "generative",
    "others",
    "others_more",
    "policies",
    "rewriting",
    "sequences",
    "tables",
    "typical",
    "unseen",
    "vision",
    "world",
    "world_again",
    "world_models",
    "world_more",
    "world_tuning",
]

WORKLOADS = tuple(REGISTRY.workloads)
"""All workloads, in the order of their modules."""

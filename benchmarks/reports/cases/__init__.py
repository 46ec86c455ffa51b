"""The reproduced reports. Importing this package declares them all."""

from benchmarks.reports.case import REGISTRY
from benchmarks.reports.cases import (
    asked_again,
    asked_loops,
    asked_values,
    collapse,
    data,
    forum_again,
    forum_loops,
    forum_values,
    fresh_data,
    fresh_setup,
    gradients,
    guises_again,
    guises_loops,
    guises_values,
    later,
    loop,
    losses,
    misses_again,
    modes,
    nonfinite,
    policy,
    precision,
    public_again,
    public_loops,
    public_loops_again,
    public_loops_more,
    public_values,
    public_values_more,
    siblings_again,
    siblings_loops,
    siblings_values,
    typical_again,
    typical_loops,
    typical_values,
    unseen,
    world_again,
    world_loops,
    world_loops_again,
    world_loops_more,
    world_values,
    world_values_more,
)

__all__ = [
    "CASES", "asked_again", "asked_loops", "asked_values", "collapse", "data", "forum_again", "forum_loops",
    "forum_values", "fresh_data", "fresh_setup", "gradients", "guises_again", "guises_loops", "guises_values",
    "later", "loop", "losses", "misses_again", "modes", "nonfinite", "policy", "precision", "public_again",
    "public_loops", "public_loops_again", "public_loops_more", "public_values", "public_values_more",
    "siblings_again", "siblings_loops", "siblings_values", "typical_again", "typical_loops", "typical_values",
    "unseen", "world_again", "world_loops", "world_loops_again", "world_loops_more", "world_values",
    "world_values_more",
]  # fmt: skip

CASES = tuple(REGISTRY.cases)
"""All cases, in the order of their modules."""

"""Which rows of a codebook are ever looked up."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.hooks.base.views import CodebookCall
from stabwatch.signals.reductions import CODES

MOST_ROWS = 1 << 17
"""Rows of a codebook; larger ones are vocabularies."""
IN_ORDER = 0.9
"""Share of indices that are one more than the one before, from which they are positions and no codes."""


def codes(x: CodebookCall) -> Tensor | None:
    """float32 (3,): rows, how many were never looked up, indices that were looked up, of all measured steps.

    Of positions, which are in order, only zeros.
    """
    if x.rows > MOST_ROWS:
        return None
    site, device = x.site, x.indices.device
    if site.codes is None or len(site.codes) != x.rows or site.codes.device != device:
        site.codes = torch.zeros(x.rows, device=device)
    site.codes.index_add_(0, x.indices, torch.ones(len(x.indices), device=device))
    count = torch.full((), float(x.rows), device=device)
    unused = (site.codes == 0).sum(dtype=torch.float32)
    found = torch.stack((count, unused, site.codes.sum()))
    in_order = (x.indices.diff() == 1).float().mean() > IN_ORDER if len(x.indices) > 1 else torch.zeros_like(count) > 0
    return torch.where(in_order, torch.zeros_like(found), found)


PROBES.register(
    Probe(
        name="codebook", tap="codebook", reduction=CODES, tier="sampled", compute=on(CodebookCall, codes),
        optional=True, graph_safe=False,
    )
)  # fmt: skip

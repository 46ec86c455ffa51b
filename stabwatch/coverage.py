"""What was seen and what was not, and why: never silently blind."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from stabwatch.hooks.cells import LOGITS, LOSS
from stabwatch.hooks.parameters import ParameterTaps
from stabwatch.hooks.sites import Site
from stabwatch.runlog import Cell

REPORT_AFTER = 8
"""Records after which the coverage is reported; more taps may still begin to show something later."""

COMPILED = (
    "no hook ran: the model was compiled and called before `attach`, or it is not the model that is trained. "
    "Call `stabwatch.attach` before the first compiled call, or `torch.compiler.reset()` after it"
)
NOT_CALLED = "this module was not called in the training forward (its parameters may be used directly)"
NO_LOSS = "no cross_entropy, no `.loss` on the model's output and no backward was seen; use `watch.log(loss=...)`"
NO_LOGITS = "no call of `cross_entropy` was seen in training steps"
NO_GRADIENT = "no optimizer step updated these parameters"
NO_ATTENTION = "this module looks like attention, but no call of `scaled_dot_product_attention` or `softmax` was seen"

IN_GRAPH = "inside a compiled graph branch_trunk_ratio and plugins at activations are not measured"
MHA = "nn.MultiheadAttention applies its output projection as a function, where no hook sees it"
NO_SATURATION = (
    "no activation module that saturates: one that is called as a function, or inside a fused kernel, is not seen"
)
NO_FAULT = (
    "residual", "writer", "branch", "nonlinearity", "expert", "dropped", "matrix", "radial", "probe", "plugin",
    "attention_contraction",
)  # fmt: skip

NO_STEP = {
    "tap": "clock",
    "site": "",
    "reason": "no step of a torch optimizer on this model's parameters was seen yet, so nothing is recorded",
}
UNATTACHED: dict[str, Any] = {
    "taps": [],
    "fired": 0,
    "unmeasured": [],
    "missing": [{"tap": "attach", "site": "", "reason": "attaching failed: see the log of the training process"}],
}


class Coverage:
    """Compares what fired with what should have."""

    def __init__(self, sites: Iterable[Site], parameters: ParameterTaps, expected: Iterable[Cell]) -> None:
        self._sites = tuple(sites)
        self._expected = tuple(expected)
        self._parameters = parameters
        self._reasons: dict[tuple[str, str], str] = {
            ("update", layer): "its parameters do not fit into `update_bytes`" for layer in parameters.too_large
        }
        self._lock = threading.Lock()

    def unmeasured(self, what: str, site: str, reason: str) -> None:
        """Remember why something was not measured; the first reason counts."""
        with self._lock:
            self._reasons.setdefault((what, site), reason)

    def missing(self, fired: set[Cell]) -> list[dict[str, str]]:
        """One entry {tap, site, reason} for everything that should have been seen and was not."""
        hooked = any(cell.tap == "activation" for cell in fired)
        out = [self._entry(cell, hooked) for cell in self._expected if cell not in fired and not self._early(cell)]
        for site in self._sites:
            if site.attention_like and site.bracket is not None:
                out += self._attention(site, fired)
        return out

    def _early(self, cell: Cell) -> bool:
        return cell.tap == "update" and self._parameters.awaits_turn(cell.site)

    def _entry(self, cell: Cell, hooked: bool) -> dict[str, str]:
        silent = NOT_CALLED if hooked else COMPILED
        fallback = {"activation": silent, "gradient": NO_GRADIENT, "weight": NO_GRADIENT, "update": NO_GRADIENT}
        reason = {LOSS: NO_LOSS, LOGITS: NO_LOGITS}.get(cell, fallback.get(cell.tap, "it was never measured"))
        with self._lock:
            reason = self._reasons.get((cell.tap, cell.site), reason)
        return {"tap": cell.tap, "site": cell.site, "reason": reason}

    def _attention(self, site: Site, fired: set[Cell]) -> list[dict[str, str]]:
        bracket = Cell("attention", site.name, "attention_bracket") in fired
        exact = Cell("attention", site.name, "attention_exact") in fired
        below = site.name + "."
        inner = any(c.tap == "attention" and c.site.startswith(below) for c in fired)
        if bracket or inner:
            return []
        with self._lock:
            why = self._reasons.get(("attention_bracket", site.name))
        if exact:
            why = why or "inside a compiled graph there is no saved logsumexp"
            return [{"tap": "attention_bracket", "site": site.name, "reason": f"{why}; the exact value is on cadence"}]
        return [{"tap": "attention", "site": site.name, "reason": why or NO_ATTENTION}]

    def unmeasurable(self, fired: set[Cell]) -> list[dict[str, str]]:
        """What cannot be measured in this run, by the reasons that the taps gave: no fault of its set-up."""
        shown = {(what, cell.site) for cell in fired for what in (cell.tap, cell.reduction)}
        with self._lock:
            reasons = dict(self._reasons)
        return [
            {"tap": tap, "site": site, "reason": reason}
            for (tap, site), reason in reasons.items()
            if tap in NO_FAULT and (tap, site) not in shown
        ]

    def report(self, fired: set[Cell]) -> dict[str, Any]:
        """The data of a `coverage` event."""
        seen = sorted({c.tap for c in fired})
        missing, unmeasured = self.missing(fired), self.unmeasurable(fired)
        return {"taps": seen, "fired": len(fired), "missing": missing, "unmeasured": unmeasured}

"""What was seen and what was not, and why: never silently blind."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.run import LOGITS, LOSS
from stabwatch.runlog import Accumulator

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

ONE_CALL = (
    "no attention call was seen: in a compiled graph that of nn.MultiheadAttention is inside one of the compiler's"
)
NO_SAVED = "inside a compiled graph there is no saved logsumexp"
IN_GRAPH = "inside a compiled graph branch_trunk_ratio and plugins at activations are not measured"
MHA = "nn.MultiheadAttention applies its output projection as a function, where no hook sees it"
NO_SATURATION = (
    "no activation module that saturates: one that is called as a function, or inside a fused kernel, is not seen"
)
OPTIONAL_TAPS = (
    "residual", "writer", "branch", "nonlinearity", "expert", "dropped", "matrix", "radial", "probe", "plugin",
    "attention_entropy", "attention_contraction", "taylor", "precision", "exponents", "descent",
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

    def __init__(self, sites: Iterable[Site], parameters: ParameterTaps, expected: Iterable[Accumulator]) -> None:
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

    def missing(self, fired: set[Accumulator]) -> list[dict[str, str]]:
        """One entry {tap, site, reason} for everything that should have been seen and was not."""
        hooked = any(cell.tap == "activation" for cell in fired)
        with self._lock:
            unseen = None if hooked else self._reasons.get(("forward", ""))
        silent = NOT_CALLED if hooked else unseen or COMPILED
        expected = [cell for cell in self._expected if cell not in fired and not self._early(cell)]
        out = [self._entry(cell, silent, unseen) for cell in expected]
        for site in self._sites:
            if site.attention_like and site.bracket is not None:
                out += self._attention(site, fired, unseen)
        return out

    def _early(self, cell: Accumulator) -> bool:
        return cell.tap == "update" and self._parameters.awaits_phase(cell.site)

    def _entry(self, cell: Accumulator, silent: str, unseen: str | None) -> dict[str, str]:
        fallback = {"activation": silent, "gradient": NO_GRADIENT, "weight": NO_GRADIENT, "update": NO_GRADIENT}
        whole = {LOSS: unseen or NO_LOSS, LOGITS: unseen or NO_LOGITS}
        reason = whole.get(cell, fallback.get(cell.tap, "it was never measured"))
        with self._lock:
            reason = self._reasons.get((cell.tap, cell.site), reason)
        return {"tap": cell.tap, "site": cell.site, "reason": reason}

    def _attention(self, site: Site, fired: set[Accumulator], unseen: str | None) -> list[dict[str, str]]:
        bracket = Accumulator("attention", site.name, "attention_bracket") in fired
        exact = Accumulator("attention", site.name, "attention_exact") in fired
        below = site.name + "."
        inner = any(c.tap == "attention" and c.site.startswith(below) for c in fired)
        if bracket or inner:
            return []
        with self._lock:
            why = self._reasons.get(("attention_bracket", site.name))
        if exact:
            why = why or NO_SAVED
            return [{"tap": "attention_bracket", "site": site.name, "reason": f"{why}; the exact value is on cadence"}]
        silent = ONE_CALL if site.flags.traced else NO_ATTENTION
        return [{"tap": "attention", "site": site.name, "reason": why or unseen or silent}]

    def unmeasurable(self, fired: set[Accumulator]) -> list[dict[str, str]]:
        """What cannot be measured in this run, by the reasons that the taps gave: no fault of its set-up."""
        shown = {(what, cell.site) for cell in fired for what in _answers(cell)}
        with self._lock:
            reasons = dict(self._reasons)
        return [
            {"tap": tap, "site": site, "reason": reason}
            for (tap, site), reason in reasons.items()
            if tap in OPTIONAL_TAPS and (tap, site) not in shown
        ]

    def report(self, fired: set[Accumulator]) -> dict[str, Any]:
        """The data of a `coverage` event."""
        seen = sorted({c.tap for c in fired})
        missing, unmeasured = self.missing(fired), self.unmeasurable(fired)
        return {"taps": seen, "fired": len(fired), "missing": missing, "unmeasured": unmeasured}


def _answers(cell: Accumulator) -> tuple[str, ...]:
    """The names under which a reason given before is void once this has fired."""
    if cell.reduction == "branch":  # from the forward alone: the rest of its tap may still be missing
        return (cell.reduction,)
    return cell.tap, cell.reduction

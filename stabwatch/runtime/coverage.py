"""What was measured and what was not, and why: nothing is missing without a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.reasons import Reasons
from stabwatch.hooks.base.run_accumulators import LOGITS, LOSS
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.probes.activation import ACTIVATION, NO_ELEMENTS, OUTSIDE
from stabwatch.hooks.probes.attention import BRACKET, EXACT, SOFTMAX
from stabwatch.hooks.probes.layers import CHANGE, GRADIENT, TAKEN, WEIGHT, ParameterTaps
from stabwatch.hooks.probes.row_sums import ROW_SUM
from stabwatch.hooks.probes.writer import BRANCH
from stabwatch.runlog import Accumulator
from stabwatch.signals import CATALOGUE

REPORT_AFTER = 8
"""Records after which the coverage is reported; some places may be measured for the first time later."""

COMPILED = (
    "no hook ran: the model was compiled and called before `attach`, or it is not the model that is trained. "
    "Call `stabwatch.attach` before the first compiled call, or `torch.compiler.reset()` after it"
)
REPLICA = "replica"
"""The comparison of ranks, which is no probe."""
DIRECT = (
    "no call of it is seen, though its parameters get gradients: they are used directly or by another module, its "
    "`forward` is called directly, or it was compiled before `attach`"
)
NOT_CALLED = "this module was not called in the training forward (its parameters may be used directly)"
HOLDER = "it was not called itself in the training forward: parts of it were"
IDLE = "no call of it was seen in the training forward, and none of its parameters is trained"
ONLY_ROOT = (
    "the model was called, but none of its modules in a way that hooks see: their `forward` is called directly, their "
    "parameters are used by functions, or the model was compiled and called before `attach`"
)
NO_LOSS = (
    "no backward pass to this model's parameters, no `.loss` on its output and no cross_entropy was seen; use "
    "`watch.log(loss=...)`"
)
OTHER_LOSS = (
    "the trained loss is not the cross-entropy: another term, weight or label smoothing makes them differ by more than "
    "5 %. `loss` is what is trained on, `token_loss` the cross-entropy"
)
NO_LOGITS = "no call of `cross_entropy` was seen in training steps"
NO_GRADIENT = "no optimizer step updated these parameters"
EMPTY = "its parameters have no elements"
FROZEN = "its parameters are frozen (requires_grad is False)"
NO_ATTENTION = "this module looks like attention, but no call of `scaled_dot_product_attention` or `softmax` was seen"
IN_CHECKPOINT = (
    "inside a compiled graph it is part of an activation checkpoint, which is computed again in the backward: nothing "
    "is measured there"
)
NO_CLASSES = (
    "no call of `cross_entropy` was seen: this loss has no logits (a regression, say), or computes its cross-entropy "
    "without it"
)
ONE_CALL = (
    "no attention call was seen: inside a compiled graph that of nn.MultiheadAttention is a single call of the "
    "compiler's own"
)
NO_SAVED = "inside a compiled graph there is no saved logsumexp"
MHA = "nn.MultiheadAttention applies its output projection as a function, for which there is no hook"
GRAPH = "it is part of a graph (torch.export, torch.fx) that uses its parameters and does not call it"
SCRIPTED = "it is TorchScript: the modules in it run as one graph, and no hook of theirs is called"
NO_SATURATION = (
    "no activation module that saturates was found; one that is called as a function, or inside a fused kernel, is not "
    "seen"
)

NO_NORM = (
    "the norm of all gradients is not known, as that of some layers is not (see there); where gradients are clipped, "
    "`gradient_norm_before_clip` is"
)
"""Why a run has no `gradient_norm`."""
FAILED = "attaching failed: see the log of the training process"
COPIED = "this watch was copied with what holds it, into another process or a checkpoint: a copy watches nothing"


def unattached(copied: bool) -> dict[str, Any]:
    """The report of a watch that was never attached."""
    missing = [{"tap": "attach", "site": "", "reason": COPIED if copied else FAILED}]
    return {"taps": [], "fired": 0, "unmeasured": [], "notes": [], "missing": missing}


class Coverage:
    """Compares what was measured with what should have been.

    failure: says of a probe by name where it failed, None if it did not. is_left: whether another rank measures it.
    called: has the model itself been called in training?
    """

    def __init__(
        self,
        sites: Iterable[Site],
        parameters: ParameterTaps,
        expected: Iterable[Accumulator],
        probes: Iterable[Probe],
        reasons: Reasons,
        failure: Callable[[str], str | None] = lambda probe: None,
        is_left: Callable[[Accumulator], bool] = lambda accumulator: False,
        called: Callable[[], bool] = lambda: False,
    ) -> None:
        self._called = called
        self._is_left = is_left
        self._sites = tuple(sites)
        self._by_name = {site.name: site for site in self._sites}
        self._expected = tuple(expected)
        self._parameters = parameters
        self._reasons = reasons
        self._failure = failure
        self._optional = {probe.report_key for probe in probes if probe.optional}
        for layer in parameters.too_large:
            reasons.note(CHANGE.tap, layer, "its parameters do not fit into `update_bytes`")

    def missing(self, fired: set[Accumulator]) -> list[dict[str, str]]:
        """One entry {tap, site, reason} for everything that should have been measured and was not."""
        hooked, unseen = _hooked(fired), self._unseen(fired)
        not_called = NOT_CALLED if hooked else unseen or (ONLY_ROOT if self._called() else COMPILED)
        no_logits = {LOGITS} if self._has_no_classes(fired) else set()
        left_out = fired | no_logits | self._unsummed() | set(self._direct(fired)) | self._empty(fired)
        expected = [a for a in self._expected if a not in left_out and not self._early(a) and not self._is_left(a)]
        out = [self._entry(a, not_called, unseen) for a in expected]
        for site in self._sites:
            if site.attention_like and site.bracket is not None:
                out += self._attention(site, fired, unseen)
        return out

    def _direct(self, fired: set[Accumulator]) -> dict[Accumulator, str]:
        """Outputs that are not seen though nothing is wrong with the set-up; and why."""
        seen = [a.site for a in fired if a.tap == ACTIVATION.tap]
        hooked, out = bool(seen) or self._called(), {}
        for site in self._sites:
            output = ACTIVATION.accumulator(site.name)
            if site.activation is not None and output not in fired:
                parts = any(name.startswith(f"{site.name}.") for name in seen)
                why = self._no_output(site, parts, hooked, GRADIENT.accumulator(site.name) in fired)
                out.update({output: why} if why else {})
        return out

    def _empty(self, fired: set[Accumulator]) -> set[Accumulator]:
        """Accumulators of layers whose parameters have no elements."""
        of_layers = {a for a in self._expected if a.tap in (GRADIENT.tap, WEIGHT.tap, CHANGE.tap)} - fired
        empty = {layer for layer in {a.site for a in of_layers} if self._parameters.is_empty(layer)}
        return {a for a in of_layers if a.site in empty}

    def _no_output(self, site: Site, parts: bool, hooked: bool, trained: bool) -> str | None:
        """Why the output of a module is not seen, where that is no fault of the set-up; None where it may be one.

        parts: modules inside of it were called. hooked: calls are seen at all. trained: its parameters have gradients.
        """
        noted, module = self._reasons.get(ACTIVATION.tap, site.name), site.module()
        if noted in (OUTSIDE, NO_ELEMENTS) or (noted == GRAPH and trained):
            return noted
        if noted is not None or not hooked or module is None:
            return None
        if parts:
            return HOLDER
        if trained and not module._modules:
            return DIRECT
        parameters = list(module.parameters())
        return IDLE if parameters and not any(p.requires_grad for p in parameters) else None

    def _unseen(self, fired: set[Accumulator]) -> str | None:
        """Why no forward of the model was measured; None where one was, or where nothing is known."""
        return None if _hooked(fired) else self._reasons.get("forward", "")

    def _has_no_classes(self, fired: set[Accumulator]) -> bool:
        """A loss was seen and no logits, though nothing kept them from being seen: a regression, for example."""
        return LOSS in fired and LOGITS not in fired and not self._unseen(fired)

    def _early(self, accumulator: Accumulator) -> bool:
        return accumulator.tap == CHANGE.tap and self._parameters.awaits_phase(accumulator.site)

    def _entry(self, accumulator: Accumulator, not_called: str, unseen: str | None) -> dict[str, str]:
        site = self._by_name.get(accumulator.site)
        if site is not None and site.in_subgraph:
            not_called = IN_CHECKPOINT
        of_layer = dict.fromkeys(("gradient", "weight", "update"), self._no_step(accumulator.site))
        by_tap = {"activation": not_called, **of_layer}
        by_tap["gradient"] = self._reasons.get(TAKEN, "") or by_tap["gradient"]
        of_run = {LOSS: unseen or NO_LOSS, LOGITS: unseen or NO_LOGITS}
        reason = of_run.get(accumulator, by_tap.get(accumulator.tap, "it was never measured"))
        probe = PROBES.find(accumulator.tap, accumulator.reduction)
        failure = self._failure(probe.name) if probe is not None else None
        reason = failure or self._reasons.get(accumulator.tap, accumulator.site) or reason
        return {"tap": accumulator.tap, "site": accumulator.site, "reason": reason}

    def _no_step(self, layer: str) -> str:
        """Why nothing of the parameters of a layer was measured."""
        if layer not in self._parameters.layers:
            return NO_GRADIENT
        if self._parameters.is_frozen(layer):
            return FROZEN
        return NO_GRADIENT

    def _attention(self, site: Site, fired: set[Accumulator], unseen: str | None) -> list[dict[str, str]]:
        """Why nothing is known of a module that looks like attention, unless it or a part of it was seen.

        A module inside of attention that was seen is a part of it. Calls of a shared one are those of who called it.
        """
        seen = {a.site for a in fired if a.tap == BRACKET.tap and a.reduction != ROW_SUM.reduction.name}
        around = {outer.name for outer in site.around() if outer.attention_like or site.shared}
        if any(name == site.name or name.startswith(site.name + ".") for name in seen) or around & seen:
            return []
        why = self._reasons.get(BRACKET.report_key, site.name) or unseen or self._no_call(site, fired)
        return [{"tap": BRACKET.tap, "site": site.name, "reason": why}]

    def _no_call(self, site: Site, fired: set[Accumulator]) -> str:
        """Why no call of attention was seen in a module, where the model's forward was."""
        if site.in_subgraph:
            return IN_CHECKPOINT
        if site.activation is not None and ACTIVATION.accumulator(site.name) not in fired:
            return NOT_CALLED
        noted = self._reasons.get(SOFTMAX, site.name)
        return noted or (ONE_CALL if site.flags.traced else NO_ATTENTION)

    def unmeasurable(self, fired: set[Accumulator]) -> list[dict[str, str]]:
        """What this model cannot show, by the reasons that the hooks noted: no fault of its set-up."""
        measured = {(what, a.site) for a in fired for what in _answers(a)}
        out = [
            {"tap": what, "site": site, "reason": reason}
            for (what, site), reason in self._reasons.all().items()
            if what in (*self._optional, REPLICA) and (what, site) not in measured
        ]
        if self._has_no_classes(fired):
            out.append({"tap": LOGITS.tap, "site": "", "reason": self._reasons.get(LOGITS.tap, "") or NO_CLASSES})
        out += [{"tap": a.tap, "site": a.site, "reason": why} for a, why in self._direct(fired).items()]
        empty = sorted(self._empty(fired), key=lambda a: (a.site, a.tap))
        out += [{"tap": a.tap, "site": a.site, "reason": EMPTY} for a in empty]
        unsummed = sorted(self._unsummed(), key=lambda a: a.site)
        out += [{"tap": a.tap, "site": a.site, "reason": self._parameters.unsummed[a.site]} for a in unsummed]
        out += [{"tap": unsummed[0].tap, "site": "", "reason": NO_NORM}] if unsummed else []
        return out + [self._no_bracket(site) for site in self._sites if self._exact_only(site, fired)]

    def _unsummed(self) -> set[Accumulator]:
        """Gradients of which each rank has a summand that is not added up; the norm of all is not known then either."""
        return {GRADIENT.accumulator(layer) for layer in self._parameters.unsummed}

    def _exact_only(self, site: Site, fired: set[Accumulator]) -> bool:
        return EXACT.accumulator(site.name) in fired and BRACKET.accumulator(site.name) not in fired

    def _no_bracket(self, site: Site) -> dict[str, str]:
        reason = self._reasons.get(BRACKET.report_key, site.name) or NO_SAVED
        return {"tap": BRACKET.report_key, "site": site.name, "reason": f"{reason}; the exact value is on cadence"}

    def report(self, fired: set[Accumulator]) -> dict[str, Any]:
        """The data of a `coverage` event."""
        seen = sorted({c.tap for c in fired})
        missing, unmeasured = self.missing(fired), self.unmeasurable(fired)
        notes = [{"tap": site, "reason": text} for (what, site), text in self._reasons.all().items() if what == "note"]
        return {"taps": seen, "fired": len(fired), "missing": missing, "unmeasured": unmeasured, "notes": notes}


def _hooked(fired: set[Accumulator]) -> bool:
    return any(accumulator.tap == "activation" for accumulator in fired)


def _answers(accumulator: Accumulator) -> tuple[str, ...]:
    """The names in reports under which an earlier reason is void once this has been measured."""
    if accumulator.reduction == BRANCH.reduction.name:  # needs the forward only: the rest of its tap may be missing
        return (accumulator.reduction,)
    return accumulator.tap, accumulator.reduction


def not_in_graph(probes: Iterable[Probe]) -> str:
    """Which signals compiled graphs do not measure, for the report. Attention brackets have a reason of their own."""
    missing = [probe for probe in probes if not probe.measured_in_graph and probe is not BRACKET]
    names = sorted(signal.name for probe in missing for signal in CATALOGUE.at(*probe.key))
    return f"inside a compiled graph these signals are not measured: {', '.join(names)}"


def summary(missing: list[dict[str, str]], fired: Iterable[Accumulator]) -> str:
    """One sentence about what is missing. A place is one tap at one site; `fired` is what was measured."""
    lost = {(entry["tap"], entry["site"]) for entry in missing}
    places = lost | {(a.tap, a.site) for a in fired if a.tap != "host"}
    first = missing[0]
    where = f"`{first['tap']}`" + (f" of `{first['site']}`" if first["site"] else "")
    return (
        f"nothing is measured for {len(lost)} of {len(places)} place{'s' * (len(places) > 1)}, "
        f"{'first ' * (len(lost) > 1)}{where}: {first['reason']}."
    )

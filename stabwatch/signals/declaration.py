"""The declaration of a signal, from which its metric, help, docs row, panel and contract tests are derived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from stabwatch.signals.formulas import ARITY, FORMULAS
from stabwatch.signals.reductions import REDUCTIONS

Scope = Literal["run", "layer"]
Kind = Literal["gauge", "counter"]
Tier = Literal["always", "sampled", "deep"]
TIERS: tuple[Tier, ...] = get_args(Tier)
Worst = Literal["max", "min"]

TAPS = (
    "activation", "activation_gradient", "linear", "residual", "skip", "loop", "writer", "nonlinearity",
    "attention", "router", "expert", "combine", "codebook", "probe", "logits", "loss", "token_loss", "gradient",
    "group", "weight", "matrix", "update", "matrix_update", "query_key", "quantiser", "adapter", "optimizer",
    "step", "sharpness", "jacobian", "host", "logged", "policy", "policy_reference", "policy_old", "policy_rollout",
    "advantage", "rank_busy", "rank_loss", "rank_loss_low", "rank_nonfinite", "replica",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One signal: a formula over the accumulated fields of one reduction at one kind of tap.

    name: Prometheus name without the `stabwatch_` prefix.
    help: one sentence, ends with a full stop.
    unit: base unit for displays and panels ('1' for a plain number, 'ratio', 'nat', 'seconds', 'bytes', 'dB').
    tap: where the tensor is observed. reduction, fields: what is accumulated. formula: computes the value from it.
    scope: 'layer' for one series per site; 'run' for one series over all sites of the tap.
    tier: how often it is measured (see `stabwatch.runtime.governor`).
    worst: which extreme of a window is bad, and is exported beside the last value.
    source: paper or code that defines it.
    """

    name: str
    help: str
    unit: str
    tap: str
    reduction: str
    fields: tuple[str, ...]
    formula: str
    scope: Scope = "layer"
    kind: Kind = "gauge"
    tier: Tier = "sampled"
    worst: Worst = "max"
    source: str = ""

    def __post_init__(self) -> None:
        assert self.tap in TAPS, f"{self.name}: no tap is called {self.tap!r}; taps: {TAPS}"
        assert self.help.endswith("."), f"{self.name}: help ends with a full stop"
        known = [f.name for f in REDUCTIONS[self.reduction].fields]
        assert set(self.fields) <= set(known), f"{self.name}: {self.fields} not all in {known}"
        assert self.formula in FORMULAS, f"{self.name}: no formula is called {self.formula!r}"
        wanted = ARITY.get(self.formula, (len(self.fields),))
        assert len(self.fields) in wanted, f"{self.name}: {self.formula} reads {wanted} fields, not {self.fields}"
        assert (self.kind == "counter") == self.name.endswith("_total"), f"{self.name}: counters end with _total"

    @property
    def metric(self) -> str:
        """Name on /metrics; `watch.log` gives a number its own name in place of `<name>`."""
        return "stabwatch_logged_<name>" if self.tap == "logged" else f"stabwatch_{self.name}"

    @property
    def label(self) -> str:
        """The label that holds the site of a series; empty for a signal of the run."""
        return "" if self.scope == "run" else {"group": "group", "logged": "name"}.get(self.tap, "layer")


class Catalogue:
    """Signals by name, in the order of registration."""

    def __init__(self) -> None:
        self._signals: dict[str, Signal] = {}

    def register(self, signal: Signal) -> Signal:
        """Add a signal. Raises ValueError when the name is taken."""
        if signal.name in self._signals:
            raise ValueError(f"A signal called `{signal.name}` is registered already.")
        self._signals[signal.name] = signal
        return signal

    def remove(self, name: str) -> None:
        """Remove a signal."""
        del self._signals[name]

    def __getitem__(self, name: str) -> Signal:
        try:
            return self._signals[name]
        except KeyError:
            raise KeyError(f"No signal is called `{name}`. Known signals: {', '.join(self._signals)}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._signals

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._signals.values())

    def __len__(self) -> int:
        return len(self._signals)

    def at(self, tap: str, reduction: str) -> tuple[Signal, ...]:
        """All signals that read one reduction at one kind of tap."""
        return tuple(s for s in self if s.tap == tap and s.reduction == reduction)

"""Synthetic records: series by name and value into slots, None for a point that was not measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout, host_accumulator

Values = Sequence[float | None]


@dataclass(frozen=True)
class Scenario:
    """A rule's run. calm and bad: values of one series, healthy ones and such on which the rule fires.

    beside: what other series show all the while, at every step or by step. from_start: the bad values are the first of
    the run.
    """

    series: str
    calm: list[float]
    bad: list[float]
    beside: dict[str, float | Callable[[int], float]] = field(default_factory=dict)
    from_start: bool = False

    @property
    def healthy(self) -> tuple[list[float], ...]:
        """A run in which nothing goes wrong."""
        return (self.calm,)

    @property
    def broken(self) -> tuple[list[float], ...]:
        """A run that goes wrong: calm values before the bad ones, if any."""
        return (self.bad,) if self.from_start else (self.calm, self.bad)


CELLS = {
    "loss": Accumulator("loss", "", "mean"),
    "gradient_norm": Accumulator("gradient", "", "clip"),
    "logits": Accumulator("logits", "", "logsumexp"),
    "learning_rate": host_accumulator("learning_rate"),
    "skipped": host_accumulator("skipped_steps_total"),
    "kept": host_accumulator("gradients_kept_ratio"),
    "written": host_accumulator("weights_rewritten_ratio"),
    "clip_limit": host_accumulator("clip_limit"),
    "clip_value": host_accumulator("clip_value"),
    "number_mean": host_accumulator("compared_mean"),
    "number_deviation": host_accumulator("compared_deviation"),
    "spread": host_accumulator("output_spread_ratio"),
    "target_size": host_accumulator("target_size_ratio"),
    "target_rms": host_accumulator("target_rms"),
    "one_label": Accumulator("logits", "", "targets"),
    "clip_late": host_accumulator("clip_late_ratio"),
    "thrown": host_accumulator("gradients_thrown_ratio"),
    "unchanged": host_accumulator("weights_unchanged_ratio"),
    "scrambled": host_accumulator("logits_scrambled_ratio"),
    "overlap": host_accumulator("overlap_of_logits_ratio"),
    "span": host_accumulator("input_span_ratio"),
    "derivative": host_accumulator("derivative_zero_ratio"),
    "class_weight": host_accumulator("class_weight_ratio"),
    "decay": host_accumulator("weight_decay_ratio"),
    "units": host_accumulator("units_alike_ratio"),
    "mixed": host_accumulator("samples_mixed_ratio"),
    "untrained": host_accumulator("output_layer_untrained"),
    "linear": host_accumulator("linear_layers"),
    "fit": host_accumulator("error_to_variance_ratio"),
    "compared": host_accumulator("compared_loss"),
    "by_program": host_accumulator("weights_written"),
    "unreachable": host_accumulator("target_unreachable_ratio"),
    "wanted": host_accumulator("wanted_deviation"),
    "scaled_step": host_accumulator("scaled_step_ratio"),
    "bare_terms": host_accumulator("loss_terms_unscaled"),
    "broadcast": host_accumulator("loss_broadcast_factor"),
    "out_of_range": host_accumulator("target_out_of_range_ratio"),
    "binary": host_accumulator("binary_probability_ratio"),
    "off": host_accumulator("log_probability_off_ratio"),
    "alike": host_accumulator("input_alike_ratio"),
    "input": host_accumulator("input_rms"),
    "refrozen": host_accumulator("refrozen_ratio"),
    "token_loss": Accumulator("token_loss", "", "mean"),
    "repeated": host_accumulator("batch_repeated"),
    "acted": host_accumulator("calls_without_gradient"),
    "restarted": host_accumulator("loader_restarted"),
    "redrawn": host_accumulator("random_numbers_repeated"),
    "shift": host_accumulator("batch_shift_ratio"),
    "opposed": host_accumulator("opponent_steps"),
    "forwards": host_accumulator("forward_passes"),
    "passes": host_accumulator("backward_passes"),
    "leak": host_accumulator("target_in_input_ratio"),
    "second_token": Accumulator("logits", "", "token_order"),
    "own_token": Accumulator("logits", "", "token_order"),
    "open_token": Accumulator("logits", "", "token_order"),
    "seen_token": Accumulator("logits", "", "token_order"),
    "common_token": Accumulator("logits", "", "token_order"),
    "text_end": Accumulator("logits", "", "text_end"),
    "ignored": Accumulator("logits", "", "targets"),
    "label_mean": Accumulator("logits", "", "targets"),
    "ten_classes": Accumulator("logits", "", "targets"),
    "probability": Accumulator("logits", "", "logit_form"),
    "cut": Accumulator("logits", "", "logit_form"),
    "evaluating": host_accumulator("evaluation_mode_ratio"),
    "validated": host_accumulator("validation_in_training_ratio"),
    "dropping": host_accumulator("dropout_in_evaluation"),
    "resets": host_accumulator("optimizer_resets_total"),
    "step_seconds": host_accumulator("step_seconds"),
    "speed": host_accumulator("samples_per_second"),
    "busy": Accumulator("rank_busy", "", "rank_spread"),
    "rank_loss": Accumulator("rank_loss", "", "rank_spread"),
    "ranks_alike": Accumulator("rank_loss", "", "host"),
    "loss_of_all": Accumulator("rank_loss", "", "rank_spread"),
    "loss_of_others": Accumulator("rank_loss", "", "rank_spread"),
    "lowest_rank": Accumulator("rank_loss_low", "", "rank_spread"),
    "busy_host": Accumulator("rank_busy", "", "rank_spread"),
    "loss_scale": host_accumulator("loss_scale"),
    "radius": Accumulator("step", "", "taylor"),
}
LAYERED = {
    "lower": "attention_bracket",
    "exact": "attention_exact",
    "activation": "moments",
    "gradient": "moments",
    "update": "update",
    "weight": "moments",
    "flow": "moments",
    "tokens": "tokens",
    "adam": "adam",
    "epsilon": "adam",
    "collapse": "certainty",
    "router": "router",
    "dead": "units",
    "saturated": "saturation",
    "entropy": "attention_entropy",
    "growth": "depth",
    "loop": "loop_gain",
    "backward": "depth",
    "drift": "drift",
    "dropped": "dropped",
    "codes": "codes",
    "zeros": "precision",
    "exponents": "exponents",
    "spectrum": "spectrum",
    "replica": "replica",
    "lost": "update_lost",
    "missing": "reach",
    "parted": "reach",
    "unheld": "reach",
    "unregistered": "reach",
    "logged": "mean",
}
_TAPS = {
    "lower": "attention",
    "exact": "attention",
    "flow": "gradient",
    "tokens": "residual",
    "adam": "optimizer",
    "epsilon": "optimizer",
    "collapse": "logits",
    "dead": "writer",
    "saturated": "nonlinearity",
    "entropy": "attention",
    "growth": "residual",
    "loop": "loop",
    "backward": "activation_gradient",
    "drift": "probe",
    "dropped": "router",
    "codes": "codebook",
    "zeros": "gradient",
    "exponents": "gradient",
    "spectrum": "matrix",
    "lost": "update",
    "missing": "gradient",
    "parted": "gradient",
    "unheld": "gradient",
    "unregistered": "gradient",
}


_CAUSAL = {"open": 0.0, "causal": 1.0, "common": 0.1}


def accumulator(name: str) -> Accumulator:
    """'loss', 'lower blocks.0', 'activation blocks.1', ... to the cell that shows it."""
    if name in CELLS:
        return CELLS[name]
    kind, _, layer = name.partition(" ")
    return Accumulator(_TAPS.get(kind, kind), layer, LAYERED[kind])


def fields(name: str, value: NDArray[np.float64]) -> dict[str, NDArray[np.float64] | float]:
    """The aggregates of measured points, as the kernels leave them: sums and maxima of what is finite."""
    kind = name.partition(" ")[0]
    finite = np.isfinite(value)
    bad = 1.0 - finite
    peak, size = np.where(finite, value, -np.inf), np.where(finite, value, 0.0)
    return {
        "loss": {"sum": value, "nonfinite": bad},
        "gradient_norm": {"sumsq": value * value, "nonfinite": bad},
        "logits": {"sum": size, "sumsq": size * size, "nonfinite": bad, "max": peak},
        "learning_rate": {"last": value},
        "logged": {"sum": value, "nonfinite": bad},
        "skipped": {"sum": value},
        "kept": {"last": value},
        "written": {"last": value},
        "clip_limit": {"last": value},
        "clip_value": {"last": value},
        "number_mean": {"last": value},
        "number_deviation": {"last": value},
        "clip_late": {"last": value},
        "thrown": {"last": value},
        "unchanged": {"last": value},
        "scrambled": {"last": value},
        "overlap": {"last": value},
        "class_weight": {"last": value},
        "span": {"last": value},
        "derivative": {"sum": value},
        "decay": {"last": value},
        "units": {"last": value},
        "mixed": {"last": value},
        "untrained": {"last": value},
        "linear": {"last": value},
        "fit": {"sum": value},
        "compared": {"sum": value},
        "by_program": {"last": value},
        "unreachable": {"last": value},
        "wanted": {"last": value},
        "target_size": {"last": value},
        "spread": {"sum": value},
        "target_rms": {"last": value},
        "one_label": {"ignored": 0.0, "known": 32.0, "sum": 16.0, "sumsq": 8 + 32 * value**2, "classes": 10.0},
        "scaled_step": {"last": value},
        "bare_terms": {"last": value},
        "restarted": {"last": value},
        "redrawn": {"last": value},
        "passes": {"last": value},
        "repeated": {"last": value},
        "acted": {"last": value},
        "opposed": {"last": value},
        "shift": {"last": value},
        "forwards": {"last": value},
        "leak": {"sum": value},
        "second_token": {
            "own": 0.1,
            "following": 1 - value,
            "second": value,
            "open": 0.0,
            "causal": 1.0,
            "common": 0.1,
            "read": 1.0,
        },
        "own_token": {
            "own": value,
            "following": 1 - value,
            "second": 0.1,
            "open": 0.0,
            "causal": 1.0,
            "common": 0.1,
            "read": 1.0,
        },
        "text_end": {"taught": 8 * value},
        "common_token": {
            "own": 0.1,
            "following": np.where(finite, 1.0, np.nan),
            "second": 0.1,
            "open": 0.0,
            "causal": 1.0,
            "common": value,
            "read": 1.0,
        },
        "seen_token": {
            "own": value,
            "following": 0.2,
            "second": 0.1,
            "open": 1.0,
            "causal": 0.0,
            "common": 0.1,
            "read": 1.0,
        },
        "open_token": {
            "own": 0.1,
            "following": np.where(finite, 1.0, np.nan),
            "second": 0.1,
            "open": value,
            "causal": 1 - value,
            "common": 0.1,
            "read": 1.0,
        },
        "broadcast": {"last": value},
        "out_of_range": {"last": value},
        "binary": {"last": value},
        "off": {"last": value},
        "alike": {"last": value},
        "input": {"last": value},
        "refrozen": {"last": value},
        "token_loss": {"sum": value, "nonfinite": bad},
        "ignored": {"ignored": value, "known": 1 - value, "sum": 0.0, "sumsq": 0.0, "classes": 10.0},
        "label_mean": {"ignored": 0.0, "known": 32.0, "sum": 32 * value, "sumsq": 32 * value**2 + 0.3, "classes": 10.0},
        "ten_classes": {"ignored": 0.0, "known": 32.0, "sum": 16.0, "sumsq": 10.0, "classes": 10.0},
        "probability": {"probability": value, "cut": 0.0, "known": 1.0, "gap": 0.0},
        "cut": {"probability": 0.0, "cut": value, "known": 1.0, "gap": 0.0},
        "lost": {"same": value},
        "evaluating": {"last": value},
        "validated": {"last": value},
        "dropping": {"last": value},
        "resets": {"sum": value},
        "missing": {"missing": value, "unheld": 0.0, "unregistered": 0.0, "lost": 0.0, "total": 2.0},
        "parted": {"missing": 0.0, "unheld": 0.0, "unregistered": 0.0, "lost": value, "total": 2.0},
        "unheld": {"missing": 0.0, "unheld": value, "unregistered": 0.0, "lost": 0.0, "total": 2.0},
        "unregistered": {"missing": 0.0, "unheld": 0.0, "unregistered": value, "lost": 0.0, "total": 2.0},
        "step_seconds": {"last": value},
        "speed": {"last": value},
        "busy": {"count": 2.0, "sum": value + 0.1, "max": value, "rank": 2.0, "min": 0.1},
        "replica": {"max": value, "rank": 5.0},
        "rank_loss": {"sum": value + 2, "max": value, "rank": 3.0, "min": 2.0},
        "ranks_alike": {"last": value},
        "loss_of_all": {"sum": 2 * value, "max": value, "rank": 0.0, "min": value},
        "loss_of_others": {"count": 4.0, "sum": 3 * value + 2, "max": 1.01 * value, "rank": 3.0, "min": 2.0},
        "lowest_rank": {"count": 4.0, "sum": -6.0, "max": -2.0, "rank": value, "min": -3.0},
        "busy_host": {
            "count": 8.0,
            "sum": 2 * value + 0.6,
            "max": value,
            "rank": 2.0 + (value == 0.71),
            "min": 0.1,
        },
        "loss_scale": {"last": value},
        "radius": {"sum": 0.5, "beyond": value, "max": 0.5, "step": 1.0},
        "lower": {"lse_sumsq": 1.0, "nonfinite": bad, "upper": peak + 5, "head": 0.0, "lower": peak},
        "exact": {"nonfinite": bad, "max": peak, "head": 0.0},
        "activation": {"sumsq": size * size, "nonfinite": bad, "abs_max": size},
        "gradient": {"sumsq": 1.0, "nonfinite": value, "abs_max": 1.0},
        "update": {"update_sumsq": value * value, "weight_sumsq": 1.0},
        "weight": {"sumsq": value * value, "nonfinite": 0.0, "abs_max": value},
        "flow": {"sumsq": value * value, "nonfinite": 0.0, "abs_max": value},
        "tokens": {"cosine": value, "mean_sumsq": 1.0, "centred_sumsq": 1.0},
        "adam": {"step_sumsq": value * value, "stale": 0.0},
        "epsilon": {"step_sumsq": 0.01, "stale": value},
        "collapse": {"collapsed": value},
        "router": {"entropy": 1.0, "lse_sumsq": 1.0, "violation": value},
        "dead": {"dead": value},
        "saturated": {"saturated": value, "units": 1.0, "stuck": value},
        "entropy": {"entropy": value, "sharpest": -value, "head": 0.0},
        "growth": {"rise": value, "spread": 1.0},
        "loop": {"sumsq": value**2, "first_count": 1.0, "first_sumsq": 1.0},
        "backward": {"rise": value, "spread": 1.0},
        "exponents": {"sum": -20.0, "sumsq": 400.0, "subnormal": value},
        "spectrum": {"sumsq": 64.0, "first": value, "second": 0.5, "residual": 0.0},
        "drift": {"drift": value, "coherence": 0.0},
        "dropped": {"dropped": value},
        "codes": {"unused": value, "looked": 50.0},
        "zeros": dict.fromkeys(
            ("fp16_lost", "fp16_saturated", "e4m3_lost", "e5m2_lost", "mxfp4_lost", "nvfp4_lost"), 0.0
        )
        | {"zeros": value},
    }[kind]


def around(beside: Mapping[str, float | Callable[[int], float]], first: int, length: int) -> dict[str, Values]:
    """What other series show meanwhile: a constant each, or a function of the step."""
    steps = range(first, first + length)
    return {name: [value(i) if callable(value) else value for i in steps] for name, value in beside.items()}


@functools.cache
def _layout(accumulators: tuple[Accumulator, ...]) -> RecordLayout:
    """One for all records of a kind, as in a segment of a log: an engine binds to each new layout."""
    return RecordLayout.build(accumulators)


def block(series: dict[str, Values], first: int = 0, layout: RecordLayout | None = None) -> RecordBatch:
    """Records at consecutive steps, a second apart."""
    layout = layout or _layout(tuple(map(accumulator, series)))
    length = max((len(v) for v in series.values()), default=0)
    rows = np.full((length, layout.width), np.nan, np.float32)
    for name, values in series.items():
        start = layout.start(accumulator(name))
        names = [field for field, _ in layout.fields[layout.accumulators.index(accumulator(name))]]
        measured = [i for i, value in enumerate(values) if value is not None]
        aggregates = {"count": 1.0, **fields(name, np.array([values[i] for i in measured], np.float64))}
        for i, shown in enumerate(names):
            rows[measured, start + i] = aggregates[shown]
    steps = np.arange(first, first + length)
    return RecordBatch(layout, steps, 1000.0 + steps, rows)


def uneven(step: int) -> float:
    """A reward that differs from batch to batch and leads nowhere."""
    return 0.5 + 0.05 * (step * 7 % 5 - 2)


def wave(length: int, level: float = 3.0, noise: float = 0.05, seed: int = 0) -> list[float]:
    """A calm curve with some noise."""
    return list(level * (1 + noise * np.random.default_rng(seed).standard_normal(length)))

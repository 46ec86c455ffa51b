"""Reductions: the fields that each accumulates, and the operators that merge two accumulators.

An accumulator is one reduction of one tensor at one site. Its fields are merged by the operators declared here, and
only by those: over micro-batches, ranks, time windows and down-sampling. A mean is stored as (sum, count), never as a
mean of means. `count` is always the first field: an accumulator with a count of zero was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Op = Literal["sum", "max", "min", "arg"]
"""`arg` is the index of the maximum in the field before it; ties give the smaller index."""

EDGES = tuple(2.0 ** (i / 2 - 10) for i in range(33))
"""Half powers of two from 1/1024 to 64; quantiles are interpolated between two of them."""

IDENTITY: dict[Op, float] = {"sum": 0.0, "max": -np.inf, "min": np.inf, "arg": np.inf}
"""The identity of each operator, which is the content of an empty accumulator."""


@dataclass(frozen=True)
class Field:
    """One field of a reduction and its merge operator."""

    name: str
    op: Op


@dataclass(frozen=True)
class Reduction:
    """A named tuple of fields: `count` first, sums before maxima.

    ops: the operator of each field. sums: number of leading fields that are sums.
    """

    name: str
    fields: tuple[Field, ...]
    ops: tuple[Op, ...] = field(init=False, compare=False, repr=False)
    sums: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        ops = [f.op for f in self.fields]
        object.__setattr__(self, "ops", tuple(ops))
        object.__setattr__(self, "sums", ops.count("sum"))
        assert self.fields[0] == Field("count", "sum"), f"{self.name}: the first field must be the count"
        assert all(ops[i - 1] == "max" for i, op in enumerate(ops) if op == "arg"), f"{self.name}: arg follows max"
        assert ops == sorted(ops, key=lambda op: op != "sum"), f"{self.name}: sums come first"

    def index(self, field: str) -> int:
        """Position of a field in the accumulator."""
        return [f.name for f in self.fields].index(field)


_SUM: Op = "sum"


def _reduction(name: str, **ops: Op) -> Reduction:
    return Reduction(name, tuple(Field(field, op) for field, op in ops.items()))


MOMENTS = _reduction("moments", count="sum", sumsq="sum", nonfinite="sum", abs_max="max")
MEAN = _reduction("mean", count="sum", sum="sum", nonfinite="sum")
UPDATE = _reduction("update", count="sum", update_sumsq="sum", weight_sumsq="sum")
UPDATE_LOST = _reduction("update_lost", count="sum", same="sum")
LOGSUMEXP = _reduction("logsumexp", count="sum", sum="sum", sumsq="sum", nonfinite="sum", max="max")
ATTENTION_BRACKET = _reduction(
    "attention_bracket",
    count="sum", lse_sumsq="sum", nonfinite="sum", upper="max", head="arg", lower="max",
)  # fmt: skip
ATTENTION_EXACT = _reduction("attention_exact", count="sum", nonfinite="sum", max="max", head="arg")
ATTENTION_ENTROPY = _reduction("attention_entropy", count="sum", entropy="sum", sharpest="max", head="arg")
ATTENTION_SINK = _reduction(
    "attention_sink",
    count="sum", first="sum", largest="sum", effective="sum", heads="sum", sink_heads="sum",
)  # fmt: skip
ATTENTION_ROW_SUM = _reduction("attention_row_sum", count="sum", sum="sum", max="max", min="min")
ATTENTION_CONTRACTION = _reduction("attention_contraction", count="sum", sum="sum")
CLIP = _reduction("clip", count="sum", sumsq="sum", nonfinite="sum")
HOST = _reduction("host", count="sum", last="max")
HOST_COUNT = _reduction("host_count", count="sum", sum="sum")
RANK_SPREAD = _reduction("rank_spread", count="sum", sum="sum", max="max", rank="arg", min="min")
REPLICA = _reduction("replica", count="sum", max="max", rank="arg")
REPLICA_VALUES = _reduction(
    "replica_values",
    count="sum", checksums="sum", broken="sum", highest="max", highest_rank="arg", lowest="max", lowest_rank="arg",
    largest="max", largest_rank="arg", smallest="max", smallest_rank="arg",
)  # fmt: skip
"""Of checksums, and from `largest` on of sums of squares. lowest, smallest: minus it, which has a rank then."""
CHECKSUM = _reduction("checksum", count="sum", checksum="sum", sumsq="sum", nonfinite="sum")

SHAPE = _reduction("shape", count="sum", sumsq="sum", fourth="sum", outliers="sum")
TOKENS = _reduction("tokens", count="sum", cosine="sum", mean_sumsq="sum", centred_sumsq="sum")
GEOMETRY = _reduction("geometry", count="sum", sum="sum", sumsq="sum")
MEAN_MODE = _reduction("mean_mode", count="sum", mean_sumsq="sum", centred_sumsq="sum", whole_sumsq="sum", outer="sum")
UNITS = _reduction("units", count="sum", dead="sum")
SPECTRUM = _reduction("spectrum", count="sum", sumsq="sum", first="max", second="max", residual="max")
DIRECTION = _reduction("direction", count="sum", dot="sum", update_sumsq="sum", weight_sumsq="sum")
SUCCESSIVE = _reduction("successive", count="sum", dot="sum", update_sumsq="sum", last_sumsq="sum")
INVARIANCE = _reduction("invariance", count="sum", invariant="sum")
RADIAL = _reduction("radial", count="sum", update_sumsq="sum", radial_sumsq="sum", turned_sumsq="sum")
SCALING = _reduction("scaling", count="sum", cosine="sum")
DESCENT = _reduction("descent", count="sum", dot="sum", gradient_sumsq="sum", along_sumsq="sum")
GROUP = _reduction("group", count="sum", sumsq="sum")
BRANCH = _reduction("branch", count="sum", branch_sumsq="sum", trunk_count="sum", trunk_sumsq="sum")
DEPTH = _reduction("depth", count="sum", rise="sum", spread="sum")
LOOP_STEP = _reduction("loop_step", count="sum", change_sumsq="sum", sumsq="sum")
LOOP_GAIN = _reduction("loop_gain", count="sum", sumsq="sum", first_count="sum", first_sumsq="sum")
ADAPTER = _reduction(
    "adapter",
    count="sum", adapter_sumsq="sum", change_sumsq="sum", weight_sumsq="sum",
    first="max", weight_first="max", rank="max", scaling="max",
)  # fmt: skip
LEVELS = _reduction("levels", count="sum", near="sum")
FLIPS = _reduction("flips", count="sum", flipped="sum", oscillating="sum")
INCREMENT = _reduction(
    "increment",
    count="sum", rank="sum", change_sumsq="sum", product_sumsq="sum", entropies="sum", entropy="sum", least="min",
)  # fmt: skip
SHARPNESS = _reduction("sharpness", count="sum", trace="sum", ratio="max", value="max", residual="max")
ALIGNMENT = _reduction("alignment", count="sum", ratio="sum")
JACOBIAN = _reduction("jacobian", count="sum", sumsq="sum", value="sum", value_max="max", residual="max")
SATURATION = _reduction("saturation", count="sum", saturated="sum", units="sum", stuck="sum")
EXPONENTS = _reduction("exponents", count="sum", sum="sum", sumsq="sum", subnormal="sum")
DRIFT = _reduction("drift", count="sum", drift="sum", coherence="sum")
REGIME = _reduction("regime", count="sum", cosine="sum", rank="sum")
ADAM = _reduction("adam", count="sum", step_sumsq="sum", stale="sum")
PRECISION = _reduction(
    "precision",
    count="sum", zeros="sum", fp16_lost="sum", fp16_saturated="sum",
    e4m3_lost="sum", e5m2_lost="sum", mxfp4_lost="sum", nvfp4_lost="sum",
)  # fmt: skip
ROUNDING = _reduction(
    "rounding",
    count="sum", sumsq="sum", e4m3="sum", e5m2="sum", int8="sum", mxfp4="sum", nvfp4="sum", hif4="sum",
    fp4_ue5m3="sum", mxfp4_rotated="sum", nvfp4_rotated="sum", nvfp4_unscaled="sum",
    mxfp4_noise="sum", nvfp4_noise="sum",
)  # fmt: skip
TAYLOR = _reduction("taylor", count="sum", sum="sum", beyond="sum", max="max", step="max")
RADII = _reduction("radii", count="sum", **dict.fromkeys((f"from_{i}" for i in range(len(EDGES))), _SUM), max="max")
"""Number of ratios at or above the i-th edge."""
REACH = _reduction("reach", count="sum", missing="sum", unheld="sum", unregistered="sum", lost="sum", total="max")
CERTAINTY = _reduction("certainty", count="sum", collapsed="sum")
TARGETS = _reduction("targets", count="sum", ignored="sum", known="sum", sum="sum", sumsq="sum", classes="max")
LOG_RATIO = _reduction(
    "log_ratio",
    count="sum", k1="sum", k3="sum", absolute="sum", ratio="sum", ratio_sumsq="sum", clipped="sum",
    highest="max", lowest="max",
)  # fmt: skip
"""highest: the largest log ratio; lowest: minus the smallest."""
ADVANTAGE = _reduction("advantage", count="sum", sum="sum", sumsq="sum", zero="sum", abs_max="max")
TOKEN_ORDER = _reduction(
    "token_order",
    count="sum", own="sum", following="sum", second="sum", open="sum", causal="sum", common="sum", read="sum",
)  # fmt: skip
TEXT_END = _reduction("text_end", count="sum", taught="sum")
LOGIT_FORM = _reduction("logit_form", count="sum", probability="sum", cut="sum", known="sum", gap="sum")
CLASSES = _reduction("classes", count="sum", entropy="sum", max="max")
CODES = _reduction("codes", count="sum", unused="sum", looked="sum")
ROUTER = _reduction("router", count="sum", entropy="sum", lse_sumsq="sum", violation="max")
CAPACITY = _reduction("capacity", count="sum", overflow="sum")
DROPPED = _reduction("dropped", count="sum", dropped="sum")
LOAD = _reduction("load", count="sum", load="sum")
EXPERT = _reduction("expert", count="sum", sumsq="sum")
ROUTER_CHOICE = _reduction(
    "router_choice",
    count="sum", sumsq="sum", tokens="sum", margin="sum", calls="sum", gap="sum", similarity="sum", directions="sum",
)  # fmt: skip
COMBINE = _reduction("combine", count="sum", sumsq="sum", parts_sumsq="sum")

REDUCTIONS: dict[str, Reduction] = {
    r.name: r
    for r in (
        MOMENTS, MEAN, UPDATE, LOGSUMEXP, ATTENTION_BRACKET, ATTENTION_EXACT, ATTENTION_ENTROPY, CLIP, HOST, HOST_COUNT,
        SHAPE, TOKENS, GEOMETRY, MEAN_MODE, UNITS, SPECTRUM, DIRECTION, ADAM, TAYLOR, PRECISION, CERTAINTY, CLASSES,
        ROUTER, CAPACITY, DROPPED, LOAD, EXPERT, SUCCESSIVE, INVARIANCE, RADIAL, SCALING, DESCENT, GROUP, BRANCH, DEPTH,
        SATURATION, EXPONENTS, DRIFT, RANK_SPREAD, REPLICA, ATTENTION_CONTRACTION, RADII, REACH, TARGETS, LOGIT_FORM,
        UPDATE_LOST, CODES, LOG_RATIO, ADVANTAGE, TOKEN_ORDER, TEXT_END, LOOP_STEP, LOOP_GAIN, ADAPTER, ATTENTION_SINK,
        ATTENTION_ROW_SUM, REPLICA_VALUES, CHECKSUM,
        SHARPNESS, ROUTER_CHOICE, COMBINE, INCREMENT, ROUNDING, LEVELS, FLIPS, REGIME, JACOBIAN, ALIGNMENT,
    )
}  # fmt: skip


UFUNCS: dict[Op, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class MergeOperators:
    """Merges rows of accumulators, vectorised over a whole record layout.

    ops: one operator per column. accumulator_of: index of the accumulator of each column. Rows are float arrays of
    shape (..., columns), with NaN in every column of an accumulator that was not measured.
    """

    def __init__(self, ops: Sequence[Op], accumulator_of: Sequence[int]) -> None:
        self.ops = tuple(ops)
        self._columns = {op: np.array([i for i, o in enumerate(ops) if o == op], dtype=np.int64) for op in IDENTITY}
        self.identity = np.array([IDENTITY[op] for op in ops], dtype=np.float64)
        _, self._counts, self._accumulator = np.unique(
            np.asarray(accumulator_of, dtype=np.int64), return_index=True, return_inverse=True
        )

    def with_identity(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rows with the identity in every accumulator that was not measured."""
        return np.where(self._unmeasured(rows)[..., self._accumulator], self.identity, rows)

    def with_nan(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rows with NaN in every accumulator that was not measured, as in the run log."""
        return np.where(self._unmeasured(rows)[..., self._accumulator], np.nan, np.asarray(rows, dtype=np.float64))

    def merge(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Merge rows of shape (n, columns) into one of shape (columns,); NaN: not measured."""
        return self.merge_groups(rows, np.zeros(1, np.int64))[0] if len(rows) else np.full(len(self.ops), np.nan)

    def merge_groups(self, rows: NDArray[np.floating], starts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Merge groups of rows that begin at `starts` (ascending from 0): (n, columns) -> (len(starts), columns)."""
        unmeasured = self._unmeasured(rows)
        out = np.empty((len(starts), len(self.ops)), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            for op, function in UFUNCS.items():
                columns = self._columns[op]
                mine = np.take(rows, columns, axis=1).astype(np.float64)
                np.copyto(mine, IDENTITY[op], where=np.take(unmeasured, self._accumulator[columns], axis=1))
                out[:, columns] = function.reduceat(mine, starts, axis=0)
        sizes = np.diff([*starts, len(rows)])
        for column in self._columns["arg"]:
            empty = unmeasured[:, self._accumulator[column]]
            mine, index = np.where(empty, -np.inf, rows[:, column - 1]), np.where(empty, np.inf, rows[:, column])
            best = np.repeat(out[:, column - 1], sizes)
            winners = (mine == best) | (np.isnan(mine) & np.isnan(best))
            out[:, column] = np.minimum.reduceat(np.where(winners, index, np.inf), starts)
        return self.with_nan(out)

    def _unmeasured(self, rows: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each accumulator was not measured, (..., accumulators)."""
        counts = np.asarray(rows)[..., self._counts]
        return np.asarray(np.isnan(counts) | (counts == 0))

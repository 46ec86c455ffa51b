"""Forecasts for a family of runs: power laws of two instability signals over model size and learning rate.

The largest attention logit and the smallest gradient RMS of a layer, at the end of each run, are fitted by least
squares as ln y = a + b ln(parameters) + c ln(peak learning rate); a variable that does not vary is left out. Intervals
are 95 % prediction intervals of a further run (Student's t). They assume that the law continues, that runs scatter
around it independently, by the same amount in ln y, and that nothing else differs between them (data, schedule,
architecture).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stabwatch.analysis.compare.curve_set import CurveSet
from stabwatch.runlog import plain

SCHEMA_VERSION = 2
ATTENTION_LIMITS = (100.0, 1e4)
"""QK-clip's tau (Kimi K2, arXiv:2507.20534), and where small-scale-proxies runs diverge (arXiv:2309.14322)."""
EPSILON = 1e-8
"""Adam's default epsilon, if neither the logs nor the user give one."""
LEVEL = 0.95
LEAST_FREEDOM = 2
LEAST_R2 = 0.7
BENT = 0.01
"""Significance level of the test for curvature, which must also explain another half percent of the variation."""
BENT_SHARE = 0.005
REACH = 1e6
"""Factor beyond the range of the runs within which a crossing is searched."""
FAR = 100.0
"""Extrapolations beyond this factor are marked."""

Name = Literal["parameters", "learning_rate"]
NAMES: tuple[Name, ...] = ("parameters", "learning_rate")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One run: model size, peak learning rate, and the final value."""

    run: str
    parameters: float
    learning_rate: float
    value: float

    def at(self, name: Name) -> float:
        """The value of one variable."""
        return self.parameters if name == "parameters" else self.learning_rate


@dataclass(frozen=True)
class Term:
    """An exponent with its 95 % confidence interval."""

    name: Name
    exponent: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """Prediction for a further run: the value, and its 95 % interval."""

    parameters: float
    learning_rate: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Crossing:
    """Where the value reaches a limit along one variable (`along`), with the other fixed.

    at: where the law reaches it; None if not within a million times the range of the runs. first, last: where the
    prediction interval reaches it first and last; None if outside that range. beyond: factor of `at` beyond the range
    of the runs; 1 inside it.
    """

    limit: float
    along: Name
    fixed: float
    at: float | None
    first: float | None
    last: float | None
    beyond: float


@dataclass(frozen=True)
class Forecast:
    """The law of one quantity. refused: why there is none, in words; then only `points` has values.

    scatter: factor around the law within which two thirds of the runs are.
    """

    quantity: str
    signal: str
    points: tuple[Point, ...]
    refused: str = ""
    constant: float = math.nan
    terms: tuple[Term, ...] = ()
    r2: float = math.nan
    scatter: float = math.nan
    crossings: tuple[Crossing, ...] = ()
    prediction: Prediction | None = None
    cautions: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        return plain(asdict(self))


class Law:
    """A fitted power law. Raises ValueError with the reason in words if there are too few runs or the fit is bad."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = tuple(points)
        self.names = tuple(name for name in NAMES if _varies([p.at(name) for p in points]))
        n, k = len(points), len(self.names) + 1
        if not self.names:
            raise ValueError(f"the {n} runs that have it do not differ in model size or learning rate")
        if n - k < LEAST_FREEDOM:
            wanted = " and ".join(name.replace("_", " ") for name in self.names)
            raise ValueError(f"{n} runs have it, but a law over {wanted} needs at least {k + LEAST_FREEDOM}")
        self._y = np.log([p.value for p in points])
        x = self._row([[p.at(name) for p in points] for name in self.names])
        if np.linalg.matrix_rank(x) < k:
            raise ValueError("model size and learning rate change together, so their effects cannot be separated")
        self._inverse = np.linalg.inv(x.T @ x)
        self.beta: Array = self._inverse @ x.T @ self._y
        rest = self._y - x @ self.beta
        self._freedom = n - k
        self.sigma = math.sqrt(float(rest @ rest) / self._freedom)
        total = float(((self._y - self._y.mean()) ** 2).sum())
        self.r2 = 1 - float(rest @ rest) / total if total > 0 else math.nan
        self._check(x, float(rest @ rest), total)

    def _check(self, x: Array, rest: float, total: float) -> None:
        if not self.r2 >= LEAST_R2:
            raise ValueError(
                f"a power law explains {max(self.r2, 0):.0%} of its variation, less than the required 70 %"
            )
        for i, name in enumerate(self.names, 1):
            if self._freedom < 3 or len({p.at(name) for p in self.points}) < 3:
                continue
            bent = np.column_stack([x, x[:, i] ** 2])
            left = float(np.sum((self._y - bent @ np.linalg.lstsq(bent, self._y, rcond=None)[0]) ** 2))
            f = (rest - left) / (left / (self._freedom - 1)) if left > 0 else math.inf
            if rest - left > BENT_SHARE * total and stats.f.sf(f, 1, self._freedom - 1) < BENT:
                raise ValueError(
                    f"its logarithm is curved over the {name.replace('_', ' ')}, so a power law would mislead"
                )

    @staticmethod
    def _row(values: Sequence[Any]) -> Array:
        logs = np.log(np.asarray(values, dtype=np.float64))
        return np.column_stack([np.ones(logs.shape[1]), *logs])

    def terms(self) -> tuple[Term, ...]:
        """The exponents."""
        half = self._t * self.sigma * np.sqrt(np.diag(self._inverse))
        rows = zip(self.names, self.beta[1:].tolist(), half[1:].tolist(), strict=True)
        return tuple(Term(name, b, b - h, b + h) for name, b, h in rows)

    @property
    def _t(self) -> float:
        return float(stats.t.ppf((1 + LEVEL) / 2, self._freedom))

    def predict(self, **at: Array) -> tuple[Array, Array, Array]:
        """(value, low, high) predicted for further runs, at arrays by variable."""
        x = self._row([at[name] for name in self.names])
        centre = x @ self.beta
        half = self._t * self.sigma * np.sqrt(1 + np.einsum("ij,jk,ik->i", x, self._inverse, x))
        with np.errstate(over="ignore"):
            return np.exp(centre), np.exp(centre - half), np.exp(centre + half)

    def crossing(self, limit: float, along: Name, fixed: dict[str, float], rising: bool) -> Crossing:
        """Where the law reaches a limit from below (rising) or from above, along one variable."""
        seen = [p.at(along) for p in self.points]
        grid = np.geomspace(min(seen), max(seen) * REACH, 20_001)
        others = {name: np.full_like(grid, value) for name, value in fixed.items()}
        value, low, high = self.predict(**{along: grid}, **others)
        sign = 1 if rising else -1
        early, late = (high, low) if rising else (low, high)
        at, first, last = (_reached(grid, sign * y, sign * limit) for y in (value, early, late))
        beyond = max(1.0, at / max(seen)) if at is not None else math.nan
        return Crossing(limit, along, next(iter(fixed.values()), math.nan), at, first, last, beyond)


def _reached(grid: Array, values: Array, limit: float) -> float | None:
    beyond = values >= limit
    return float(grid[np.argmax(beyond)]) if beyond.any() else None


def _varies(values: Sequence[float]) -> bool:
    return len(values) > 0 and bool(np.isfinite(values).all()) and max(values) > 1.05 * min(values)


def forecast(
    subjects: Sequence[CurveSet],
    parameters: float | None = None,
    learning_rate: float | None = None,
    epsilon: float | None = None,
) -> tuple[Forecast, ...]:
    """Fit the laws of the largest attention logit and of the smallest gradient RMS.

    parameters, learning_rate: of a run to predict; crossings along the other variable are searched there.
    epsilon: of Adam; by default the largest in the logs, or 1e-8.
    """
    signal = "attention_logit_max"
    if not all(_values(s, signal) for s in subjects):
        signal = "attention_logit_lower"
    attention = [_point(s, max(_values(s, signal), default=math.nan)) for s in subjects]
    gradient = [_point(s, min(_values(s, "gradient_rms"), default=math.nan)) for s in subjects]
    least = epsilon if epsilon is not None else max(map(_epsilon, subjects), default=EPSILON)
    wanted = {"parameters": parameters, "learning_rate": learning_rate}
    return (
        *_laws("Largest attention logit", signal, attention, ATTENTION_LIMITS, True, wanted),
        *_laws("Smallest gradient RMS of a layer", "gradient_rms", gradient, (least,), False, wanted),
    )


def _laws(
    quantity: str,
    signal: str,
    points: list[Point],
    limits: Sequence[float],
    rising: bool,
    wanted: dict[str, float | None],
) -> list[Forecast]:
    """The law over all runs. If it does not fit, also the laws over model size at one learning rate that fit."""
    whole = _forecast(quantity, signal, points, limits, rising, wanted)
    rates = sorted({p.learning_rate for p in points if math.isfinite(p.learning_rate)})
    if not whole.refused or len(rates) < 2:
        return [whole]
    apart = [
        _forecast(
            f"{quantity} at learning rate {rate:g}",
            signal,
            [p for p in points if p.learning_rate == rate],
            limits,
            rising,
            wanted | {"learning_rate": None},
        )
        for rate in rates
        if wanted["learning_rate"] in (None, rate)
    ]
    return [whole, *(one for one in apart if not one.refused)]


def _values(subject: CurveSet, signal: str) -> list[float]:
    ends = (subject.end(signal, layer) for layer in subject.layers(signal))
    return [value for value in ends if value > 0]


def _point(subject: CurveSet, value: float) -> Point:
    return Point(subject.name, subject.parameters, subject.learning_rate, value)


def _epsilon(subject: CurveSet) -> float:
    found = [v for name, v in subject.facts.items() if name.startswith("optimizer") and name.endswith(".eps")]
    return max((float(v) for v in found if isinstance(v, int | float) and v > 0), default=EPSILON)


def _forecast(
    quantity: str,
    signal: str,
    points: list[Point],
    limits: Sequence[float],
    rising: bool,
    wanted: dict[str, float | None],
) -> Forecast:
    usable = tuple(p for p in points if math.isfinite(p.value) and p.value > 0)
    left = len(points) - len(usable)
    cautions = [f"{left} of {len(points)} runs have no finite positive value and are left out"] if left else []
    try:
        law = Law(usable)
    except ValueError as error:
        return Forecast(quantity, signal, tuple(points), refused=str(error), cautions=tuple(cautions))
    cautions += [
        f"only two values of the {name.replace('_', ' ')}: a straight law is assumed, not tested"
        for name in law.names
        if len({p.at(name) for p in usable}) == 2
    ]
    return Forecast(
        quantity,
        signal,
        tuple(points),
        constant=float(np.exp(law.beta[0])),
        terms=law.terms(),
        r2=law.r2,
        scatter=math.exp(law.sigma),
        crossings=tuple(_crossings(law, limits, rising, wanted)),
        prediction=_prediction(law, wanted),
        cautions=tuple(cautions),
    )


def _crossings(law: Law, limits: Sequence[float], rising: bool, wanted: dict[str, float | None]) -> list[Crossing]:
    """Crossings along each variable, at each value of the other (the requested one, or those of the runs)."""
    out = []
    for limit in limits:
        for along in law.names:
            others = [name for name in law.names if name != along]
            if not others:
                out.append(law.crossing(limit, along, {}, rising))
                continue
            given = wanted[others[0]]
            at = [given] if given is not None else sorted({p.at(others[0]) for p in law.points})
            out += [law.crossing(limit, along, {others[0]: value}, rising) for value in at]
    return out


def _prediction(law: Law, wanted: dict[str, float | None]) -> Prediction | None:
    """Prediction at the requested values; defaults: the largest model and the median learning rate."""
    if not any(wanted[name] is not None for name in law.names):
        return None
    usual = {
        "parameters": max(p.parameters for p in law.points),
        "learning_rate": float(np.exp(np.median(np.log([p.learning_rate for p in law.points])))),
    }
    at = {name: float(given) if (given := wanted[name]) is not None else usual[name] for name in NAMES}
    value, low, high = law.predict(**{name: np.array([at[name]]) for name in law.names})
    return Prediction(at["parameters"], at["learning_rate"], float(value[0]), float(low[0]), float(high[0]))

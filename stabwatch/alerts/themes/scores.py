"""Scores and error rates that a training loop logs, of training or evaluation: what they had gained and have lost."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.role_features import Gain
from stabwatch.alerts.roles import LOGGED, is_called, spelled
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools
from stabwatch.runlog import SeriesKey

MOST = 8
"""Scores that are followed, in the order of the log."""
_PATH, _MEAN = r"(?:^|[/_ ])", r"(?:[/_](?:mean|avg|average|macro|micro|weighted))?$"
_RISES = re.compile(
    _PATH + r"(?:top[-_]?\d+(?:_acc(?:uracy)?)?|acc(?:uracy)?[@_]?\d*|f[-_]?1(?:[-_]score)?|precision|recall"
    r"|(?:roc_)?auc(?:_?roc)?|auroc|m?_?ap[@_]?\d*|m?_?io_?u|dice|(?:sacre)?bleu[-_]?\d?|rouge[-_]?[l\d]*|meteor|cider"
    r"|psnr|ssim|(?:success|win|solve|pass)_rate|exact_match|em|r2(?:_score)?|pearson\w*|spearman\w*|ndcg[@_]?\d*|mrr"
    r"|hits?@\d+|pass@\d+)" + _MEAN
)
_FALLS = re.compile(
    _PATH + r"(?:wer|cer|error_rate|top[-_]?\d+_err(?:or)?|perplexity|ppl|fid|m?ae|r?mse|s?mape|eer|bpc|bpd"
    r"|bits_per_(?:char|byte|token|dim))" + _MEAN
)
_OTHER = re.compile(
    r"(?:^|[^a-z])(?:best|target|threshold|limit|std|var|coef\w*|weight|td|value|critic|q|disc\w*|gen\w*|real|fake|adv\w*"
    r"|router|reward|random|baseline)(?:[^a-z]|$)"
)
"""Words in names of settings, and of what moves in health: scores of a game, and values that are learned."""
_LOGARITHMIC = re.compile(r"(?:perplexity|ppl|fid)" + _MEAN)


def direction(name: str) -> int:
    """1 for a score that rises as a model learns, -1 for an error that falls, 0 for others and those with a rule."""
    full = spelled(name)
    if _OTHER.search(full) or is_called("accuracy", name):
        return 0
    return 1 if _RISES.search(full) else -1 if _FALLS.search(full) else 0


class _Scores:
    """The columns of scores in a layout: the first of those that were ever there."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.places: list[tuple[int, int]] = []
        """Number of a score, and its column."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        mine = {key.layer: column for column, key in enumerate(keys) if key.signal == LOGGED and direction(key.layer)}
        self.names = list(dict.fromkeys([*self.names, *mine]))[:MOST]
        self.places = [(i, mine[name]) for i, name in enumerate(self.names) if name in mine]

    @property
    def bound(self) -> bool:
        return bool(self.places)

    def measured(self, values: Array) -> Bools:
        """Whether any of them has a number in each record, (n,) of (n, series)."""
        if not self.places:
            return np.zeros(len(values), dtype=bool)
        return np.asarray(~np.isnan(values[:, [column for _, column in self.places]]).all(axis=1))


class ScoresFeature(RunFeature):
    """The largest share of its gain that one of the scores has lost. `signal` is the name of that one."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "score_lost_ratio",
            "Share of what a logged score had gained, or an error rate had fallen, that is lost: the largest.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("logged_score", LOGGED)
        self._columns: _Scores = _Scores()  # type: ignore[assignment]

    def _begin(self) -> None:
        self._gains: dict[str, Gain] = {}

    def _observe(self, values: Array) -> dict[str, float] | None:
        scores = self._columns
        found = [(scores.names[i], x) for i, column in scores.places if math.isfinite(x := float(values[column]))]
        if not found:
            return None
        for name, x in found:
            self._gains.setdefault(name, Gain()).push(_upward(name, x))
        lost, self.signal = max((gain.lost, name) for name, gain in self._gains.items())
        gain = self._gains[self.signal]
        now, best = (_value(self.signal, x) for x in (gain.now, gain.best))
        return {self.gauges[0].name: min(lost, 1.0), "now": now, "best": best}

    measures = own_signals


def _upward(name: str, x: float) -> float:
    """A number that is larger where the model is better."""
    if direction(name) > 0:
        return x
    return -math.log(max(x, 1e-6)) if _LOGARITHMIC.search(spelled(name)) else -x


def _value(name: str, upward: float) -> float:
    if direction(name) > 0:
        return upward
    return math.exp(min(-upward, 700.0)) if _LOGARITHMIC.search(spelled(name)) else -upward


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (ScoresFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="ScoreCollapse",
        title="A logged score collapsed",
        family="logged_score",
        summary="A score or an error rate that is logged has lost most of what it had gained.",
        description="'{signal}' was {best:.4g} at best and is {now:.4g}: {score_lost_ratio:.0%} of what it had gained "
        "is lost.",
        thresholds=(Threshold(severity="warning", when=(Condition("score_lost_ratio", above=0.8),), for_points=6),),
        abnormal=(Condition("score_lost_ratio", above=0.5),),
        source="four fifths of a gain that is beyond the noise of the points and a random walk, in the mean of the "
        "middle half of eight points, of sixteen once there are 128, at 6 points",
        remedy=(
            "Look at the loss, the learning rate and the batches from that step on.",
            "Where the training loss did not move: does the evaluation see the same model, mode and data as before?",
            "Go back to the checkpoint before the fall.",
        ),
    ),
)

"""Scores and error rates that a training loop logs, of training or evaluation: what they had gained and have lost."""

from __future__ import annotations

import math
import re

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.role_features import Gain
from stabwatch.alerts.roles import LOGGED, is_called, spelled
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array

TENTH = 0.1
"""Smallest fall, relative to the score; in logarithms where a ratio counts."""
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


class _Score:
    """A logged score, and what it had gained. Its numbers are kept so that larger ones are better."""

    def __init__(self, name: str) -> None:
        self._sign = direction(name)
        self._logarithmic = _LOGARITHMIC.search(spelled(name)) is not None
        self.gain = Gain()

    def push(self, x: float) -> None:
        """One more point."""
        self.gain.push(self._sign * (math.log(max(x, 1e-6)) if self._logarithmic else x))

    @property
    def lost(self) -> float:
        """Share of the gain that is lost; 0 where the score moved by less than a tenth."""
        best, now = self.gain.best, self.gain.now
        least = TENTH if self._logarithmic else TENTH * max(abs(best), abs(now))
        return self.gain.lost if best - now >= least else 0.0

    def value(self, kept: float) -> float:
        """A number as it was logged."""
        return math.exp(min(-kept, 700.0)) if self._logarithmic else self._sign * kept


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
        self._columns = LayerColumns(LOGGED, wanted=lambda name: direction(name) != 0)

    def _begin(self) -> None:
        self._scores: dict[str, _Score] = {}

    def _observe(self, values: Array) -> dict[str, float] | None:
        numbers = zip(self._columns.layers[:MOST], self._columns.of(LOGGED, values).tolist(), strict=False)
        found = [(name, x) for name, x in numbers if math.isfinite(x)]
        if not found:
            return None
        for name, x in found:
            if name not in self._scores:
                self._scores[name] = _Score(name)
            self._scores[name].push(x)
        lost, self.signal = max((score.lost, name) for name, score in self._scores.items())
        score = self._scores[self.signal]
        now, best = score.value(score.gain.now), score.value(score.gain.best)
        return {self.gauges[0].name: min(lost, 1.0), "now": now, "best": best}

    measures = own_signals


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
        source="four fifths of a gain beyond the noise of the points and a random walk, and a tenth of the score, "
        "in the mean of the middle half of eight points, of sixteen once there are 128, at 6 points",
        remedy=(
            "Look at the loss, the learning rate and the batches from that step on.",
            "Where the training loss did not move: does the evaluation see the same model, mode and data as before?",
            "Go back to the checkpoint before the fall.",
        ),
    ),
)

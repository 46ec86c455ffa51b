"""Reinforcement learning, whose losses need not fall: a lost reward, a policy without a gradient."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.roles import REWARD, spelled
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.robust import Array, rolling_median, scatter
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column

FEWEST = 20
"""Fewest records: a reward fluctuates."""
LOST = 0.8
"""Share of all that was gained that is lost at the end."""
CLEAR = 4.0
"""Smallest gain, in scatters of the changes between records."""
WALK = 2.0
"""The same, in distances that a random walk with the changes of this curve covers."""
SHAPED = 0.7
"""Share of the changes of an excerpt that rise before its best record, and that fall after it."""
GAPS = 60
"""Most records of such an excerpt: for a few, the reach of a random walk says little."""
AT_ONCE, OTHERS = 2, 0.5
"""Records within which a reward falls by all that was gained, and the largest share of that of any other change."""
DOWN = 6
"""Fewest records of a reward that falls from the first on."""
SLIPS = 0.1
"""Share of its changes that may be a rise, of a tenth of the whole fall at most."""
DEEP = 10.0
"""Ratio of its end, below zero, to its first three records: a mean of episodes drifts, but not that far."""
EMPTY = 0.1
"""Share of the best reward, if none is below zero, that is left where an excerpt has lost all."""
_MEAN = re.compile(r"mean|avg|average")
LATE = 0.1
"""Share of the records at the end that must be low."""
_VALUE = re.compile(
    r"(?:^|[/_ ])(?:value|vf|critic)(?:_function)?_loss|(?:^|[/_ ])loss(?:es)?/(?:value|critic)"
    r"|loss_of_(?:the_)?(?:current_)?value_function|(?:^|[/_ ])(?:c|v|td|qf?\d?)_loss$|(?:^|[/_ ])loss_[qv]\d?$"
)
_ONLY = re.compile(r"(?:^|[/_ ])loss$")
_SPREAD = re.compile(r"(?:^|/)rewards?_std$|(?:^|/)reward/std$|(?:^|/)rewards/std$")
"""How far the rewards of one prompt's answers are apart."""
_PART = re.compile(r"(?:^|/)rewards/(?!(?:chosen|rejected|margins|accuracies)$)", re.IGNORECASE)
"""The rewards of which that of an answer is the sum."""
_ENTROPY = re.compile(r"(?:^|[/_ ])(?:policy_|mean_)?entropy(?:_loss)?(?:_mean|/mean|_avg)?$")
NONE = 1e-6
"""Largest entropy of a policy that does one thing."""
_LARGEST = re.compile(r"(?:^|[/_ ])rewards?[/_]max$")
ONE_REWARD = 3
"""Fewest records whose reward is one number for all answers."""
SAME = 1e-6
"""Its largest change."""
SEVERAL = 4
"""Records from which a value loss is compared with those before."""
EXPLODES = 1e4
"""Ratio of a value loss to all before it, to the square of the largest reward before it, and to 1."""
SQUARED = 1e150
"""Largest reward whose square is a number."""
LASTS, LASTING = 3, 100.0
"""Fewest records up to the end of one that stays, and the same ratio for it, where rewards are printed."""


NEVER, STILL_NEVER = 40, 10
"""Fewest records of a reward that is always 0, from the first on and later in a training."""
_SUCCESS = re.compile(r"success|solved|(?:^|[/_ ])(?:wins?|win_rate|num_wins|scores?)(?:[/_ ]|$)")
UNHEARD_OF = 1e15
"""Least value loss of an excerpt without rewards that no reward explains."""
BEYOND, HUGE = 10.0, 1e8
"""Least ratio of each value loss of an excerpt to the square of the largest reward, and its least size."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident of each kind."""
    if segment.must_fall:
        return []
    return [
        *_value_loss(segment), *_reward(segment), *(_no_gradient(segment) or _no_spread(segment)),
        *_deterministic(segment), *_never_rewarded(segment),
    ]  # fmt: skip


def finite_of(segment: RunSegment, pattern: re.Pattern[str]) -> Column | None:
    """The longest column with such a name, its finite points."""
    found = [c for c in segment.columns if pattern.search(spelled(c.name)) and c.role != "eval_loss"]
    column = max(found, key=len, default=None)
    if column is None:
        return None
    keep = np.isfinite(column.values)
    return Column(column.name, column.role, column.steps[keep], column.values[keep], column.lines[keep])


def _value_loss(segment: RunSegment) -> list[Incident]:
    """A value loss beyond what any reward explains: a value is a sum of rewards, and its loss is of their square."""
    loss, reward = finite_of(segment, _VALUE), finite_of(segment, REWARD)
    kind = "value loss"
    if loss is None and reward is not None:  # the only loss, as DQN has it, is one of values
        loss, kind = finite_of(segment, _ONLY), "loss"
    if loss is None or not len(loss):
        return []
    if len(loss) < SEVERAL:
        beyond_all = _beyond_all(loss, reward)
        if beyond_all or len(loss) < 2:
            return beyond_all
    base = np.maximum.accumulate(np.maximum(np.abs(loss.values), 1.0))[:-1]
    if reward is not None and len(reward):
        known = np.searchsorted(reward.steps, loss.steps[1:], side="left")
        largest = np.maximum.accumulate(np.minimum(np.abs(reward.values), SQUARED))
        base = np.maximum(base, np.where(known > 0, largest[np.maximum(known - 1, 0)], 0.0) ** 2)
    limit = EXPLODES
    beyond = np.flatnonzero(loss.values[1:] > limit * base)
    if not len(beyond) and reward is not None and len(reward):
        least = np.minimum.accumulate(loss.values[:0:-1])[::-1]  # of a record and all later ones
        limit, beyond = (
            LASTING,
            np.flatnonzero(least[: len(least) - LASTS + 1] > LASTING * base[: len(least) - LASTS + 1]),
        )
    if not len(beyond):
        return _grows(loss, reward, kind)
    start = int(beyond[0]) + 1
    high = loss.values[start:] > limit * base[start - 1]
    count = len(high) if high.all() else int(np.argmin(high))
    ends = count == len(high)
    worst = float(loss.values[start : start + count].max())
    course = f"in {number_of(count)}" + (", where the log ends" if ends else ", and is back after that")
    return [
        Incident(
            condition="LossDivergence" if ends and count > 1 else "LossSpike",
            signal=loss.name,
            severity="warning",
            first_step=int(loss.steps[start]),
            last_step=None if ends else int(loss.steps[start + count - 1]),
            records=count,
            confidence="likely",
            line=int(loss.lines[start]),
            text=(
                f"The {kind} ('{loss.name}') explodes at step {loss.steps[start]}, from "
                f"{loss.values[start - 1]:.4g} to {worst:.4g}, {course}: no reward before it is that large."
            ),
        )
    ]


def _grows(loss: Column, reward: Column | None, kind: str) -> list[Incident]:
    """A loss of values that grows from record to record, to beyond what all rewards of the log explain."""
    half = len(loss) // 2
    if half < SEVERAL or loss.values[:half].min() < 0:
        return []
    largest = 0.0 if reward is None or not len(reward) else min(float(np.abs(reward.values).max()), SQUARED)
    base = max(float(loss.values[:half].max()), largest**2, 1.0)
    if float(loss.values[-LASTS:].min()) < EXPLODES * base:
        return []
    start = int(np.flatnonzero(loss.values <= base)[-1]) + 1
    text = (
        f"The {kind} ('{loss.name}') grows from step {loss.steps[start]} on, from {loss.values[start - 1]:.4g} to "
        f"{loss.values[-1]:.4g} at the end: no reward is that large."
    )
    return [to_the_end(loss, start, text, condition="LossDivergence", signal=loss.name)]


def _beyond_all(loss: Column, reward: Column | None) -> list[Incident]:
    """In an excerpt, each value loss is beyond what the rewards beside it explain."""
    if reward is None or not len(reward):
        return _unheard_of(loss) if float(loss.values.min()) >= UNHEARD_OF else []
    if not reward.values.any():
        return []
    largest = min(max(float(np.abs(reward.values).max()), 1 / SQUARED), SQUARED)
    if loss.values.min() < max(HUGE, BEYOND * largest**2):
        return []
    text = (
        f"The value loss ('{loss.name}') is {loss.values[-1]:.4g} in the last of {number_of(len(loss))}, "
        f"{loss.values[-1] / largest**2:.0f} times the square of the largest reward ({largest:.4g}): no reward "
        "explains it."
    )
    found = to_the_end(loss, 0, text, condition="LossDivergence", signal=loss.name)
    return [replace(found, confidence="possible")]


def _unheard_of(loss: Column) -> list[Incident]:
    """Without rewards in the log, a value loss that is the square of no reward."""
    text = (
        f"The value loss ('{loss.name}') is {loss.values[-1]:.4g} at step {loss.steps[-1]}: it had diverged "
        "before, or the rewards are not scaled." + how_sure(len(loss), "possible")
    )
    return [replace(to_the_end(loss, 0, text, condition="LossDivergence", signal=loss.name), confidence="possible")]


def _reward(segment: RunSegment) -> list[Incident]:
    """The reward rose, then fell to where it had been, and stayed there."""
    reward = finite_of(segment, REWARD)
    if reward is None or len(reward) < FEWEST:
        return _falls(reward) or (_turns(reward) if segment.fresh else [])
    values, width = reward.values, max(5, len(reward) // 20) | 1
    smooth = rolling_median(values, width)
    k = int(np.argmax(smooth))
    best, least = float(smooth[k]), float(smooth[: k + 1].min())
    gained = best - least
    end = values[-max(width, round(LATE * len(values))) :]
    tail = smooth[k:]
    changes = smooth[width:] - smooth[:-width]
    walk = WALK * scatter(changes) * float(np.sqrt(len(smooth) / width)) if len(changes) >= 8 else 0.0
    walk = 0.0 if (len(values) <= GAPS and _rises_and_falls(values)) or _is_lost_at_once(values, gained) else walk
    if (
        gained <= max(CLEAR * scatter(np.diff(values)), walk)
        or len(tail) < width
        or best - float(np.median(end)) < LOST * gained
    ):
        return []
    if float(end.max()) > best - gained / 2:
        return []
    at = k + int(np.flatnonzero(tail > best - (1 - LOST) * gained)[-1]) + width // 2
    start = min(at + 1, len(values) - 1)
    text = (
        f"The reward ('{reward.name}') falls from step {reward.steps[start]}, from {best:.4g} to "
        f"{np.median(end):.4g}, and has not come back in the {number_of(len(values) - start)} up to the end: "
        f"what was learned is lost."
    )
    evidence = f"It had risen from {least:.4g}. The losses of such a training do not show it."
    return [with_evidence(reward, start, text, evidence, condition="RewardCollapse")]


def _never_rewarded(segment: RunSegment) -> list[Incident]:
    """The reward is exactly 0 in all records, and nothing else tells of a success."""
    told = [
        c for c in segment.columns if len(c) and (REWARD.search(spelled(c.name)) or _SUCCESS.search(c.name.lower()))
    ]
    reward = finite_of(segment, REWARD)
    if reward is None or len(reward) < (NEVER if segment.fresh else STILL_NEVER) or any(c.values.any() for c in told):
        return []
    text = (
        f"The reward ('{reward.name}') is 0 in each of {number_of(len(reward))}: either no episode was ever rewarded, "
        f"and there is nothing to learn from, or 0 is the largest there is."
    )
    found = to_the_end(reward, 0, text, condition="NotLearning", signal=reward.name)
    return [replace(found, confidence="possible")]


def _is_lost_at_once(values: Array, gained: float) -> bool:
    """Whether all that was gained is lost within a few records, and no other change is nearly as large."""
    falls = values[:-AT_ONCE] - values[AT_ONCE:]
    if len(falls) < FEWEST // 2:
        return False
    at = int(np.argmax(falls))
    others = np.abs(np.delete(falls, slice(max(at - AT_ONCE, 0), at + AT_ONCE + 1)))
    return bool(falls[at] >= LOST * gained and len(others) and others.max() <= OTHERS * falls[at])


def _rises_and_falls(values: Array) -> bool:
    """Whether nearly all changes before the best record are rises, nearly all after it falls, and nothing is left."""
    best, changes = int(np.argmax(values)), np.diff(values)
    rises, falls = changes[:best] > 0, changes[best:] < 0
    if min(len(rises), len(falls)) < DOWN or not 0 <= float(np.median(values[-3:])) <= EMPTY * float(values[best]):
        return False
    return bool(values.min() >= 0 and rises.mean() >= SHAPED and falls.mean() >= SHAPED)


def _falls(reward: Column | None) -> list[Incident]:
    """In a short log, the reward falls from its first records on."""
    if reward is None or len(reward) < DOWN:
        return []
    changes, fall = np.diff(reward.values), float(reward.values[0] - reward.values[-1])
    deep = -float(reward.values[-1]) >= DEEP * max(float(np.abs(reward.values[:3]).max()), 1.0)
    up = changes[changes > 0]
    if not deep or len(up) > max(1, SLIPS * len(changes)) or float(up.sum()) > SLIPS * fall:
        return []
    text = (
        f"The reward ('{reward.name}') falls from step {reward.steps[0]}, from {reward.values[0]:.4g} to "
        f"{reward.values[-1]:.4g}, and never rises by more than a tenth of that." + how_sure(len(reward), "possible")
    )
    evidence = f"{number_of(len(reward))}, {number_of(int((changes < 0).sum()), 'fall')} from one to the next."
    return [replace(with_evidence(reward, 0, text, evidence, condition="RewardCollapse"), confidence="possible")]


def _turns(reward: Column | None) -> list[Incident]:
    """In two to five records, a mean reward falls from one to the next, from above 0 to below it."""
    if reward is None or not 2 <= len(reward) < DOWN or not _MEAN.search(spelled(reward.name)):
        return []
    values = reward.values
    if not (values[0] > 0 > values[-1]) or (np.diff(values) >= 0).any():
        return []
    text = (
        f"The reward ('{reward.name}') falls from {values[0]:.4g} at step {reward.steps[0]} to {values[-1]:.4g} at "
        f"step {reward.steps[-1]}: it is worse than before the training." + how_sure(len(reward), "possible")
    )
    return [
        replace(
            to_the_end(reward, len(reward) - 1, text, condition="RewardCollapse", signal=reward.name),
            confidence="possible",
        )
    ]


def _no_gradient(segment: RunSegment) -> list[Incident]:
    """The gradient norm is 0 in every record, though rewards of one prompt differ: the update has no direction."""
    norm, rate, spread = segment.of("grad_norm"), segment.of("learning_rate"), finite_of(segment, _SPREAD)
    if norm is None or len(norm) < 2 or norm.values.any() or (rate is not None and not rate.values.any()):
        return []
    if spread is None or len(spread) < 2 or spread.values.min() <= 0:
        return []
    text = (
        f"The gradient norm is 0 in each of {number_of(len(norm))}, though rewards differ ('{spread.name}' is at "
        f"least {spread.values.min():.3g}): nothing is learned. Are all answers cut or masked, or is the loss detached?"
    )
    evidence = "With rewards that differ, advantages are not 0, and so neither is the gradient of the policy."
    return [with_evidence(norm, 0, text, evidence, condition="NotLearning")]


def _no_spread(segment: RunSegment) -> list[Incident]:
    """All answers get one reward in every record, below 1: advantages are 0, and nothing is learned."""
    reward, spread, norm = finite_of(segment, REWARD), finite_of(segment, _SPREAD), segment.of("grad_norm")
    spread = _extremes_apart(segment) if spread is None else spread
    if reward is None or spread is None or not 0 < len(reward) <= len(spread) or spread.values.any():
        return []
    level, moves = float(reward.values[0]), norm is not None and bool(norm.values.any())
    parts = [c for c in segment.columns if _PART.search(c.name) and len(c)]
    none = len(parts) > 1 and not any(c.values.any() for c in (reward, *parts))
    if len(reward) < ONE_REWARD and not none:
        return []
    if (moves and not none) or level >= 1 or float(np.ptp(reward.values)) > SAME * max(abs(level), 1.0):
        return []
    where = f"each of {number_of(len(reward))}" if len(reward) > 1 else "the only record"
    why = (
        f"All answers get the reward {level:.4g} in {where} ('{spread.name}' is 0): the "
        f"advantages are 0. Is the task too hard, or does the reward not read the answers?"
    )
    return [_nothing_learned(reward, why)]


def _extremes_apart(segment: RunSegment) -> Column | None:
    """How far the largest and the least reward of each record are apart, where the log has both."""
    for high in segment.columns:
        if not _LARGEST.search(spelled(high.name)):
            continue
        low = next((c for c in segment.columns if c.name == high.name[:-3] + "min" and len(c) == len(high)), None)
        if low is not None:
            return replace(high, name=f"{high.name} - min", values=high.values - low.values)
    return None


def _deterministic(segment: RunSegment) -> list[Incident]:
    """The entropy is 0 and the reward is one number in every record: the policy does one thing, and tries no other."""
    reward, entropy = finite_of(segment, REWARD), finite_of(segment, _ENTROPY)
    if (
        reward is None
        or entropy is None
        or min(len(reward), len(entropy)) < ONE_REWARD
        or np.abs(entropy.values).max() > NONE
    ):
        return []
    level = float(reward.values[0])
    if np.ptp(reward.values) or (level >= 0 and not segment.fresh):
        return []
    why = (
        f"The entropy of the policy ('{entropy.name}') is 0 and the reward is {level:.4g} in each of "
        f"{number_of(len(reward))}: it does one thing, tries no other, and nothing is learned."
    )
    return [_nothing_learned(reward, why)]


def _nothing_learned(reward: Column, why: str) -> Incident:
    evidence = f"'{reward.name}' is {reward.values[0]:.4g} from step {reward.steps[0]} to {reward.steps[-1]}."
    text = why + how_sure(len(reward), "possible")
    return replace(with_evidence(reward, 0, text, evidence, condition="NotLearning"), confidence="possible")


def with_evidence(column: Column, start: int, text: str, evidence: str, *, condition: str) -> Incident:
    return to_the_end(column, start, text, condition=condition, signal=column.name, evidence=(evidence,))

"""Causes that no single rule names. Each reads the alerts and the engine's run context."""

from __future__ import annotations

from stabwatch.alerts import origin_causes, rank_causes, rates, setup_causes
from stabwatch.alerts.evidence import Evidence, Found, RootCause

LARGE_UPDATE = 0.1
"""Update-to-weight ratio above that of any healthy step: a hundred times the usual 1e-3."""
EARLY_UPDATE = 0.03
"""Updates of this size explain layers that are lost after them, and a loss that climbs without a jump: thirty times the
usual 1e-3."""
_LOST = ("VanishingOverDepth", "TokenCollapse", "DeadUnits", "SaturatedUnits")
_STANDS = ("NotLearning", "NoBetterThanMean", "OutputsConstant")
"""Nothing is learned from the first steps on: what came in those explains it, too."""
HUGE_UPDATE = 0.5
"""A step that changes the weights by half explains all that follows."""
_JUMPS = ("LossSpike", "LossShift")
ENORMOUS = 100.0
"""A gradient norm before any step: a hundred times the usual limit of clipping."""
HALF_LARGEST = 65504.0
MOST = 0.5
"""Of the layers."""
NEAR_OVERFLOW = HALF_LARGEST / 64
"""A large activation: within six doublings of float16's largest number."""


def _hardware(e: Evidence) -> Found | None:
    changed = [a for a in e.of("WeightsChangedOutsideStep") if a.step <= e.onset + 1]
    if not changed or e.of("WeightsReplaced") or rank_causes.replicas_differ(e) or len(e.alerts) == len(changed):
        return None
    first = min(changed, key=lambda a: a.step)
    origin = e.first_origin
    if origin is not None and origin.place != "weights" and origin.since <= first.step:
        return None  # numbers that are not finite are left out of the norm
    if any(peak.step <= first.step and peak.ratio >= LARGE_UPDATE for peak in e.memory.update_peaks):
        return None  # steps between the measured ones may have been as large
    layers = tuple(a.layer for a in changed if a.step == first.step)
    return Found(
        first.step,
        (
            f"Step {first.step}: {first.description}",
            "Everything else left its normal range at that step or later.",
        ),
        layers,
        confidence=0.9 if len(layers) == 1 else 0.6,
    )


def _bad_number_in_data(e: Evidence) -> Found | None:
    origin = e.first_origin
    if origin is not None:
        return origin_causes.found(e, origin) if origin.place == "data" else None
    if not _first_is_non_finite(e) or e.memory.largest_activation > NEAR_OVERFLOW:
        return None
    step = min(a.step for a in e.of("NonFinite"))
    now = [a for a in e.of("NonFinite") if a.step == step]
    forward = [a.layer for a in now if a.signal == "activation_nonfinite_total"]
    first = min(e.memory.layer_order, key=e.memory.layer_order.__getitem__, default=None)
    if first not in forward or any(a.signal == "weight_nonfinite_total" for a in now):
        return None
    return Found(
        step,
        (
            f"Step {step}: the output of {first or 'the model'}, the first layer, is not finite while its weights are.",
            f"The largest activation before that was {e.memory.largest_activation:.3g}: no activation had grown.",
        ),
        (first,),
        confidence=0.9,
    )


def _overflow(e: Evidence) -> Found | None:
    largest = e.memory.largest_activation
    if not e.of("NonFinite") or not NEAR_OVERFLOW <= largest <= HALF_LARGEST:
        return None
    origin = e.first_origin
    if origin is not None and origin.facts.get("dtype", "float16") != "float16":
        return None
    first = min(e.of("NonFinite"), key=lambda a: a.step)
    traced = origin is not None and origin.place == "forward" and origin.grown
    if (
        not traced
        and e.onset < first.step - e.recent
        and not e.begins_with("ActivationOutlierGrowth", "UpdateTooLarge", "UpdatesGrowAtFirst", "NonFinite")
    ):
        return None
    return Found(
        first.onset,
        (
            f"The largest activation before the first non-finite one was {largest:.4g}; the float16 limit is 65504.",
            f"Step {first.step}: {first.description}",
        ),
        origin.layers if origin else (first.layer,) if first.layer else (),
        confidence=0.85,
    )


def _underflow(e: Evidence) -> Found | None:
    found = [a for a in e.of("GradientUnderflow", "LossScaleCollapse") if a.onset <= e.onset + e.together]
    if not found:
        return None
    first = min(found, key=lambda a: a.onset)
    scale = first.context.get("loss_scale")
    used = "No gradient scaler is in use." if scale is None else f"The loss scale was {scale:.3g}."
    return Found(first.onset, (f"Step {first.step}: {first.description}", used))


def _rate_spike(e: Evidence) -> Found | None:
    lost = e.of("LossLostAtRateJump")
    last = lost[0].onset if lost else e.onset + e.spacing
    jumps = [j for j in e.memory.rate_jumps if j.step <= last and (lost or e.onset - j.step <= e.recent)]
    if not jumps:
        return None
    jump = jumps[-1]
    return Found(
        jump.step,
        (
            f"Step {jump.step}: the learning rate went from {jump.before:.3g} to {jump.after:.3g}.",
            *(f"Step {a.step}: {a.description}" for a in lost[:1]),
        ),
        confidence=0.9,
    )


def _rate_too_high(e: Evidence) -> Found | None:
    if _first_is_non_finite(e) or _rate_spike(e) or _recurrent_overflow(e) or _never_trained(e):
        return None
    if e.begins_with("TargetsRunAway"):
        return None  # updates grow with what is asked for
    if e.alerts and all(a.rule == "NoUpdates" for a in e.alerts):
        return None  # large steps are no reason for steps that change nothing
    large_steps = e.of("UpdateTooLarge", "UpdatesGrowAtFirst")
    alert = next((a for a in large_steps if a.onset <= e.onset + e.together), None)
    lost = [a for a in e.of(*_LOST) if a.onset <= e.onset + e.together]
    slowly = bool(e.alerts) and all(a.rule == "LossDivergence" for a in e.alerts)
    large = EARLY_UPDATE if lost or slowly else LARGE_UPDATE
    stands = [a for a in e.of(*_STANDS) if a.onset <= e.onset + e.together]
    until = max((e.onset, *(a.step for a in stands)))
    peaks = [p for p in e.memory.update_peaks if p.step <= until and p.ratio >= large]
    rate = e.context.get("learning_rate")
    lines = []
    if peaks:
        peak = peaks[-1]
        lines.append(
            f"Step {peak.step}: one update changed the weights by {peak.ratio:.0%} in the median layer, and by "
            f"{peak.largest:.0%} in {peak.layer}; about 0.1% is usual."
        )
    if rate is not None and (alert or peaks):
        lines.append(f"The learning rate was {rate:.3g}.")
    step, first = e.memory.rate_at
    worse = next((a for a in e.of("LossRisesWithRate") if a.onset <= e.onset + e.together), None)
    if worse is not None:
        lines.append(f"Step {worse.step}: {worse.description}")
    climbed = rate is not None and rate > 3 * first and rates.at_its_highest(e) and not rates.small_steps(e)
    if rate is not None and climbed and (rates.climbs(e) or not _data_first(e)):
        lines.append(f"The learning rate had come up from {first:.3g} at step {step} to {rate:.3g}, its highest.")
    if not lines:
        return None
    since = peaks[-1].step if peaks else e.onset
    leads = alert is not None or worse is not None or climbed or peaks[-1].ratio >= HUGE_UPDATE
    leads = leads or bool(lost) or bool(stands) or slowly
    return Found(since, tuple(lines), (peaks[-1].layer,) if peaks else (), leads=leads)


def _never_trained(e: Evidence) -> bool:
    """Most layers have had no gradient from the first step on: the ratios of updates to weights say nothing."""
    return any(a.context.get("gradient_never_ratio", 0.0) > MOST for a in e.of("ZeroGradients"))


def _stale_moment(e: Evidence) -> Found | None:
    notes = [a for a in (*e.notes, *e.alerts) if a.rule == "AdamStepTooLarge"]
    alerts = [a for a in notes if abs(a.onset - e.onset) <= e.together]
    if not alerts or _rate_spike(e) or _data_first(e) or _first_is_non_finite(e):
        return None
    first = alerts[0]
    return Found(first.onset, (f"Step {first.step}: {first.description}",), tuple(a.layer for a in alerts))


def _recurrent_overflow(e: Evidence) -> Found | None:
    """Numbers grew too large in a recurrent layer, whose gradient was enormous in the first step already."""
    origin, norm = e.first_origin, e.memory.first_gradient
    layers = [] if origin is None or not origin.grown else [a for a in origin.layers if a in e.memory.recurrent_layers]
    if origin is None or not layers or not norm >= ENORMOUS or _rate_spike(e):
        return None
    lines = (
        f"The first gradient norm of the run was {norm:.4g}, at a learning rate of {e.memory.rate_at[1]:.3g}; "
        "recurrent networks are usually clipped at 1.",
        origin.sentence,
    )
    return Found(origin.since, lines, tuple(layers), confidence=0.7)


def _recurrent(e: Evidence) -> Found | None:
    overflow = _recurrent_overflow(e)
    if overflow is not None:
        return overflow
    grown = {name: pair for name, pair in e.memory.recurrent.items() if pair[1] > 1}
    exploded = [a for a in e.of("GradientNormExplosion") if a.onset <= e.onset + e.together]
    if not grown or not exploded or _rate_spike(e) or _data_first(e) or _first_is_non_finite(e) or _stale_moment(e):
        return None
    name, (first, now) = max(grown.items(), key=lambda item: item[1][1])
    lines = [
        f"Step {exploded[0].step}: {exploded[0].description}",
        f"The largest singular value of {name} is {now:.3g} (at first {first:.3g}): above 1, a gradient may grow with "
        "every step of the sequence.",
    ]
    return Found(exploded[0].onset, tuple(lines), (name.rpartition(".")[0],), confidence=0.7)


def _bad_batch(e: Evidence) -> Found | None:
    if e.of("DataNotShuffled") or e.memory.is_habit("batch_repeated"):
        return None  # each stretch is unlike the one before, or all batches are one
    lone = e.of("LoneLosses")
    if lone and e.onset >= lone[0].onset - e.together:
        return Found(lone[0].onset, (f"Step {lone[0].step}: {lone[0].description}",), confidence=0.7)
    odd = e.of("OddBatches")
    if odd:
        first = odd[0]
        began = first.onset - int(first.context.get("loss_odd_batches", 0.0))
        if e.onset >= began - e.together:
            return Found(began, (f"Step {first.step}: {first.description}",), confidence=0.7)
    spike = min(e.of(*_JUMPS), key=lambda a: a.onset, default=None)
    if spike is None or not e.watched or not _data_first(e):
        return None
    before, now = spike.context.get("loss_at_onset"), spike.context.get("loss")
    if e.of("LossDivergence") and not _abrupt(e, before, now, spike.onset):
        return None  # it rises on and on: one batch does not do that
    climbs = rates.climbs(e)
    rate = "while the learning rate rose" if climbs else "at a usual learning rate"
    lines = [f"Step {spike.onset}: the loss jumped before any large step was taken, {rate}."]
    last = e.memory.last_update_before(spike.onset)
    known = last is not None and last >= spike.onset - max(1.0, e.spacing)
    if not climbs:
        lines.append(
            "The weights were good one step earlier, so the batch explains the jump."
            if known
            else "The sizes of the updates were not measured, so the weights may also be the cause."
            if last is None
            else f"The size of an update was last measured at step {last}, so the weights may also be the cause."
        )
    if before is not None and now is not None:
        lines.append(f"The loss was {before:.4g} before, {now:.4g} at step {spike.step}.")
    return Found(spike.onset, tuple(lines), confidence=0.4 if climbs else 0.7, leads=not climbs)


def _abrupt(e: Evidence, before: float | None, now: float | None, onset: int) -> bool:
    """The loss spiked within a few records, to twice what it was, after updates that were small as far as is known."""
    spikes = [a for a in e.of("LossSpike") if a.onset == onset and a.step - a.onset <= 3 * e.spacing]
    jumped = before is not None and now is not None and now > 2 * before > 0
    return bool(spikes) and jumped and not any(p.ratio >= LARGE_UPDATE for p in e.memory.update_peaks)


def _data_first(e: Evidence) -> bool:
    """The loss jumped with odd batches, or no signal of the model had left its normal range before."""
    if e.of("OddBatches") and not e.of("NonFinite"):
        return True
    spikes = e.of(*_JUMPS)
    if not spikes or _rate_spike(e) or _hardware(e) or e.of("NonFinite"):
        return False
    onset = min(a.onset for a in spikes)
    if onset > e.onset + e.together:
        return False
    model = [a for a in e.alerts if a.rule not in (*_JUMPS, "LossDivergence", "TrainingStopped", "RankHoldsUp")]
    large = [p for p in e.memory.update_peaks if onset - e.recent <= p.step < onset and p.ratio >= LARGE_UPDATE]
    return not large and all(a.onset >= onset for a in model)


def _first_is_non_finite(e: Evidence) -> bool:
    found = e.of("NonFinite")
    if e.first_origin is not None and e.first_origin.grown:
        return False  # something made the numbers grow
    return bool(found) and min(a.onset for a in found) <= e.onset


ROOT_CAUSES: tuple[RootCause, ...] = (
    *rank_causes.ROOT_CAUSES,
    RootCause(
        "HardwareFault",
        "Weights changed outside the optimizer: a hardware fault, or a loaded checkpoint",
        _hardware,
        (
            "Resume from a checkpoint before this step on another device. Remove this one and run its diagnostics.",
            "If a checkpoint was loaded or a layer was re-initialised at this step, check that code.",
        ),
        ("Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245",),
    ),
    RootCause(
        "NonFiniteData",
        "Non-finite numbers in the data",
        _bad_number_in_data,
        (
            "Look for NaN and infinities in the batch of this step. Resume from before this step and skip the batch.",
            "Check batches where they are made: `torch.isfinite(x).all()` in the data loader's workers"
            " costs the GPU nothing.",
        ),
    ),
    *origin_causes.CERTAIN,
    RootCause(
        "LearningRateSpike",
        "The learning rate jumped",
        _rate_spike,
        (
            "Check the schedule at this step: a restart, a resumed counter, a factor applied twice?",
            "Resume from before this step with the intended rate.",
        ),
    ),
    RootCause(
        "MixedPrecisionOverflow",
        "Overflow of float16",
        _overflow,
        (
            "Train in bfloat16, or let a gradient scaler skip such steps.",
            "Find what made the activations grow before the overflow (see the other causes).",
        ),
        ("Micikevicius et al. 2017, Mixed Precision Training, arXiv:1710.03740",),
    ),
    *origin_causes.MADE_IN_A_PASS,
    RootCause(
        "MixedPrecisionUnderflow",
        "Underflow of a narrow number format",
        _underflow,
        (
            "In float16: use a gradient scaler (`torch.amp.GradScaler`), or train in bfloat16.",
            "If the scale of the gradient scaler falls: find what overflows first. Overflows keep the scale too low.",
        ),
        ("Micikevicius et al. 2017, Mixed Precision Training, arXiv:1710.03740",),
    ),
    *setup_causes.OF_SIZES,
    RootCause(
        "LearningRateTooHigh",
        "Learning rate too high",
        _rate_too_high,
        (
            "Lower the learning rate until updates are about a thousandth of the weights.",
            "Warm it up over the first hundreds of steps.",
        ),
        (
            "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, "
            "arXiv:2309.14322",
        ),
    ),
    RootCause(
        "AdamSecondMomentStale",
        "Adam's second moment is too small for its gradients",
        _stale_moment,
        (
            "What changed at this step: the data, a loss weight, a layer that was unfrozen? Introduce it slowly.",
            "Lower beta2 to 0.95 to 0.99; clip the update (StableAdamW) or the gradient.",
        ),
        ("Molybog et al. 2023, A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871",),
    ),
    RootCause(
        "ExplodingRecurrentGradients",
        "Exploding gradients of a recurrent network",
        _recurrent,
        (
            "Clip the gradient norm (1 is usual), and resume from before the onset.",
            "Did sequences become longer here? Lengthen them slowly, or truncate backpropagation through time.",
            "Long term: use an LSTM or a GRU, or initialise the recurrent matrix as orthogonal.",
        ),
        ("Pascanu et al. 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063",),
    ),
    RootCause(
        "BadBatch",
        "Bad batches",
        _bad_batch,
        (
            "Check the batches of these steps. If the loss does not recover, resume from before them and skip them.",
            "If it recovers within a few hundred steps, continue.",
        ),
        ("Chowdhery et al. 2022, PaLM (restart and skip 200 to 500 batches), arXiv:2204.02311",),
    ),
)
"""Root causes in the order in which they are reported."""

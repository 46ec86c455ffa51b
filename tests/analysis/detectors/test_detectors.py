"""Detectors, on made-up logs in the shapes of real ones: what is found, when, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors import detect
from stabwatch.analysis.detectors.segments import segments
from stabwatch.analysis.readers.log import LogRun, Remark
from tests.analysis.curves import analysed, falling, run_of

NAN, INF = float("nan"), float("inf")


def calm_curve(length: int = 400, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 11 * (0.2 + 0.8 * (1 + np.arange(length) / 10) ** -0.7) * (1 + noise * rng.standard_normal(length))


def troubles(run: LogRun) -> list[Incident]:
    return [f for f in detect(run) if f.is_problem]


def only(run: LogRun, kind: str) -> Incident:
    """The one finding that is more than information, which is of this kind."""
    found = troubles(run)
    assert [f.condition for f in found] == [kind], [f.text for f in found]
    return found[0]


def noted(run: LogRun) -> set[str]:
    """Kinds of a run without trouble."""
    assert not troubles(run), [f.text for f in troubles(run)]
    return {f.condition for f in detect(run)}


# The loss goes up.


def test_a_spike_that_recovers():
    loss = calm_curve()
    loss[250:] += 25 * np.exp(-np.arange(150) / 5)
    found = only(run_of(loss=loss, steps=range(0, 40_000, 100)), "LossSpike")
    assert found.first_step == 25_000
    assert found.line == 251
    assert 10 < found.records < 40
    assert found.last_step == 25_000 + 100 * (found.records - 1)
    assert found.ratio == pytest.approx(loss[250] / loss[199:250].mean(), rel=0.05)
    assert found.confidence == "likely"
    assert "was back" in found.text


def test_a_spike_in_an_excerpt_with_the_gradient_ahead_of_it():
    run = run_of(
        loss=[2.2, 2.22, 2.25, 2.24, 2.3, 5.1, 3.5, 3.2, 2.8, 2.2, 2.2],
        grad_norm=[0.2, 0.3, 0.9, 15, 140, 960, 350, 380, 650, 0.3, 0.2],
        steps=range(31_214, 31_225),
    )
    gradient, spike = troubles(run)
    assert (gradient.condition, gradient.first_step, gradient.last_step) == ("GradientNormExplosion", 31_217, 31_222)
    assert (spike.condition, spike.first_step, spike.last_step) == ("LossSpike", 31_219, 31_222)
    assert analysed(run).diagnosis.causes[0].name == "GradientNormExplosion"


def test_a_spike_that_fills_most_of_an_excerpt():
    loss = [2.776, 2.773, 2.768, 2.771, 2.77, 2.769, 4.1, 6.3, 5.2, 4.0, 3.4, 3.1, 2.95, 2.88, 2.85, 2.83, 2.81, 2.8]
    found = only(run_of(loss=loss, grad_norm=[0.0] * 18, steps=range(29_020, 29_200, 10)), "LossSpike")
    assert found.first_step == 29_080


def test_a_spike_that_the_log_ends_in():
    found = only(
        run_of(loss=[2.665, 2.667, 4.37, 4.37, 4.39, 4.40, 4.40, 4.1, 4.14], steps=range(17_060, 17_069)), "LossSpike"
    )
    assert (found.first_step, found.last_step) == (17_062, None)


@pytest.mark.parametrize(
    "tail",
    [
        [0.2, 18.0, 4.5e6, INF],  # at once
        [0.3, 2.0, 1.2e3, 1.0e10],
        [0.3, 0.5, 0.6, 0.8, 1.1, 1.2, 1.1, 1.2, 1.2, 1.1, 1.2],  # to another level
    ],
)
def test_a_fast_divergence(tail):
    loss = [*(0.14 + 0.6 * np.exp(-np.arange(70) / 4) + 0.002 * np.random.default_rng(0).standard_normal(70)), *tail]
    found = troubles(run_of(loss=loss))[0]
    assert found.condition == "LossDivergence"
    assert found.severity == "critical"
    assert abs(found.first_step - 70) <= 2


@pytest.mark.parametrize(
    ("loss", "step"),
    [
        ([6.37, 6.60, 7.31, 9.12, 10.24], 6920),  # an excerpt
        ([1.59, 1.41, 3.32, 6.4, 5.6, 5.1, 4.9, 4.8, 4.8, 4.9, 4.8, 4.8], 6920),
        ([0.96, 0.64, 0.55, 8.1, *[8.06] * 30], 6930),  # an accuracy that fell to guessing, by epochs
        ([0.76, 0.755, *np.linspace(0.8, 1.74, 12)], 6920),
    ],
)
def test_a_slow_divergence(loss, step):
    found = only(run_of(loss=loss, steps=range(6900, 6900 + 10 * len(loss), 10)), "LossDivergence")
    assert abs(found.first_step - step) <= 30
    assert found.last_step is None


def test_a_loss_without_a_lower_bound():
    """As of an adversarial loss with the wrong sign, in the parts of a total."""
    down = 1.55 - np.concatenate((np.zeros(30), 1e3 * np.arange(300) ** 2.0))
    found = only(run_of(loss=down, component__vocoder_loss=down - 1), "LossDivergence")
    assert 30 <= found.first_step <= 33 and "falls without bound" in found.text and found.severity == "critical"
    assert not troubles(run_of(loss=np.linspace(400.0, -5000.0, 300))), "a log-likelihood"


def test_a_slow_divergence_after_a_hump():
    loss = [12.4, 12.4, *np.linspace(48, 11.6, 29), *np.linspace(11.8, 20.4, 31)]
    found = only(run_of(loss=loss, steps=range(1, 63)), "LossDivergence")
    assert abs(found.first_step - 32) <= 3


def test_a_restart_from_scratch_inside_one_counter():
    rng = np.random.default_rng(1)
    one = 33 * (0.03 + 0.15 / (1 + np.arange(300) / 60)) * (1 + 0.02 * rng.standard_normal(300))
    one[0] = 33
    stuck = 5.5 * (1 + 0.005 * rng.standard_normal(200))
    run = run_of(loss=[*one, *one, 32.5, 6.0, *stuck], steps=range(0, 80_200, 100))
    first, second, plateau = troubles(run)
    assert (first.condition, first.first_step) == ("Reinitialisation", 30_000)
    assert (second.condition, second.first_step) == ("Reinitialisation", 60_000)
    assert plateau.condition == "LossPlateau"
    assert abs(plateau.first_step - 60_100) <= 300


def test_a_restart_from_scratch_may_begin_below_the_first_record():
    fall = 8 * (0.05 + 1 / (1 + np.arange(300) / 20))
    (found,) = troubles(run_of(loss=[13.0, *fall, 8.9, *fall[1:]], steps=range(0, 60_100, 100)))
    assert (found.condition, found.first_step) == ("Reinitialisation", 30_100)


def test_without_a_step_a_beginning_is_a_new_run():
    runs = run_of(loss=np.tile(calm_curve(200), 3))
    assert {f.condition for f in troubles(runs)} == {"Reinitialisation"}
    assert noted(LogRun(**{**vars(runs), "step_unit": "ordinal"})) == {"RunRestarted"}


def test_the_cycles_of_a_schedule_are_neither_spikes_nor_a_start_from_scratch():
    """Cosine with warm restarts: the rate is back at its highest, and the loss rises with it for a while."""
    at = np.arange(600)
    rate = 0.05 * (1 + np.cos(np.pi * (at % 100) / 100))
    noise = np.random.default_rng(0).normal(0, 0.02, 600)
    loss = 0.5 + 2.5 * (1 + at / 20) ** -0.8 + 3 * rate * (at > 5) + noise
    assert noted(run_of(loss=loss, learning_rate=rate)) == {"LearningRateSpike", "LossSpike"}
    assert {f.condition for f in troubles(run_of(loss=loss))} == {"LossSpike"}, "where no rate is logged"
    jumped = np.where(at < 300, 0.01, 0.1)
    high = 0.8 * ((at > 300) & (at < 330))
    spiked = run_of(loss=0.7 + 2.5 * (1 + at / 20) ** -0.8 + noise + high, learning_rate=jumped)
    assert "LossSpike" in {f.condition for f in troubles(spiked)}, "a rate that was never there before"


def test_a_level_that_moved_is_a_note_unless_it_moved_far():
    loss = calm_curve(800, noise=0.005)
    loss[400:] *= 1.2
    assert noted(run_of(loss=loss)) == {"LossShift"}
    loss[400:] *= 1.3
    assert troubles(run_of(loss=loss))


def test_bad_batches_heavy_tails_and_humps_are_notes():
    loss = calm_curve(1500)
    loss[[700, 918, 946]] *= [1.5, 1.6, 3.0]
    assert noted(run_of(loss=loss)) == {"LossOutliers"}
    digits = np.where(np.arange(400) % 50 == 49, np.arange(400) % 4 * 1e-4, 0.0)
    assert not noted(run_of(loss=digits))
    loss[[700, 701]] = 50_000.0
    assert [i.condition for i in detect(run_of(loss=loss))] == ["LossSpike"]
    hump = [12.4, 12.4, 44.0, 40.0, 30.0, 20.0, *calm_curve(60)]
    assert noted(run_of(loss=hump)) == {"EarlyLossHump"}
    assert not troubles(run_of(loss=[14.1, 76.8, 31.7, 21.1, 17.0], steps=[20, 30, 40, 50, 60]))


@pytest.mark.parametrize("seed", range(6))
def test_losses_of_single_samples_with_long_tails_do_not_spike(seed):
    rng = np.random.default_rng(seed)
    loss = np.exp(-1.2 - 0.3 * np.linspace(0, 1, 4000) + 1.9 * rng.standard_normal(4000))
    assert [f.condition for f in detect(run_of(loss=loss)) if f.is_problem] == []


def test_where_a_loss_need_not_fall_nothing_is_made_of_its_rise():
    loss = [*calm_curve(100), *np.linspace(2.5, 30, 300)]
    assert troubles(run_of(loss=loss))
    assert not troubles(run_of(loss=loss, other__rollout_ep_rew_mean=range(400)))
    tuning = {"other__rewards/chosen": range(400)}
    assert troubles(run_of(loss=loss, **tuning)), "preference tuning has a loss that falls"


# NaN.


def test_nan_that_stays_and_infinity_that_passes():
    loss = calm_curve()
    loss[301:] = NAN
    found = only(run_of(loss=loss), "NonFinite")
    assert (found.first_step, found.last_step, found.records, found.severity) == (301, None, 99, "critical")
    loss = calm_curve()
    loss[100] = INF
    found = only(run_of(loss=loss), "NonFinite")
    assert (found.first_step, found.last_step, found.severity) == (100, 100, "warning")


def test_nan_that_is_not_printed():
    loss = [*calm_curve(74), *[None] * 26]
    found = only(run_of(loss=loss, learning_rate=[1e-3] * 100), "NonFinite")
    assert found.first_step == 74
    assert "missing" in found.text
    assert not troubles(run_of(loss=loss, eval_loss=[1.0] * 100)), "an evaluation says nothing of training"
    assert not troubles(
        run_of(loss=[x if i % 10 == 0 else None for i, x in enumerate(calm_curve(99))], throughput=[1.0] * 99)
    )


def test_a_loss_that_is_printed_no_more_while_evaluations_stay_finite_is_no_nan():
    curve = calm_curve(60)
    blank = {"loss": [*curve[:40], *[None] * 20], "learning_rate": [0.001] * 60}
    assert only(run_of(**blank), "NonFinite").first_step == 40
    assert "NonFinite" not in noted(run_of(**blank, eval_loss=[x if i % 5 == 0 else None for i, x in enumerate(curve)]))


def test_nan_that_the_trainer_filters_out_of_the_loss():
    loss, norm = [2.0, 1.9, 1.8, *[0.0] * 10], [1.0, 1.0, 1.0, *[NAN] * 10]
    found = only(run_of(loss=loss, grad_norm=norm), "NonFinite")
    assert (found.first_step, found.records) == (3, 10)
    assert not troubles(run_of(loss=[0.0] * 30, grad_norm=[0.09] * 30, other__reward=range(30)))


def test_nan_in_messages_counts_and_gradients():
    told = [Remark("nan_message", 31, 32, "ERROR: Model diverged with loss = NaN.")]
    assert only(run_of(loss=calm_curve(32), remarks=told), "NonFinite").line == 32
    early = [Remark("nan_message", 3, 4, "check for inf and nan: 0.1 ms")]
    assert not troubles(run_of(loss=calm_curve(32), remarks=early)), "the loss outlived it"
    counted = only(run_of(loss=calm_curve(32), nan_steps=[0] * 30 + [1, 1]), "NonFinite")
    assert counted.first_step == 30
    norm = np.ones(50)
    norm[10] = NAN
    assert not troubles(run_of(loss=calm_curve(50), grad_norm=norm)), "a step that a gradient scaler skipped"
    norm[20:40] = NAN
    assert only(run_of(loss=calm_curve(50), grad_norm=norm), "NonFinite").severity == "warning"
    assert not troubles(run_of(loss=calm_curve(50), other__kl=[NAN] * 50))


# Gradients, the loss scale, learning.


def test_a_gradient_that_explodes_while_the_loss_falls():
    rng = np.random.default_rng(0)
    norm = np.exp(0.4 * rng.standard_normal(480))
    norm[90:400] *= 10 ** np.concatenate((np.linspace(2, 19, 155), np.linspace(19, 2, 155)))
    norm[240:260] = INF
    explosion, infinite = troubles(run_of(loss=calm_curve(480), grad_norm=norm))
    assert explosion.condition == "GradientNormExplosion"
    assert explosion.severity == "warning"
    assert abs(explosion.first_step - 90) <= 5
    assert explosion.records > 200
    assert (infinite.condition, infinite.first_step, infinite.records) == ("NonFinite", 240, 20)


def test_single_gradients_are_notes():
    norm = np.exp(0.2 * np.random.default_rng(0).standard_normal(2000))
    norm[100::130] *= 18
    assert noted(run_of(loss=calm_curve(2000), grad_norm=norm)) == {"GradientNormOutliers"}


def test_a_burst_of_gradients_is_a_note_where_others_are_as_high():
    norm = np.exp(0.2 * np.random.default_rng(0).standard_normal(2000))
    norm[700:706] *= 24
    assert only(run_of(loss=calm_curve(2000), grad_norm=norm), "GradientNormExplosion").first_step == 700
    norm[100::130] *= 50
    found = run_of(loss=calm_curve(2000), grad_norm=norm)
    assert not troubles(found) and noted(found) == {"GradientNormOutliers"}


def overflows(*scales_by_step: tuple[int, float]) -> list[Remark]:
    return [Remark("overflow", step, step + 1, f"OVERFLOW! reducing to {s}", s) for step, s in scales_by_step]


def test_a_loss_scale_that_collapses():
    scales = overflows(*((200 + i, 2.0 ** (20 - i)) for i in range(7)))
    found = only(run_of(loss=calm_curve(), remarks=scales), "LossScaleCollapse")
    assert (found.first_step, found.severity) == (201, "warning")
    stuck = overflows(*((98 + i, 1.0) for i in range(6)))
    assert only(run_of(loss=calm_curve(120), remarks=stuck), "LossScaleCollapse").severity == "critical"
    sinking = [2.0**i for i in range(10, -10, -1)] * 2
    assert only(run_of(loss=calm_curve(20), loss_scale=sinking[:20]), "LossScaleCollapse").severity == "critical"


def test_the_search_for_a_loss_scale_is_a_note():
    start = [(i, 2.0 ** (32 - i)) for i in range(16)]
    probing = [pair for at in range(60, 400, 60) for pair in ((at, 65536.0), (at + 1, 32768.0))]
    assert noted(run_of(loss=calm_curve(), remarks=overflows(*start, *probing))) == {"LossScaleSearch"}
    assert noted(run_of(loss=calm_curve(), loss_scale=[1.0] * 400)) == set(), "bfloat16"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"loss": np.linspace(10.38, 10.32, 43), "grad_norm": [0.0] * 43}, "gradient norm is 0"),
        ({"loss": [0.7185, 0.698, 0.695, 0.694, *[0.6932] * 40]}, "ln 2"),
        ({"loss": [5.56, *[5.55, 5.54, 5.55] * 40]}, "ln 256"),
        ({"loss": np.linspace(12.1, 12.05, 10), "grad_norm": [0.0] * 10, "learning_rate": [0.0] * 10}, "learning rate"),
        ({"loss": [4.2] * 30}, "same number"),
    ],
)
def test_nothing_is_learned(columns, words):
    assert words in only(run_of(**columns), "NotLearning").text


@pytest.mark.parametrize(("fell", "scatter", "told"), [(0.04, 0.002, True), (0.3, 0.002, False), (0.04, 0.02, False)])
def test_a_loss_that_has_its_level_at_once_is_not_learning(fell, scatter, told):
    rng = np.random.default_rng(0)
    loss = 8 * (1 - fell * (1 - np.exp(-np.arange(170) / 2))) * (1 + scatter * rng.standard_normal(170))
    found = [f for f in detect(run_of(loss=loss, steps=range(0, 340, 2))) if f.is_problem]
    assert [f.condition for f in found] == ["NotLearning"] * told
    assert not told or "after 10 records" in found[0].text


def test_a_flat_loss_alone_is_no_trouble():
    rng = np.random.default_rng(0)
    assert noted(run_of(loss=0.147 + 0.02 * rng.standard_normal(1500))) <= {"LossOutliers"}
    falls = calm_curve(60)
    assert not troubles(run_of(loss=falls, grad_norm=[0.0] * 60)), "the norm was not measured"
    late = run_of(loss=np.linspace(2.776, 2.768, 30), grad_norm=[0.0] * 30, steps=range(29_020, 29_320, 10))
    assert not troubles(late)


def test_too_good_to_be_true():
    assert only(run_of(loss=[12.18, 1.8e-6, 0.0], grad_norm=[231, 0.1, 0.1]), "LossTooGood").first_step == 1
    overfit = 2.0 * 0.9 ** np.arange(120)
    assert not troubles(run_of(loss=np.round(overfit, 4)))
    assert only(run_of(loss=[0.0] * 16), "LossTooGood").first_step == 0
    assert not troubles(run_of(loss=[0.0] * 16, other__reward=np.arange(16))), "as in GRPO"


# Pace, learning rate, restarts, messages.


def test_a_loss_that_comes_back_from_where_it_flew_is_not_too_good():
    rng = np.random.default_rng(0)
    wild = rng.lognormal(8, 1, 300)
    run = run_of(loss=[4.0, 9.0, *wild, *rng.normal(4.5, 0.1, 300)])
    assert not [f for f in troubles(run) if f.condition == "LossTooGood"]


def test_steps_that_become_slow():
    seconds = np.ones(300)
    seconds[100:140] = 2.5
    assert noted(run_of(loss=calm_curve(300), step_seconds=seconds)) == {"SlowSteps"}
    rate = np.full(300, 1000.0)
    rate[150:] /= 4
    found = only(run_of(loss=calm_curve(300), throughput=rate), "SlowSteps")
    assert abs(found.first_step - 150) <= 5
    assert found.ratio == pytest.approx(4, rel=0.1)


def test_steps_of_a_policy_may_be_as_long_as_its_episodes():
    rate = np.full(300, 100.0)
    rate[100:] = 10.0
    run = replace(run_of(loss=calm_curve(300), throughput=rate), comparable=False)
    assert not troubles(run) and noted(run) == {"SlowSteps"}


def test_a_stop_between_records():
    run = run_of(loss=calm_curve(100))
    times = np.arange(100.0)
    times[60:] += 7200
    stopped = LogRun(**{**vars(run), "times": times})
    (found,) = detect(stopped)
    assert (found.condition, found.first_step, found.ratio) == ("TrainingPaused", 59, 7201)


def test_the_learning_rate():
    rate = 1e-3 * np.cos(np.linspace(0, np.pi / 2, 300))
    rate[250:] = 0
    rate[100:] *= 5
    assert noted(run_of(loss=calm_curve(300), learning_rate=rate)) == {"LearningRateSpike", "LearningRateZero"}


def test_steps_that_go_back():
    steps = [*range(100), *range(80, 200)]
    (found,) = detect(run_of(loss=calm_curve(220), steps=steps))
    assert (found.condition, found.first_step, found.ratio) == ("RunResumed", 80, 19)
    runs = run_of(loss=np.tile(calm_curve(100), 6), steps=list(range(100)) * 6)
    (found,) = detect(runs)
    assert (found.condition, found.records) == ("RunRestarted", 5)


def test_an_evaluation_before_the_first_record_belongs_to_the_new_run():
    eval_loss = [10.8, None, None, 4.0, None, 3.3, 10.8, None, None, 4.0, None, 3.3]
    made = run_of(eval_loss=eval_loss * 5, steps=[0, 1, 2, 3, 4, 5] * 10)
    training = [i for i in range(60) if i % 6 != 0]
    kept = {name: getattr(made, name)[training] for name in ("steps", "lines", "times")}
    run = LogRun(**{**vars(made), **kept})
    assert all(part.loss is not None and part.loss.steps[0] == 0 for part in segments(run))


def test_a_log_that_ends_with_an_error():
    last = [Remark("error", 49, 60, "RuntimeError: CUDA error: out of memory")]
    assert "out of memory" in only(run_of(loss=calm_curve(50), remarks=last), "TrainingStopped").text
    assert not troubles(run_of(loss=calm_curve(50), remarks=[Remark("error", 3, 4, "worker failed, retrying")]))
    stopped = [Remark("error", 49, 60, "SignalException: Process 16111 got signal: 15")]
    assert not troubles(run_of(loss=calm_curve(50), remarks=stopped))


@pytest.mark.parametrize("length", range(9))
def test_short_logs_break_nothing(length):
    values = falling(np.random.default_rng(length), 9)[:length]
    columns = ("loss", "eval_loss", "grad_norm", "learning_rate", "loss_scale", "step_seconds", "nan_steps")
    for fill in (values, np.full(length, NAN), np.full(length, INF), np.zeros(length)):
        detect(run_of(**dict.fromkeys(columns, fill)))


def test_a_slow_stretch_told_by_the_times_of_the_records_alone():
    seconds = np.where((np.arange(300) >= 120) & (np.arange(300) < 200), 90.0, 15.0)
    run = replace(run_of(loss=calm_curve(300)), times=np.cumsum(seconds))
    found = only(run, "SlowSteps")
    assert abs(found.first_step - 120) <= 5 and abs(found.last_step - 199) <= 5 and found.ratio == pytest.approx(6)


def test_a_loss_that_leaves_downwards_and_is_back_in_its_last_record():
    loss = np.concatenate((np.zeros(16), np.full(12, -2e4), [-10.0]))
    found = [f for f in detect(run_of(loss=loss)) if f.condition == "LossDivergence"]
    assert [f.first_step for f in found] == [16]


def test_what_grew_before_the_first_nan_is_told():
    told = [i for i in detect(run_of(loss=[39.7, 22.2, 68.6, 1266.9, 332.0, 1436176.0, *[np.nan] * 4])) if i.is_problem]
    (found,) = [i for i in told if i.condition == "NonFinite"]
    assert {(i.condition, i.first_step) for i in told} == {("NonFinite", 6), ("LossDivergence", 2)}
    assert found.evidence == (
        "Last finite value before: 1.436e+06.",
        "Largest before: 1.436e+06 at step 5; the median is 200.3.",
    )
    (found,) = [i for i in detect(run_of(loss=[4.0, 3.0, 2.0, 2.5, *[np.nan] * 4])) if i.is_problem]
    assert found.evidence == ("Last finite value before: 2.5.",)


def test_a_lower_scale_in_records_is_not_called_overflows():
    scale = [64.0, 8.0, 4.0, 4.0, 0.1, 0.1, 0.1, 0.1, 0.1]
    (found,) = [i for i in detect(run_of(loss=list(np.linspace(7, 4, 9)), loss_scale=scale)) if i.is_problem]
    assert found.text.startswith("The loss scale collapses at step 1: from 64 to 0.1 in 3 records. Below 1,")
    assert found.evidence == ("3 records with a lower scale, from step 1 to 4.",)


def test_a_long_span_above_all_others_is_no_noise_of_a_wild_curve():
    rng = np.random.default_rng(0)
    loss = 5 * np.exp(1.2 * rng.standard_normal(900))
    loss[150:450] = 3e3 * np.exp(rng.standard_normal(300))
    spike = only(run_of(loss=loss), "LossSpike")
    assert abs(spike.first_step - 150) <= 2 and abs(spike.last_step - 449) <= 2


def test_no_right_answer_in_any_validation_whose_loss_rises():
    columns = {"loss": np.linspace(4.6, 4.4, 8), "eval_loss": np.linspace(4.8, 6.3, 8)}
    accuracy = {"other__acc": np.linspace(0, 0.05, 8), "other__val_acc": np.zeros(8)}
    assert only(run_of(**columns, **accuracy), "EvaluationApart").signal == "val_acc"
    assert not troubles(run_of(**columns, other__acc=np.zeros(8), other__val_acc=np.zeros(8)))

"""Progress bars, scale searches, a single epoch: in the shapes of real logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabwatch.analysis import Analysis, analyze


@pytest.fixture
def judged(tmp_path: Path):
    def judge(text: str) -> Analysis:
        path = tmp_path / "train.log"
        path.write_text(text, encoding="utf-8")
        return analyze(path)

    return judge


def overflow(scale: float) -> str:
    return (
        "[2024-03-01 10:00:00,018] [INFO] [loss_scaler.py:181:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping "
        f"step. Attempted loss scale: {scale:g}, reducing to {scale / 2:g}"
    )


def test_an_overflow_behind_a_bar_has_the_step_of_the_bar(judged) -> None:
    lines = [f" 14%|█▍        | {512 + i}/2724 [13:57<86:18, 132.44s/it]{overflow(128 / 2**i)}\n\n" for i in range(7)]
    lines.insert(3, "{'loss': 2.0491, 'learning_rate': 0.00019, 'epoch': 0.28}\n")
    found = judged(
        "".join(lines) + "Exception: Current loss scale already at minimum - cannot decrease scale anymore.\n"
    )
    (collapse,) = [i for i in found.incidents if i.condition == "LossScaleCollapse"]
    assert collapse.first_step == 512
    assert "at step 512: from 128 to 1 in 7 overflows in a row" in collapse.text
    assert collapse.evidence == ("7 overflows from step 512 to 518.",)


def test_a_search_from_a_high_scale_is_no_collapse(judged) -> None:
    found = judged("".join(overflow(2.0 ** (32 - i)) + "\n" for i in range(8)))
    assert found.calm
    (search,) = found.incidents
    assert search.condition == "LossScaleSearch" and "reduced 8 times: the normal search." in search.text


def test_without_any_step_a_collapse_is_told_by_its_line(judged) -> None:
    found = judged("epoch starts\n" + "".join(overflow(2.0 ** (10 - i)) + "\n" for i in range(9)))
    (collapse,) = found.incidents
    assert "collapses in line 2: from 1024 to 2 in 9 overflows" in collapse.text and "step" not in collapse.text
    assert collapse.evidence == ("9 overflows; the log has no steps.",)


def test_the_bar_of_a_rollout_is_no_step(judged) -> None:
    def bar(step: int, loss: float) -> str:
        values = f"losses/total_loss: {loss} | losses/policy_loss: 0.1"
        return f"[{values}]:  16%|███▎   | {step}/6400 [1:16:09<1:07:04,  1.33it/s]"

    rollout = "[rollout 128 / 128]: 100%|█████| 128/128 [01:31<00:00,  1.40it/s]"
    found = judged(
        "".join(f"{rollout}{bar(1024 + i, 1.6 - 0.01 * i)}[RANK 0] Collecting rollouts\n" for i in range(12))
    )
    assert (found.first_step, found.last_step) == (1024, 1035)
    assert found.incidents == ()


def test_an_endless_number_of_epochs_is_no_infinite_loss(judged) -> None:
    text = "".join(
        f"Epoch {n}/inf, loss={9 - n / 10:.3f}: 100%|████████| 2432/2432 [17:24<00:00,  2.29samples/s]\n"
        f"Validating, loss={800 + n}.257:  94%|█████████▍| 256/271 [00:40<00:02,  6.63samples/s]\n"
        for n in range(1, 12)
    )
    found = judged(text)
    assert found.calm
    assert not [i for i in found.incidents if i.condition in ("NonFinite", "RunRestarted", "RunResumed")]


def test_a_few_noisy_records_have_no_spike(judged) -> None:
    losses = (0.2636, 0.6618, 0.3663, 0.2678, 0.3992, 0.4918, 0.2143, 1.0149)
    assert judged("".join(f"global step {374 + i}: loss = {x} (0.29 sec/step)\n" for i, x in enumerate(losses))).calm
    alone = (0.26, 0.27, 2.6, 2.4, 0.28, 0.26, 0.25)
    found = judged("".join(f"global step {374 + i}: loss = {x} (0.29 sec/step)\n" for i, x in enumerate(alone)))
    assert [i.condition for i in found.incidents] == ["LossSpike"]


def test_an_only_epoch_is_one_record(judged) -> None:
    stamp = "2024-07-09 13:3{}:30.162810: "
    lines = ("Epoch 0", "Current learning rate: 0.01", "train_loss nan", "val_loss nan", "Epoch time: 264.58 s")
    found = judged("".join(f"{stamp.format(i)}{line}\n" for i, line in enumerate(lines)))
    assert (found.records, found.first_step, found.last_step) == (1, 0, 0)
    assert found.diagnosis.verdict.startswith("The loss is NaN at epoch 0")


@pytest.mark.parametrize("heading", ["", "--- epoch {e} ---\n"], ids=["in the bar", "below it"])
def test_values_below_the_full_bars_of_an_epoch_are_its_record(judged, heading) -> None:
    bars = (
        "[train]{at}: 100%|##########| 196/196 [00:08<00:00, 22.81it/s]\n[test]: 100%|##########| 40/40 [00:01<00:00]\n"
    )
    text = "".join(
        bars.format(at="" if heading else f" Epoch {e}/9")
        + heading.format(e=e)
        + f"train loss : {3 - e / 9:.4f}\nlr : 0.001\n"
        for e in range(1, 9)
    )
    found = judged(text + bars.format(at="" if heading else " Epoch 9/9") + heading.format(e=9) + "train loss : nan\n")
    assert [(i.condition, i.first_step) for i in found.incidents] == [("NonFinite", 9)]


@pytest.mark.parametrize("times", [1, 2], ids=["drawn once", "drawn twice"])
def test_full_bars_without_an_epoch_are_one_epoch_each(judged, times) -> None:
    bar = "100%|##########| 938/938 [00:10<00:00, 92.5it/s, loss={}]\n"
    losses = [f"{3 - e / 9:.4f}" for e in range(1, 9)] + ["nan"]
    found = judged("".join(bar.format(loss) * times for loss in losses))
    assert found.last_step == 9
    assert [(i.condition, i.first_step) for i in found.incidents if i.is_problem] == [("NonFinite", 9)]


@pytest.mark.parametrize("score", [0.0, 0.2])
def test_the_summary_of_coco_has_the_scores_of_an_evaluation(judged, score) -> None:
    summary = (
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {s:.3f}\n"
        " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = {s:.3f}\n"
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = -1.000\n"
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.001\n"
    )
    epochs = (f"Epoch {e} loss: {1 + 1 / e:.4f}\n" + summary.format(s=score) for e in range(1, 9))
    told = [i for i in judged("".join(epochs)).incidents if i.is_problem]
    assert [i.condition for i in told] == ([] if score else ["NotLearning"])
    assert score or "'val/AP', 'val/AP_50'" in told[0].text


def test_a_loss_that_is_exactly_0_in_the_second_of_two_records(judged) -> None:
    dicts = "{{'loss': 2.0412, 'learning_rate': 4e-05, 'epoch': 0.01}}\n{{'loss': {}, 'epoch': 0.03}}\n"
    assert [i.condition for i in judged(dicts.format("0.0")).incidents if i.is_problem] == ["LossTooGood"]
    assert judged(dicts.format("1.9")).calm

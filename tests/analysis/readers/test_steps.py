"""Steps of logs: the trainer's own, never invented, and no restart where there was none."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis.readers import read_log

N = 30
LOSSES = [5 - i / 20 for i in range(N)]


def _log(tmp_path, text):
    path = tmp_path / "train.log"
    path.write_text(text, newline="")
    return read_log(path)


def _run(tmp_path, text):
    return _log(tmp_path, text).runs[0]


OWN = {
    "itr": "itr {s} loss {l:.4f}",
    "itr with a colon": "itr: {s}, loss: {l:.4f}",
    "it": "it {s} loss {l:.4f} gnorm 0.5",
    "it=": "it={s} loss={l:.4f}",
    "a count and a bar": "{s} | loss {l:.4f} | lr 5.0e-05 | 8060.78ms | mfu 0.21%",
    "a count in brackets": "[{s}] model_loss {l:.4f} / model_grad_norm 0.5",
    "a count in brackets of boosting": "[{s}]\ttrain-rmse:{l:.4f}\teval-rmse:0.95",
    "LightGBM's": "[{s}]\ttraining's rmse: {l:.4f}\tvalid_1's rmse: 0.95",
    "a count and a colon": "{s}: loss {l:.4f}",
    "bold": "**Step {s}** *loss*: **{l:.4f}** `lr`: `1e-4`",
    "a count behind the name": "Train loss {s} {l:.6f} Grad Norm 0.5 3.99s/it",
    "camel case": "globalStep={s} loss={l:.4f}",
    "a path": "train/global_step: {s}  train/loss: {l:.4f}",
    "dashes": "Epoch: 1/1, Iter: {s}/9000 -- train_loss: {l:.4f}",
    "beside an epoch": "Epoch  1, {s}/37527; acc:   3.99; xent: {l:.4f}; 3438 src tok/s",
    "progress": "Epoch 0 [TRAIN] progress {s}/9000 loss {l:.4f} a_loss 0.4",
    "Keithito's": "Step {s:<7} [2.900 sec/step, loss={l:.4f}, avg_loss=0.56]",
}  # fmt: skip


@pytest.mark.parametrize("form", OWN)
def test_a_step_is_the_trainers_own(form, tmp_path):
    text = "starting up\n" + "".join(OWN[form].format(s=100 + 10 * i, l=loss) + "\n" for i, loss in enumerate(LOSSES))
    run = _run(tmp_path, text)
    assert run.step_unit == "step"
    assert run.steps.tolist() == run.of("loss").steps.tolist() == [100 + 10 * i for i in range(N)]
    assert run.of("loss").values.tolist() == pytest.approx(LOSSES)


def test_validations_under_another_name_leave_counts_at_the_start_alone(tmp_path):
    text = "".join(
        (f"step {i * 10}: train loss 4.5000, val loss 4.6000\n" if i % 10 == 0 else "") + f"{i * 10} | loss {5 - i / 20:.4f} | lr 1e-4\n"
        for i in range(N)
    )  # fmt: skip
    run = _run(tmp_path, text)
    assert run.of("loss").steps.tolist() == [10 * i for i in range(N)] and run.of("loss").name == "loss"
    assert run.steps.tolist() == [10 * i for i in range(N)]


@pytest.mark.parametrize("per_epoch", [1, 5, 30])
def test_an_epoch_and_a_batch_written_as_a_fraction(per_epoch, tmp_path):
    line = "2021-11-30 17:25:01,809 DEBUG {k} Batch {e}/{b} loss {l:.4f} loss_ctc 1.5 lr 0.001 rank 0\n"
    text = "".join(
        line.format(k="TRAIN", e=i // per_epoch, b=100 * (i % per_epoch), l=loss)
        + (line.format(k="CV", e=i // per_epoch, b=0, l=9.5) if i % per_epoch == per_epoch - 1 else "")
        for i, loss in enumerate(LOSSES)
    )
    run = _run(tmp_path, text)
    assert run.of("loss").values.tolist() == pytest.approx(LOSSES)
    assert len(set(run.of("loss").steps.tolist())) == N
    assert set(run.of("eval_loss").values.tolist()) == {9.5}


def test_a_batch_of_so_many_stays_a_step(tmp_path):
    run = _run(tmp_path, "".join(f"Batch {10 * i}/4000 loss {loss:.4f}\n" for i, loss in enumerate(LOSSES)))
    assert run.of("loss").steps.tolist() == [10 * i for i in range(N)]


BLOCK = """################################################################################
                      Learning iteration {s}/9000

                       Computation: 44180 steps/s (collection: 1.731s, learning 0.495s)
               Value function loss: {l:.4f}
                    Surrogate loss: 0.0100
                Mean entropy loss: 17.0000
                       Mean reward: 2.69
{dashes}
                   Total timesteps: {t}
                    Iteration time: 2.23s
"""


def test_a_block_has_one_step_whatever_else_it_counts(tmp_path):
    text = "".join(BLOCK.format(s=17 + i, l=loss, t=98304 * (17 + i), dashes="-" * 80) for i, loss in enumerate(LOSSES))
    run = _run(tmp_path, text)
    assert run.steps.tolist() == [17 + i for i in range(N)]
    assert run.of("loss").name == "Value function loss" and run.of("loss").values.tolist() == pytest.approx(LOSSES)
    assert run.of("step_seconds").steps.tolist() == run.steps.tolist()


def test_frames_count_where_nothing_else_does(tmp_path):
    run = _run(tmp_path, "".join(f"total_timesteps: {2048 * i} loss: {loss:.3f}\n" for i, loss in enumerate(LOSSES)))
    assert run.of("loss").steps.tolist() == [2048 * i for i in range(N)]


@pytest.mark.parametrize("width", [60, 80])
def test_lines_that_a_terminal_wrapped_add_no_steps(width, tmp_path):
    line = "iteration {s:8}/  159576 | consumed samples: 25 | learning rate: 6.000E-05 | lm loss: {l:.6E} | grad norm: 0.517 | number of nan iterations:   0 |"
    lines = [line.format(s=i, l=loss) for i, loss in enumerate(LOSSES, 1)]
    text = "".join(
        piece + "\n" for line in lines for piece in (line[i : i + width] for i in range(0, len(line), width))
    )
    run = _run(tmp_path, text)
    assert run.steps.tolist() == list(range(1, N + 1))


def test_records_that_repeat_a_step_get_none_of_their_own(tmp_path):
    log = _log(tmp_path, "".join(f"step {100 * i} loss {loss:.3f}\n  loss: 7.0\n" for i, loss in enumerate(LOSSES)))
    assert log.runs[0].of("loss").steps.tolist() == [100 * i for i in range(N)]
    assert log.runs[0].of("loss").values.max() < 7 and any("without a separate step" in note for note in log.notes)


def test_records_behind_a_stray_step_are_numbered_and_it_is_said(tmp_path):
    text = "Resumed at step 500, loss: 5.5\n" + "".join(f"train loss: {loss:.3f}\n" for loss in LOSSES)
    text = text.replace("train loss", "loss")
    log = _log(tmp_path, text)
    assert log.runs[0].step_unit == "ordinal" and any("numbered" in note for note in log.notes)
    assert log.runs[0].of("loss").steps.tolist() == list(range(N))


@pytest.mark.parametrize("stamp", ["[{:.3f}] ", "[{:10.6f}] "])
def test_seconds_in_brackets_are_no_step(stamp, tmp_path):
    text = "".join(f"{stamp.format(7.25 + 1.5 * i)}loss: {loss:.3f} lr: 0.1\n" for i, loss in enumerate(LOSSES))
    assert _run(tmp_path, text).step_unit == "ordinal"


def test_a_rank_in_brackets_is_no_step(tmp_path):
    run = _run(tmp_path, "".join(f"[0] loss: {loss:.3f} lr: 0.1\n" for loss in LOSSES))
    assert run.step_unit == "ordinal" and len(run.of("loss")) == N


TABLES = {
    "skorch": ("  epoch    train_loss    valid_loss     dur\n-------  ------------  ------------  ------\n", "      {s}        {l:.4f}        4.9000  0.0566\n"),
    "fastai": ("epoch     train_loss  valid_loss  accuracy  time    \n", "{s}         {l:.6f}    4.900000    0.810000  00:17     \n"),
    "spaCy": ("Training pipeline\nE    #       LOSS NER  ENTS_F  SCORE \n---  ------  --------  ------  ------\n", "  0     {s:5}     {l:.4f}    0.00    0.00\n"),
    "rich": ("┏━━━━━━┳━━━━━━━┓\n┃ Step ┃ Loss  ┃ LR   ┃\n┡━━━━━━╇━━━━━━━┩\n", "│ {s}    │ {l:.4f} │ 1e-3 │\n"),
    "Markdown": ("| step | train loss | val loss |\n|---|---|---|\n", "| {s} | {l:.4f} | 4.9 |\n"),
    "notebook": ("Step\tTraining Loss\tValidation Loss\n", "{s}\t{l:.4f}\t4.9\n"),
}  # fmt: skip


@pytest.mark.parametrize("banner", ["", "Loading the data set ...\nnothing to see\n"])
@pytest.mark.parametrize("form", TABLES)
def test_tables_on_a_terminal(form, banner, tmp_path):
    head, row = TABLES[form]
    run = _run(tmp_path, banner + head + "".join(row.format(s=i + 1, l=loss) for i, loss in enumerate(LOSSES)))
    assert run.of("loss").steps.tolist() == list(range(1, N + 1))
    assert run.of("loss").values.tolist() == pytest.approx(LOSSES)


def test_a_step_that_counts_through_the_epochs_begins_again_with_another_training(tmp_path):
    text = ""
    for epoch in [*range(6), *range(6)]:
        steps = [300 * epoch + 100 * i for i in range(3)]
        text += "".join(f"[Step {step}] cos: 1.0000 | NormRatio: 0.9{step}\n" for step in steps)
        text += f">>> Ep {epoch + 1}: Loss {3 - epoch / 4:.4f} | ACC 90.00%\n"
    told = [200 + 300 * epoch for epoch in range(6)]
    assert _run(tmp_path, text).of("loss").steps.tolist() == [*told, *told]


def test_steps_in_the_answers_of_a_language_model_are_none(tmp_path):
    answer = (
        "Here is how to solve it:\n\n**Step 1: Find the daily consumption:** 45 litres per day.\n"
        "* **Step 2: Multiply by the number of days:** 15 litres/day * 4 days = 60 litres.\nStep 400\n**Final answer: 60**\n"
    )
    run = _run(tmp_path, "".join(f"{answer}Step: {s} | Loss: {x:.4f} | KL: 0.01\n" for s, x in enumerate(LOSSES, 1)))
    assert run.of("loss").steps.tolist() == list(range(1, N + 1))


def test_a_date_at_the_start_of_a_line_is_no_step(tmp_path):
    date = "2021-07-21 14:41:15.285490: I core/profile_utils/cpu_utils.cc:94] CPU Frequency: 3699850000 Hz\n"
    lines = (f"[{s + 1:8} Epoch:[ 0/25] [{s:4}/20018] time: 9.3, d_loss: {x:.8f}\n" for s, x in enumerate(LOSSES))
    assert _run(tmp_path, date + "".join(lines)).of("loss").steps.tolist() == list(range(N))

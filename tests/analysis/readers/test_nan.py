"""NaN and infinity in whatever a program writes them, in text and in tables; messages about them; what follows from it."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import json
import math

import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.names import is_trained, number

N, AT = 30, 20


def _write(tmp_path, text, name="train.log"):
    path = tmp_path / name
    path.write_text(text, newline="")
    return path


def _loss(tmp_path, text, name="train.log"):
    return read_log(_write(tmp_path, text, name)).runs[0].of("loss")


WORDS = {
    math.nan: ["nan**", "**nan**", "`nan`", "-nan", "nan(ind)", "-nan(ind)", "-nan(snan)", "1.#IND", "-1.#IND00", "1.#QNAN", "1.#SNAN",
               "[nan]", "(nan)", "{nan}", "<nan>", "'nan'", "tensor(nan)", "tensor(nan, device='cuda:0', grad_fn=<NllLossBackward0>)",
               "tensor([nan], dtype=torch.float16)", "Array(nan, dtype=float32)", "np.float64(nan)", "NaN%", "NAN;"],
    math.inf: ["inf", "Infinity", "+inf", "1.#INF", "1.#INF00", "tensor(inf, device='cuda:3')", "**inf**"],
    -math.inf: ["-inf", "-1.#INF", "-Infinity"],
}  # fmt: skip
SPELLED = [(word, value) for value, words in WORDS.items() for word in words]
FORMS = (
    "step {s} loss: {l} lr: 0.1",
    "step={s} loss={l} lr=0.1",
    "step {s} loss {l} lr 0.1",
    "| step {s} | loss: {l} | lr 0.1 |",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("word", "value"), SPELLED)
def test_numbers_that_are_none_in_text(word, value, form, tmp_path):
    loss = _loss(tmp_path, "".join(form.format(s=i, l=word if i >= AT else 2.5) + "\n" for i in range(N)))
    assert loss.steps.tolist() == list(range(N)) and loss.values[:AT].tolist() == [2.5] * AT
    assert [str(v) for v in loss.values[AT:]] == [str(value)] * (N - AT)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("word", ["nan", "NaN", "-nan(ind)", "1.#QNAN", "[nan]", "tensor(nan)", "**nan**", '"nan"'])
def test_numbers_that_are_none_in_a_table(word, delimiter, tmp_path):
    rows = "".join(delimiter.join((str(i), word if i >= AT else "2.5", "0.1")) + "\n" for i in range(N))
    loss = _loss(tmp_path, delimiter.join(("step", "loss", "lr")) + "\n" + rows, "metrics.csv")
    assert [math.isnan(v) for v in loss.values] == [False] * AT + [True] * (N - AT)


@pytest.mark.parametrize("word", ["", "N/A", "-", "None", "No Log", "12:30", "2024-01-01", "abc", "1.5K"])
def test_what_is_no_number(word):
    assert number(word) is None


def test_code_and_markup_are_told_apart(tmp_path):
    text = "x**2 loss = 5\ndef f(**kwargs): loss = 3\n" + "".join(f"epoch {i} **loss**: {2.5}**\n" for i in range(N))
    assert len(_loss(tmp_path, text)) == N


MESSAGES = [
    "Loss is nan, stopping training",
    "FloatingPointError: Loss became infinite or NaN at iteration=12!",
    "WARNING: NaN or Inf found in input tensor.",
    "WARNING non-finite loss, ending training",
    "NaN detected in output of encoder.layers.0, backward",
    "Detected inf or nan values in gradients",
    "Received a nan loss, setting loss value to 0",
    "The grad norm is nan. Skipping updating the model.",
    "Gradients contain NaN",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_nan_arrive(message, tmp_path):
    text = "".join(f"step: {i} loss: 2.5\n" for i in range(5))
    (remark,) = read_log(_write(tmp_path, text + message + "\n")).runs[0].remarks
    assert remark.kind in ("nan_message", "error") and (remark.step, remark.line) == (4, 6)


SCALES = {
    "Grad scale is small: 1.29e-26": 1.29e-26,
    "RuntimeError: grad_scale is too small, exiting: 1.2e-05": 1.2e-5,
    "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding.": 0.0001,
    "NOTE: gradient overflow detected, ignoring gradient, setting loss scale to: 0.5": 0.5,
}


@pytest.mark.parametrize("message", SCALES)
@pytest.mark.parametrize("prefix", ["", "2024-01-14 01:03:00,826 WARNING [train.py:1057] "])
def test_a_loss_scale_that_collapsed_is_told(message, prefix, tmp_path):
    text = "".join(
        f"{prefix}Epoch 1, batch {50 * i}, loss[loss=0.66, over 19153.00 frames. ], lr: 2.7e-02\n" for i in range(9)
    )
    log = read_log(_write(tmp_path, text + 3 * f"{prefix}{message}\n"))
    assert [r.value for r in log.runs[0].remarks] == [SCALES[message]] * 3
    assert "LossScaleCollapse" in [i.condition for i in detect(log.runs[0])]


def _incidents(tmp_path, text, name="train.log"):
    return [i for i in detect(read_log(_write(tmp_path, text, name)).runs[0]) if i.condition == "NonFinite"]


@pytest.mark.parametrize("beside", ["", ",0.1"])
def test_rows_that_go_blank_are_missing_losses(beside, tmp_path):
    head = "step,loss" + (",lr" if beside else "") + "\n"
    rows = "".join(f"{i},{3 - i / 50 if i < AT else ''}{beside}\n" for i in range(2 * N))
    (found,) = _incidents(tmp_path, head + rows, "metrics.csv")
    assert (found.first_step, found.last_step, found.severity) == (AT, None, "critical")


@pytest.mark.parametrize("beside", ["", ",0.1"])
def test_rows_that_are_blank_for_a_while(beside, tmp_path):
    head = "step,loss" + (",lr" if beside else "") + "\n"
    rows = "".join(f"{i},{'' if AT <= i < AT + 5 else 3 - i / 50}{beside}\n" for i in range(2 * N))
    (found,) = _incidents(tmp_path, head + rows, "metrics.csv")
    assert (found.first_step, found.last_step, found.severity) == (AT, AT + 4, "warning")


def test_blank_cells_of_a_table_that_logs_now_and_then_are_none(tmp_path):
    rows = "".join(f"{i},{3 - i / 200 if i % 10 == 0 else ''},0.1\n" for i in range(200))
    assert not _incidents(tmp_path, "step,loss,lr\n" + rows, "metrics.csv")


@pytest.mark.parametrize("always", [False, True])
def test_a_loss_of_zero_beside_a_validation_of_nan_is_a_filtered_nan(always, tmp_path):
    history = [
        {"step": 10 * i, "loss": 2.5 - i / 20 if i < 10 and not always else 0.0, "epoch": i / 4} for i in range(1, 21)
    ]
    history += [
        {"step": 10 * i, "eval_loss": 2.5 if i < 10 and not always else math.nan, "epoch": i / 4}
        for i in (4, 8, 12, 16, 20)
    ]
    history.sort(key=lambda record: record["step"])
    path = _write(tmp_path, json.dumps({"log_history": history}), "trainer_state.json")
    incidents = detect(read_log(path).runs[0])
    (found,) = [i for i in incidents if i.condition == "NonFinite"]
    assert (found.first_step, found.severity) == (10 if always else 100, "critical") and "0.0" in found.text
    assert "LossTooGood" not in [i.condition for i in incidents]


@pytest.mark.parametrize(
    ("name", "severity"),
    [("value_loss", "critical"), ("train/policy_loss", "critical"), ("critic/loss", "critical"), ("approx_kl", "info")],
)
def test_nan_in_a_loss_of_its_own_is_as_grave_as_in_the_loss(name, severity, tmp_path):
    text = "".join(f"step: {i} loss: {3 - i / 50:.3f} {name}: {'nan' if i >= AT else 0.5}\n" for i in range(N))
    (found,) = _incidents(tmp_path, text)
    assert (found.first_step, found.severity) == (AT, severity)


@pytest.mark.parametrize(
    "name",
    ["value_loss", "Mean value_function loss", "losses/value_loss", "train/policy_gradient_loss", "critic_loss",
     "loss/policy_avg", "actor_loss/Average", "model_loss", "vf_loss", "qf1_loss", "G_loss", "D_loss"],
)  # fmt: skip
def test_losses_that_train_a_network_of_their_own(name):
    assert is_trained(name)


@pytest.mark.parametrize("name", ["loss", "loss_box_reg", "entropy_loss", "val/value_loss", "grad_norm", "loss_mask"])
def test_losses_that_do_not(name):
    assert not is_trained(name)

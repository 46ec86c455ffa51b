"""Further shapes of logs that people paste, with other numbers, and what is said of them; look-alikes that are calm."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis import analyze

FRAME = "   epoch  train_loss  val_loss\n"
BOOST = "{0}:\tlearn: {1}\ttest: {2}\tbest: {2} ({0})\ttotal: {3}ms\tremaining: 11.{4}s"
VAE = "  210/210 \\[======\\] - 3s 4ms/step - loss:\n  {1} - accuracy: 0.61 - val_loss: {2}\\"
SPEECH = "Epoch {0} |   Training | Elapsed Time: 0:00:11 | Steps: 411 | Loss: {1}\nEpoch {0} | Validation | Elapsed Time: 0:00:02 | Steps: 41 | Loss: {2}"
FALL = [9.4, 7.1, 5.3, 4.4, 4.1, 3.6]
BACK = [15.2, 8.6, 5.9, 4.5, 3.5, 3.1]


def _lines(form: str, rows) -> str:
    return "".join(form.format(*row) + "\n" for row in rows)


def _told(tmp_path, text: str):
    path = tmp_path / "log.txt"
    path.write_text(text)
    analysis = analyze(path)
    run = analysis if hasattr(analysis, "incidents") else next(iter(analysis))
    return [(i.condition, i.first_step) for i in run.incidents if i.is_problem]


TROUBLE = {
    "a printed data frame": (
        FRAME
        + _lines(
            "{0}  {0:5}  {1:10.6f}  {1:8.6f}", [(i, x) for i, x in enumerate([2.1, 1.6, 1.3, 1.1, 4.9, 11.2, 30.1])]
        ),
        [("LossDivergence", 4)],
    ),
    "words of other languages": (
        _lines(
            "Époque {0}/40 : perte = {1} ; précision = 0.4",
            [(i + 1, x) for i, x in enumerate([1.9, 1.5, 1.2, "nan", "nan"])],
        ),
        [("NonFinite", 4)],
    ),
    "a number of rows without names": (
        _lines(
            "INFO:align, 2022-03-10 18:{0}:12,212, epoch, 00{0}, {1}, 0.0{2}",
            [(30 + i, 0.041 + i % 3 / 100, 17 + i) for i in range(11)] + [(41, 21.7, 21)],
        ),
        [("LossSpike", 41)],
    ),
    "a lone number without a name": (
        _lines("{0}:\t{1}", [(i, -3.1 - 0.2 * i) for i in range(8)] + [(8, "nan"), (9, "nan")]),
        [("NonFinite", 8)],
    ),
    "numbers below words": (
        "the val losses of some epochs:\n"
        + _lines("{0}", [(2.31,), (46.2,), (2.04,), (72.1,), (1.93,), (1.98,), (1934.05,), (1.67,), (1.5,)]),
        [("LossSpike", 1)],
    ),
    "an evaluation in thousands": (
        "mean loss: 0.0181\naccuracy: 0.9951\neval mean loss: 141.2\neval accuracy: 0.0391\n",
        [("EvaluationApart", 0)],
    ),
    "perplexities of buckets": (
        "global step 13800 learning rate 0.4851 step-time 0.18 perplexity 1.02\n  eval: bucket 0 perplexity 9192400.69\n  eval: bucket 1 perplexity 24779421.72\n",
        [("EvaluationApart", 13800)],
    ),
    "a loss with the letter of formulas": (
        _lines("Step 000000{0} L_out=  nan Acc=0.00 --- 1408.79 ms/batch", [(50,), (60,), (70,)]),
        [("NonFinite", 50)],
    ),
    "three costs": (
        "Epoch number: 0, cost: 511.2\nEpoch number: 1, cost: 297486752.0\nEpoch number: 2, cost: 2.1e+18\n",
        [("LossDivergence", 1)],
    ),
    "diverged before the log begins": (
        _lines("m -5.1e+35, b -1.0e+34, cost {1}e+74 iteration {0}", [(997, 4.6), (998, 5.4), (999, 6.3)]),
        [("LossDivergence", 997)],
    ),
    "from billions back to millions": (
        _lines(
            "{0} Loss : {1}",
            [
                (328 + i, x)
                for i, x in enumerate(
                    [0.056, 0.051, 0.05, 0.037, 0.052, 0.049, 0.048, 1.5, 3.6e7, 1.7e10, 1.5e10, 1.1e9, 1.8e8]
                )
            ],
        ),
        [("LossDivergence", 335)],
    ),
    "a spike in a short descent": (
        _lines("step {0} loss {1}", [(10 * (i + 1), x) for i, x in enumerate([*FALL, *BACK, 2.9, 2.8, 2.7])]),
        [("LossSpike", 70)],
    ),
    "two evaluations in a validation of one epoch": (
        _lines(
            SPEECH, [(i, x, x + 2) for i, x in enumerate([92.3, 81.1, 70.2, 61.3, "nan"][:4])] + [(4, "nan", "nan")]
        ),
        [("NonFinite", 4)],
    ),
}

CALM = {
    "the same data frame": FRAME + _lines("{0}  {0:5}  {1:10.6f}  {1:8.6f}", [(i, 2.1 * 0.9**i) for i in range(12)]),
    "the times of CatBoost": _lines(
        BOOST, [(i, 0.251 + 0.004 * (-1) ** i, 0.26, 11 * (i + 1), i % 10) for i in range(40)]
    ),
    "gradient descent on squares": _lines(
        "iteration: {0} w: 9.3 b: 2.7 cost: {1}",
        [(1, 439.75), (101, 0.2302), (201, 0.2059), (301, 0.1842), (401, 0.1647), (501, 0.1474)],
    ),
    "a table of a region that was broken": (
        "Region 82 Avg IOU: -nan(ind), Class: -nan(ind), Obj: -nan(ind), No Obj: 0.502225\n, .5R: -nan(ind), .75R: -nan(ind),  count: 0\n"
        "Region 94 Avg IOU: 0.389245, Class: 0.435512, Obj: 0.600462, No Obj: 0.503660, .\n5R: 0.285714, .75R: 0.000000,  count: 7\n"
    ),
    "scores of games that vary": _lines(
        "Episode: {0}, Avg Score: {1}",
        [
            (20 * i, s)
            for i, s in enumerate(
                [27, 26, 31, 52, 48, 95, 139, 209, 334, 285, 125, 193, 243, 152, 131, 141, 188, 292, 225, 274, 287, 284]
            )
        ],
    ),
    "numbers below other words": "the sizes of the layers:\n"
    + _lines("{0}", [(2.3,), (46.2,), (2.0,), (72.1,), (1.9,), (1934.0,), (1.7,)]),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble(name, tmp_path):
    text, expected = TROUBLE[name]
    told = _told(tmp_path, text)
    assert set(expected) <= set(told), told


@pytest.mark.parametrize("name", CALM)
def test_calm(name, tmp_path):
    try:
        assert _told(tmp_path, CALM[name]) == []
    except Exception as error:  # a log of which nothing is read is calm too
        assert type(error).__name__ == "LogError"


def test_a_line_that_was_broken_between_a_name_and_its_number(tmp_path):
    text = "".join(f"Epoch {e}/9\\\n" + VAE.format(e, x, "nan") + "\n" for e, x in ((1, 0.58), (2, 0.57), (3, 0.56)))
    assert ("NonFinite", 210) in _told(tmp_path, text) or ("NonFinite", 1) in _told(tmp_path, text)


def test_a_step_up_to_a_flat_end_above_all_before(tmp_path):
    before = [4.05 - 0.05 * i + 0.02 * (-1) ** i for i in range(15)]
    text = _lines("step {0} loss {1:.3f}", [(i, x) for i, x in enumerate([*before, *([4.3, 4.31, 4.3] * 4)])])
    assert ("LossDivergence", 15) in _told(tmp_path, text)
    text = _lines(
        "step {0} loss {1:.3f}", [(i, x) for i, x in enumerate([*before, *(4.3 - 0.05 * i for i in range(12))])]
    )
    assert not _told(tmp_path, text), "it falls from there, as with other data"


def test_the_loss_of_a_last_batch_is_no_spike(tmp_path):
    values = [0.033, 0.0125, 0.062, 0.043, 0.067, 0.061, 0.036, 0.0055, 0.024, 0.039, 0.0112]
    assert not _told(tmp_path, _lines("[Epoch {0}] loss={1}", [(5 + i, x) for i, x in enumerate(values)]))


def test_two_classes_that_are_guessed_wrongly(tmp_path):
    rows = [
        (i + 1, x, a)
        for i, (x, a) in enumerate(
            [
                (0.731, 41.2),
                (0.698, 49.1),
                (0.6951, 33.1),
                (0.694, 40.2),
                (0.6933, 42.1),
                (0.6932, 44.9),
                (0.6933, 46.8),
                (0.6931, 48.7),
            ]
        )
    ]
    form = "Epoch {0:02} Loss: {1}, Acc.: {2}%"
    assert ("NotLearning", 1) in _told(tmp_path, _lines(form, rows))
    assert not _told(tmp_path, _lines(form, [(e, x - 0.02 * e, a + 4 * e) for e, x, a in rows]))


def test_a_loss_of_values_that_doubles(tmp_path):
    form = "Epoch #{0}: 10001it [00:11, 911.2it/s, env_step={0}0000, loss={1:.3f}, rew={2}]"
    calm = [(i + 1, 0.7 + 0.1 * (i % 2), 10 + i) for i in range(30)]
    assert not _told(tmp_path, _lines(form, calm))
    grows = [*calm, *((30 + i, 0.7 * 2.6**i, 40) for i in range(1, 24))]
    assert [kind for kind, _ in _told(tmp_path, _lines(form, grows))] == ["LossDivergence"]


@pytest.mark.parametrize(
    ("values", "kind", "at"),
    [
        ([0.37, 0.09, -0.12, 4.2, 24.1, 147.2, 140.3, 148.1], "LossDivergence", 3),
        (
            [
                -0.62,
                -0.69,
                -0.72,
                -0.738,
                -0.746,
                -0.747,
                -0.749,
                -0.75,
                -0.749,
                -0.75,
                1.31,
                0.24,
                -0.36,
                -0.57,
                -0.67,
            ],
            "LossSpike",
            10,
        ),
        ([0.87, 0.69, 0.64, 4.3, 23.1, 115.2, 673.8, 127.7, 125.8, 123.1], "LossDivergence", 3),
    ],
)
def test_jumps_from_below_zero_and_ends_far_above(values, kind, at, tmp_path):
    assert (kind, at) in _told(tmp_path, _lines("step {0} loss {1}", enumerate(values)))


def test_the_first_steps_without_a_warm_up_stay_calm(tmp_path):
    for values in ([10.8, 9.9, 14.1, 22.3, 31.0, 27.2, 22.1, 17.4], [-0.2, -0.4, 0.9, 1.3, 0.8, 0.2, -0.3, -0.6]):
        assert not _told(tmp_path, _lines("step {0} loss {1}", enumerate(values)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reward", [1.7e308, 5e-324, -1e308])
def test_rewards_at_the_ends_of_the_range(reward, tmp_path):
    for loss in (1e308, 1e-308, 2.0):
        rows = [(i, loss, reward) for i in range(6)]
        _told(tmp_path, _lines("iteration {0} value_loss: {1} reward: {2} policy_loss: 0.1", rows))
        _told(tmp_path, _lines("iteration {0} value_loss: {1} reward: {2} policy_loss: 0.1", rows[:3]))


@pytest.mark.parametrize("lower", [True, False])
def test_a_long_rise_whose_gradients_are_lower_is_no_instability(lower, tmp_path):
    loss = [4 * 0.985**i + 0.7 for i in range(150)]
    loss += [1.5 - 0.0065 * i for i in range(110)]
    norm = [1.6 + 0.1 * (i % 3) for i in range(150)] + [(1.2 if lower else 3.9) + 0.1 * (i % 3) for i in range(110)]
    rows = [(100 * i, x, g) for i, (x, g) in enumerate(zip(loss, norm, strict=True))]
    told = _told(tmp_path, _lines("step {0} loss {1:.4f} grad_norm {2:.2f}", rows))
    assert [kind for kind, _ in told if kind == "LossSpike"] == ([] if lower else ["LossSpike"])

"""What stands around the records of epochs: an evaluation after the last, dots for those left out, a record alone."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

from stabwatch.analysis import analyze

BAR = "{0}/{0} [==============================] - 3s 59us/sample - loss: {1} - accuracy: 0.3957 - val_loss: 2.3088"


def _curves(tmp_path, text, name="log.txt"):
    path = tmp_path / name
    path.write_text(text)
    run = analyze(path)
    return run, {c.name: (c.steps.tolist(), c.values.tolist()) for c in run.curves.columns}


def test_an_evaluation_after_the_last_epoch_is_none_of_the_training(tmp_path):
    epochs = "".join(
        f"Epoch {i}/5\n1563/1563 [=====] - 5s 3ms/step - loss: 0.{9 - i} - accuracy: 0.5\n" for i in range(1, 6)
    )
    run, columns = _curves(tmp_path, f"{epochs}313/313 - 1s - loss: 0.61 - accuracy: 0.5\n")
    assert run.unit == "epoch" and columns["loss"] == ([1, 2, 3, 4, 5], [0.8, 0.7, 0.6, 0.5, 0.4])
    assert columns["eval/loss"] == ([5], [0.61])


def test_dots_below_a_full_line_do_not_break_it(tmp_path):
    records = [f"Epoch {i}/100\n{BAR.format(50_000, 2.3023)}\n" for i in (1, 2, 99, 100)]
    run, columns = _curves(tmp_path, "".join([*records[:2], "...\n", *records[2:], "Test accuracy: 0.3943\n"]))
    assert columns["loss"][0] == [1, 2, 99, 100]
    assert [i.condition for i in run.incidents if i.is_problem][-1:] == ["NotLearning"]


def test_one_record_as_a_document(tmp_path):
    run, columns = _curves(tmp_path, '{"iter": 120000, \n "loss": 0.562, \n "lr": 0.01, \n "mb_qsize": 64}\n')
    assert run.calm and columns["loss"] == ([120_000], [0.562])


def test_a_cost_that_stands_alone_in_its_line(tmp_path):
    block = "[0304 09:11:{0} @base.py:285] Epoch {1} (global_step {2}) finished, time:59.1 seconds.\n[0304 09:11:{0} @monitor.py:467] total_cost: {3}\n[0304 09:11:{0} @monitor.py:467] train-error: 0.{4}\n"
    run, columns = _curves(
        tmp_path, "".join(block.format(10 + i, i, 500 * i, 3.5 - i / 2, 90 - i) for i in range(1, 6))
    )
    assert run.loss is not None and run.loss.name == "total_cost" and columns["total_cost"][1][0] == 3.0


def test_no_prediction_was_compared_with_an_object(tmp_path):
    row = "     Epoch  iou_loss  dfl_loss  cls_loss\n      {0}/99         {2}         0    {1}: 100%|####| 106/106 [00:15<00:00,\n\n"
    run, _ = _curves(tmp_path, "".join(row.format(i, 0.5 / (i + 1), 0) for i in range(8)))
    assert [(i.condition, i.signal) for i in run.incidents if i.is_problem] == [("NotLearning", "iou_loss")]
    run, _ = _curves(tmp_path, "".join(row.format(i, 0.5 / (i + 1), 0.9 - i / 20) for i in range(8)))
    assert [i.signal for i in run.incidents if i.is_problem] in ([], ["dfl_loss"])

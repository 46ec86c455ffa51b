"""Tables as spreadsheets, Windows, pandas and experiment trackers write them."""

from __future__ import annotations

import re

import pytest

from stabwatch.analysis.readers import read_log

N = 20


def _run(tmp_path, text, name="metrics.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_log(path).runs[0]


ROWS = [(10 * i, 3 - i / 20, 0.001) for i in range(N)]


def _table(delimiter=",", end="\n", head=("step", "loss", "lr"), form=str):
    return end.join(delimiter.join(map(form, row)) for row in [head, *ROWS]) + end


def _comma(cell):
    return str(cell).replace(".", ",")


WRITTEN = {
    "plain": _table(),
    "CR LF": _table(end="\r\n"),
    "CR CR LF": _table(end="\r\r\n"),
    "CR": _table(end="\r"),
    "blank lines between": _table(end="\n\n"),
    "a blank line below the header": _table().replace("\n", "\n\n", 1),
    "a byte order mark": "\ufeff" + _table(end="\r\n"),
    "UTF-16": _table(end="\r\n").encode("utf-16"),
    "semicolons": _table(";"),
    "semicolons and decimal commas": _table(";", form=_comma),
    "tabs and decimal commas": _table("\t", form=_comma),
    "tabs": _table("\t"),
    "quotes": _table(form=lambda cell: f'"{cell}"'),
    "a quoted header": _table(head=('"step"', '"loss"', '"lr"')),
    "blanks after commas": _table(", "),
    "a comment before it": "# written by a script\n" + _table(),
    "a comment as the header": _table(" ", head=("# step", "loss", "lr")),
    "blanks": _table("   "),
    "colons behind the steps": re.sub(r"(?m)^(\w+)\t", r"\1:\t", _table("\t")),
    "trailing rules": _table().replace("\n", "\n----------\n", 1),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_the_same_table_however_it_is_written(form, tmp_path):
    run = _run(tmp_path, WRITTEN[form])
    loss = run.of("loss")
    assert loss.steps.tolist() == [10 * i for i in range(N)]
    assert loss.values.tolist() == pytest.approx([3 - i / 20 for i in range(N)])
    assert set(run.of("learning_rate").values.tolist()) == {0.001}


def test_the_index_of_pandas_is_no_step_beside_one(tmp_path):
    run = _run(tmp_path, ",iter,loss\n" + "".join(f"{i},{5000 + i}.0,{3 - i / 20}\n" for i in range(N)))
    assert run.of("loss").steps.tolist() == [5000 + i for i in range(N)]


@pytest.mark.parametrize("column", ["phase", "split", "mode"])
def test_a_column_that_says_what_a_row_is_of(column, tmp_path):
    rows = "".join(f"{i},train,{3 - i / 20}\n{i},val,{4 - i / 20}\n" for i in range(N))
    run = _run(tmp_path, f"epoch,{column},loss\n{rows}")
    assert run.of("loss").values.tolist() == [3 - i / 20 for i in range(N)]
    assert run.of("eval_loss").values.tolist() == [4 - i / 20 for i in range(N)]
    assert run.steps.tolist() == list(range(N))


@pytest.mark.parametrize(
    "head", ["key,value,step,timestamp", "metric,value,step,time", "metricName,metricValue,step,when"]
)
def test_one_value_a_row(head, tmp_path):
    rows = "".join(f"train_loss,{3 - i / 20},{10 * i},1700\nlr,0.001,{10 * i},1700\n" for i in range(N))
    run = _run(tmp_path, f"{head}\n{rows}")
    assert run.of("loss").steps.tolist() == [10 * i for i in range(N)]
    assert run.of("loss").values.tolist() == [3 - i / 20 for i in range(N)]
    assert run.of("learning_rate") is not None


def test_a_table_of_tensorboard_is_named_after_its_tag(tmp_path):
    text = "Wall time,Step,Value\n" + "".join(f"1700.5,{10 * i},{3 - i / 20}\n" for i in range(N))
    assert _run(tmp_path, text, "run-1-tag-losses_value_loss.csv").of("loss").name == "losses_value_loss"


def test_a_sentence_is_no_table(tmp_path):
    text = "The loss fell\nto 3 again\nfrom 5 then\n" + "".join(f"step {i} loss {3 - i / 20}\n" for i in range(N))
    assert _run(tmp_path, text, "train.log").of("loss").steps.tolist() == list(range(N))


def test_a_table_of_names_that_are_not_known_is_one(tmp_path):
    text = "Generation,Best_Fitness,Num_Agents\n" + "".join(f"{i},{i * i / 7},5\n" for i in range(1, N))
    run = _run(tmp_path, text)
    assert run.of("loss") is None and [c.name for c in run.columns] == ["Best_Fitness", "Num_Agents"]
    assert run.steps.tolist() == list(range(1, N))


def test_the_length_of_an_episode_counts_nothing(tmp_path):
    text = "episode,reward,steps\n" + "".join(f"{600 + i},{i / 9},{(7 * i) % 11}\n" for i in range(N))
    run = _run(tmp_path, text)
    assert run.steps.tolist() == [600 + i for i in range(N)]


def test_a_column_that_falls_again_and_again_counts_nothing(tmp_path):
    head = "vf_loss,AverageReturn,Timesteps,MaxKL,Entropy,Episodes\n"
    rows = [(0.3, 6.5, 327), (0.5, 8.9, 34317), (0.6, 9.1, 36543), (1.1, 22.5, 28974), (1.4, 31.1, 43427)]
    rows += [(1.5, 35.2, 28101), (1.6, 36.1, 44021), (1.4, 37.3, 27010), (1.2, 39.9, 41111), (1.3, 41.0, 28974)]
    between = "MeanGateDist,MinGateDist\n[0.27 0.72],[0.16 0.61]\n"
    run = _run(tmp_path, head + between.join(",".join(map(str, row)) + ",0.01,4.2,25\n" for row in rows))
    assert run.step_unit == "ordinal" and len(run.steps) == len(rows) and (run.steps[1:] > run.steps[:-1]).all()


def test_a_column_of_several_runs_counts(tmp_path):
    run = _run(tmp_path, "step,loss\n" + "".join(f"{10 * (i % 3)},{3 - i / 20}\n" for i in range(N)))
    assert run.step_unit == "step" and run.steps.max() == 20


def test_losses_of_two_adversaries_beside_the_index_of_a_data_frame(tmp_path):
    rows = "".join(f"{i % 30},{0.7 - i / 400},{38.4 - i / 10}\n" for i in range(60))
    run = _run(tmp_path, ",discriminator,Generator\n" + rows)
    assert [(c.name, c.role, len(c)) for c in run.columns] == [
        ("discriminator", "loss", 60), ("Generator", "component", 60)
    ]  # fmt: skip

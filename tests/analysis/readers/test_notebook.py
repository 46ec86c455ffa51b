"""Notebooks: what their cells printed is read, what they contain is not."""

from __future__ import annotations

import json

from stabwatch.analysis.readers import read_log

N = 12


def _run(tmp_path, outputs, source=("step = 3; loss = 5.0\n",)):
    cells = [{"cell_type": "markdown", "source": ["step 1 loss 9.0"]}]
    cells += [{"cell_type": "code", "source": list(source), "outputs": outputs}]
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}, indent=1))
    log = read_log(path)
    assert log.format == "notebook"
    return log.runs[0]


def test_what_a_cell_printed(tmp_path):
    text = [f"step {i} loss {3 - i / 10}\n" for i in range(N)]
    run = _run(tmp_path, [{"output_type": "stream", "name": "stdout", "text": text}])
    assert run.of("loss").steps.tolist() == list(range(N)) and run.of("loss").values[0] == 3.0


def test_the_table_that_a_trainer_draws(tmp_path):
    rows = "".join(
        f"<tr>\n<td>{50 * i}</td>\n<td>{3 - i / 10:.6f}</td><td>{'nan' if i > 8 else '3.1'}</td></tr>" for i in range(N)
    )
    head = "<tr style='text-align: left'><th>Step</th><th>Training Loss</th><th>Validation Loss</th></tr>"
    html = f"<div><progress value='600' max='600'></progress>[600/600]</div><table><thead>{head}</thead>{rows}</table>"
    plain = ["<IPython.core.display.HTML object>"]
    run = _run(tmp_path, [{"output_type": "display_data", "data": {"text/html": [html], "text/plain": plain}}])
    assert run.of("loss").steps.tolist() == [50 * i for i in range(N)]
    assert len(run.of("eval_loss")) == N and str(run.of("eval_loss").values[-1]) == "nan"


def test_odd_notebooks_do_no_harm(tmp_path):
    odd = [None, 3, {"data": 5}, {"data": {"text/html": 7}}, {"text": {"a": 1}}]
    run = _run(tmp_path, [*odd, {"output_type": "stream", "text": "".join(f"step {i} loss 2.5\n" for i in range(N))}])
    assert len(run.of("loss")) == N

"""Name, tags and notes: set by `attach`, changed later, and never at the cost of the log."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import stabwatch
from stabwatch.errors import RunLogError
from stabwatch.runlog import RunLog
from stabwatch.runlog.labels import LABELS, Labels, changed_labels, write_labels
from stabwatch.runlog.reader import read_meta
from tests.cli.test_app import stabwatch as command


def trained(folder: Path, **settings) -> Path:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, **settings):
        for _ in range(3):
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
    return folder


def files(run: Path) -> dict[str, bytes]:
    """The files of the log."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != LABELS}


def test_attach_writes_them_and_tag_changes_them_beside_the_log(tmp_path):
    run = trained(tmp_path / "run", run="run", name="baseline", tags=["gpt", "lr-3e-4"], notes="first try")
    meta = json.loads((run / "meta.json").read_text())
    assert (meta["name"], meta["tags"], meta["notes"]) == ("baseline", ["gpt", "lr-3e-4"], "first try")
    before = files(run)
    done = command("tag", run, "--add", "keep,best", "--remove", "gpt", "--note", "the one of the paper")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "run   run", "name  baseline", "tags  lr-3e-4, keep, best", "notes the one of the paper",
    ]  # fmt: skip
    assert files(run) == before, "the log is as it was"
    found = RunLog(run).meta
    assert (found.name, found.tags, found.notes) == ("baseline", ["lr-3e-4", "keep", "best"], "the one of the paper")
    row = stabwatch.runs(tmp_path, verdict=False, arrow=True).to_pylist()[0]
    assert (row["name"], row["tags"]) == ("baseline", ["lr-3e-4", "keep", "best"])
    assert command("tag", run, "--name", "").stdout.splitlines()[1] == "name  -"


def test_a_tag_that_is_not_there_is_not_removed(tmp_path):
    run = trained(tmp_path / "run", tags="a,b")
    done = command("tag", run, "--remove", "c")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "has no tag c. Its tags: a, b." in done.stderr
    assert not (run / LABELS).exists()


def test_a_run_that_goes_on_keeps_its_labels(tmp_path):
    run = trained(tmp_path / "run", name="x", tags=["a"])
    trained(run, tags=["b"])
    assert (read_meta(run).name, read_meta(run).tags) == ("x", ["a", "b"])
    write_labels(run, Labels("y", ("c",), "n"))
    trained(run, tags=["d"])
    assert (read_meta(run).name, read_meta(run).tags, read_meta(run).notes) == ("y", ["c", "d"], "n")
    trained(run)
    assert read_meta(run).tags == ["c", "d"]


def test_labels_that_cannot_be_read_hide_no_run(tmp_path):
    run = trained(tmp_path / "run", name="x")
    (run / LABELS).write_text("{")
    assert read_meta(run).name == "x"
    done = command("tag", run, "--add", "a")
    assert done.returncode == 2 and "Delete it" in done.stderr
    (run / LABELS).unlink()
    os.mkfifo(run / LABELS)
    assert read_meta(run).name == "x"
    with pytest.raises(RunLogError, match="is not a file"):
        changed_labels(run)
    trained(run, tags=["a"])
    assert read_meta(run).tags == ["a"]

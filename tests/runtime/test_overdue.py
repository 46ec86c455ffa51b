"""Rank 0 writes what a rank that does not see the run folder has put into the job's store."""

from __future__ import annotations

import json

import pytest
import torch.distributed as dist

from stabwatch.alerts.held_up import failed_in
from stabwatch.distributed.directory import Directory
from stabwatch.runlog.stacks import Stand, read_stands, write_stand
from stabwatch.runtime.overdue import Overdue

RAISED = Stand(1, 2, "raised", 3, 0.0, 0.0, 0.0, error="ValueError: boom")


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """The directories of two ranks, and what rank 0 follows; it sees its folder, and looks only when told to."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    directories = [Directory("job", rank) for rank in range(2)]
    failed = []
    overdue = Overdue(
        0, 2, (tmp_path, 1), lambda: directories[0], lambda: True, lambda *a, **k: None, lambda *a: failed.append(a)
    )
    overdue._stop.set()
    overdue._thread.join()
    overdue._ended = 1
    yield overdue, directories
    for directory in directories:
        directory.close(1.0)
    assert not failed


def _collect(overdue, directory, times=3):
    for _ in range(times):
        overdue._collect()
        directory.flush(1.0)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_rank_that_has_left_with_an_error_is_told_by_its_error(ranks, tmp_path, seen_before):
    """It says that its watch has ended after it has said where it is, which rank 0 may not have read so far."""
    overdue, (mine, other) = ranks
    other.put("at/1", json.dumps({"state": "here"}))
    other.flush(1.0)
    if seen_before:
        _collect(overdue, mine, 1)
    other.put("stands/1", RAISED.to_json())
    other.put("at/1", json.dumps({"state": "exception"}))
    other.flush(1.0)
    _collect(overdue, mine)
    assert read_stands(tmp_path, 1)[1] == RAISED


def test_a_rank_that_has_left_without_a_word_is_told_to_have_left(ranks, tmp_path):
    overdue, (mine, other) = ranks
    other.put("at/1", json.dumps({"state": "finished"}))
    other.flush(1.0)
    _collect(overdue, mine)
    found = read_stands(tmp_path, 1)[1]
    assert (found.state, found.error) == ("left", "its watch has ended")


def test_a_rank_that_is_lost_is_written_at_once_until_it_is_there_again(ranks, tmp_path):
    overdue, _ = ranks
    overdue.lost(1, True)
    assert read_stands(tmp_path, 1)[1].state == "lost"
    assert failed_in(tmp_path, 1).startswith("rank 1 is gone: its connection ended without a word")
    overdue.lost(1, False)
    assert not read_stands(tmp_path, 1) and failed_in(tmp_path, 1) == ""


def test_a_rank_that_lives_takes_back_that_another_has_lost_it(ranks, tmp_path):
    """This rank was written as lost by a rank that hears nothing more of it: it has joined another one."""
    overdue, _ = ranks
    lost = Stand(0, 2, "lost", 3, 0.0, 0.0, 0.0)
    write_stand(tmp_path, 1, 0, lost.to_json())
    overdue._withdraw()
    assert read_stands(tmp_path, 1) == {0: lost}, "it is not looked at in each second"
    overdue.close(None)
    assert not read_stands(tmp_path, 1)


def test_the_error_of_a_rank_stays_when_its_process_is_gone(ranks, tmp_path):
    overdue, _ = ranks
    write_stand(tmp_path, 1, 1, RAISED.to_json())
    overdue.lost(1, True)
    overdue.lost(1, False)
    assert read_stands(tmp_path, 1)[1] == RAISED

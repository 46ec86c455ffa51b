"""Replay of many runs: in processes and on Ray, with the same result as one after the other."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from stabwatch.alerts import RULES
from stabwatch.analysis.many import places, replay_many
from stabwatch.analysis.replay import replay
from stabwatch.analysis.sources import open_source, open_sources
from stabwatch.cli.app import app
from stabwatch.errors import RunLogError
from tests.agent.synthetic import Log


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(3):
        log = Log(folder / f"run-{number}", sick=number == 1)
        log.write(range(120))
        log.end(119)
        log.folder.close()
    return folder


def test_places(root, tmp_path):
    assert places([root]) == [str(root / f"run-{i}") for i in range(3)] == places([root, root / "run-1"])
    assert sorted(places([f"file://{root}"], elsewhere=True)) == [f"file://{root}/run-{i}" for i in range(3)]
    assert places([f"file://{root}/run-1"], elsewhere=True) == [f"file://{root}/run-1"]
    log = tmp_path / "log.txt"
    log.write_text("step 1 loss 2")
    assert places([log]) == [str(log)]
    with pytest.raises(RunLogError, match="has no runs"):
        places([f"file://{tmp_path}"], elsewhere=True)


def test_a_file_of_a_run_folder_stands_for_the_run(root):
    """As a shell's `run-1/*` gives them; a log of another program beside them is that log."""
    run = root / "run-1"
    other = run / "train.log"
    other.write_text("step 1 loss 2")
    try:
        assert sorted(places(list(run.iterdir()))) == [str(run), str(other)]
        for file in sorted(set(run.iterdir()) - {other}):
            assert [source.path for source in open_sources([file])] == [run], file
    finally:
        other.unlink()


def test_the_targets_beside_the_runs_are_no_run(root, tmp_path):
    """As a shell gives them for `stabwatch-runs/*`; a run or a log of that name is one."""
    (root / "targets").mkdir()
    (root / "targets" / "run-1.json").write_text("[]")
    try:
        given = sorted(path for path in root.iterdir())
        runs = [path for path in given if path.name != "targets"]
        assert places(given) == [str(path) for path in runs]
        assert [source.path for source in open_sources(given)] == runs
        assert CliRunner().invoke(app, ["analyze", *map(str, given)]).exit_code in (0, 1)
    finally:
        shutil.rmtree(root / "targets")
    other = tmp_path / "targets"
    other.mkdir()
    (other / "train.log").write_text("step 1 loss 2")
    assert places([other, *runs])[0] == str(other)


def test_a_run_folder_without_its_metadata_is_no_log_of_another_program(root, tmp_path):
    """Its events were read as one, and said that there is no problem."""
    lost = tmp_path / "run"
    shutil.copytree(root / "run-1", lost)
    (lost / "meta.json").unlink()
    for ask in (places, open_sources, lambda paths: open_source(paths[0])):
        with pytest.raises(RunLogError, match=r"is a run folder that has lost its meta\.json"):
            ask([lost])


def test_processes_find_what_one_after_the_other_finds(root):
    seen = []
    found = replay_many(places([root]), done=lambda count, of: seen.append((count, of)))
    assert found.to_dict() == replay(open_sources([root])).to_dict()
    assert any(t.incidents for t in found.tallies) and seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(RunLogError, match="is not a run folder"):
        replay_many([str(root / "nothing")])


@pytest.mark.slow
def test_ray_finds_the_same(root, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = replay_many(places([f"file://{root}"], elsewhere=True), RULES, on_ray=True)
        there, here = found.to_dict(), replay(open_sources([root])).to_dict()
        for result in (there, here):
            for run in result["runs"]:
                run.pop("path")  # of the copy
        assert there == here
        with pytest.raises(RunLogError):
            replay_many([str(root / "nothing")], on_ray=True)
    finally:
        ray.shutdown()

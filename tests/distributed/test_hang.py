"""A rank that does not come is named, with its line of code; pauses of healthy runs say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabwatch.analysis.analyze import analyze
from stabwatch.cli.doctor.run import check_run
from stabwatch.runlog import read_run
from tests.distributed import hang_job
from tests.distributed.hang_job import AT
from tests.processes import run_python

HERE = Path(hang_job.__file__).read_text().splitlines()
LINES = {
    "sleeps": "# here it sleeps",
    "elsewhere": "# here it sleeps",
    "raises": "raise ValueError",
    "loader": "# this row",
}
SILENT = ("stopped", "killed")
HEALTHY = ("saves", "pauses")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("hangs")
    faults = ["sleeps", "raises", "loader", "stopped"]
    done = run_python("-m", "tests.distributed.hang_job", 4, out, *faults, timeout=150)
    assert done.returncode == 0, done.stderr
    return out


def _check(run: Path, fault: str, odd: int, world: int) -> None:
    found = analyze(run)
    first = found.diagnosis.causes[0]
    assert first.name == "RankHoldsUp" and f"Rank {odd} " in found.diagnosis.verdict, (fault, found.diagnosis.verdict)
    [alert] = [a for a in found.alerts if a.rule == "RankHoldsUp"]
    assert alert.step == AT and alert.state == "firing", fault
    said = alert.description.lower()
    assert [f"rank {rank} " in said for rank in range(world)] == [rank == odd for rank in range(world)], fault
    checks = {check.name: check for check in check_run(run)}
    assert checks["ranks"].state == "bad" and f"Rank {odd} " in checks["ranks"].found, fault
    if fault in LINES:
        line = next(i for i, text in enumerate(HERE, 1) if LINES[fault] in text and "LINES" not in text)
        assert f"hang_job.py:{line}" in alert.description, (fault, alert.description)
    assert ("gives no sign" in alert.description) == (fault in SILENT), fault
    assert ("in its data loader" in alert.description) == (fault == "loader"), fault
    assert ("ValueError: a broken batch" in alert.description) == (fault == "raises"), fault


@pytest.mark.parametrize("fault", ["sleeps", "raises", "loader", "stopped"])
def test_the_rank_that_does_not_come_is_named_with_its_line(fault, runs):
    _check(runs / fault, fault, odd=2, world=4)


def test_rank_0_writes_it_down_while_the_job_hangs(runs):
    for fault in ("sleeps", "loader", "stopped"):
        [event] = [e for e in read_run(runs / fault).events if e.kind == "held_up"]
        assert (event.step, event.data["by"], [r["rank"] for r in event.data["ranks"]]) == (AT, "rank 0", [2]), fault
        assert event.data["waiting"] == 3, fault


@pytest.mark.slow
def test_rank_0_may_be_the_one_files_need_not_be_shared_and_healthy_pauses_say_nothing(tmp_path):
    faults = ["stopped:0", "elsewhere:1", "saves", "pauses"]
    done = run_python("-m", "tests.distributed.hang_job", 2, tmp_path, *faults, timeout=150)
    assert done.returncode == 0, done.stderr
    _check(tmp_path / "stopped", "stopped", odd=0, world=2)
    _check(tmp_path / "elsewhere", "elsewhere", odd=1, world=2)
    for fault in HEALTHY:
        run = read_run(tmp_path / fault)
        assert not [e for e in run.events if e.kind == "held_up"] and len(run.steps) == hang_job.STEPS, fault
        assert not [a for a in analyze(tmp_path / fault).alerts if a.rule == "RankHoldsUp"], fault

"""Who holds up a job, from where its ranks are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stabwatch.agent.state import Follower
from stabwatch.alerts import Engine, diagnose, held_up
from stabwatch.alerts.held_up import held_up_in
from stabwatch.runlog import Event, RunFolder, read_run
from stabwatch.runlog.stacks import Place, Stand, read_stands, write_stand
from tests.agent.synthetic import meta
from tests.alerts.scenarios import block, wave

NOW = 1000.0
LINE = Place("/home/me/train.py", 57, "load", "time.sleep(1e6)")


def _stand(rank, world=4, state="overdue", **more):
    facts = {"step": 12, "seconds": 40.0, "patience": 30.0, "time": NOW, "place": LINE, **more}
    return Stand(rank, world, state, **facts)


def _waits(rank, number=9, group="0", **more):
    return _stand(rank, inside="backward", call="backward", entered={group: (number, False, "all_reduce")}, **more)


def _judged(*stands, now=NOW):
    return held_up.held_up({s.rank: s for s in stands}, now)


def _ranks(found):
    return [r["rank"] for r in found.ranks]


def test_the_rank_that_has_not_entered_the_collective_is_named_with_its_line():
    late = _stand(2, entered={"0": (8, True, "all_reduce")})
    found = _judged(_waits(0), _waits(1), late, _waits(3))
    assert _ranks(found) == [2] and found.waiting == 3 and found.severity == "warning"
    assert "Rank 2 has not come: it is at /home/me/train.py:57, in `load` (`time.sleep(1e6)`)" in found.what
    assert "3 of 4 ranks wait in all_reduce, for 40 s." in found.what


def test_without_a_flight_recorder_a_backward_pass_is_taken_to_wait():
    found = _judged(*(_stand(r, inside="backward", call="backward") for r in (0, 1, 3)), _stand(2, inside="loader"))
    assert _ranks(found) == [2] and "in its data loader" in found.what


def test_a_backward_pass_that_has_not_entered_what_others_have_does_not_wait():
    slow = _stand(1, 2, inside="backward", entered={"0": (8, True, "all_reduce")})
    assert _ranks(_judged(_waits(0, world=2), slow)) == [1]


def test_who_waits_for_a_rank_that_waits_itself_does_not_hold_up_the_job():
    """Rank 0 waits for rank 1 in one group, rank 1 for rank 3 in another."""
    one = _stand(1, entered={"a": (4, True, ""), "b": (7, False, "all_gather")})
    last = _stand(3, entered={"b": (6, True, "")})
    assert _ranks(_judged(_waits(0, 5, "a"), one, _waits(2, 5, "a"), last)) == [3]


@pytest.mark.parametrize(
    "stands",
    [
        [],
        [_stand(r) for r in range(4)],
        [_stand(r, inside="loader") for r in range(4)],
        [_waits(0), _waits(1), _waits(2), _stand(3, busy="saves or loads a checkpoint", busy_limit=1800.0)],
        [_waits(0), _waits(1), _waits(2)],
        [_stand(r, inside="backward") for r in range(4)],
    ],
    ids=["nothing", "nobody waits", "all load", "a checkpoint", "one may yet write", "all in backward"],
)
def test_nothing_is_said(stands):
    assert _judged(*stands) is None


def test_a_checkpoint_that_takes_too_long_holds_up_the_job():
    stuck = _stand(1, 2, busy="saves or loads a checkpoint", busy_limit=1800.0, seconds=1801.0)
    found = _judged(_waits(0, world=2), stuck)
    assert _ranks(found) == [1] and "and saves or loads a checkpoint" in found.what


def test_a_rank_without_a_file_gives_no_sign_once_it_should_have_one():
    waiting = [_waits(rank) for rank in (0, 1, 3)]
    assert _judged(*waiting, now=NOW + 6) is None
    found = _judged(*waiting, now=NOW + 8)
    assert _ranks(found) == [2] and found.severity == "critical" and "gives no sign" in found.what


def test_a_rank_that_is_killed_shows_by_the_lost_connections_of_the_others():
    lost = [
        _stand(r, 3, "raised", inside="collective", error="RuntimeError: Connection closed by peer") for r in (0, 1)
    ]
    assert _judged(*lost) is None, "the third may raise its own error now"
    found = _judged(*lost, now=NOW + 3)
    assert _ranks(found) == [2] and found.what.endswith("2 of 3 ranks failed after that.")


def test_the_first_error_is_told_and_not_those_that_follow_from_it():
    lost = [_stand(r, 3, "raised", inside="collective", error="RuntimeError: Connection closed") for r in (0, 1)]
    found = _judged(*lost, _stand(2, 3, "raised", error="ValueError: bad batch"))
    assert _ranks(found) == [2] and "Rank 2 raised ValueError: bad batch at /home/me/train.py:57" in found.what


def test_a_rank_that_is_not_watched_is_named_only_if_no_other_is():
    left = _stand(1, 3, "left", error="its watch has ended")
    assert _ranks(_judged(_waits(0, world=3), left, _stand(2, 3))) == [2]
    found = _judged(_waits(0, world=3), left, _waits(2, world=3))
    assert _ranks(found) == [1] and "is not watched: its watch has ended" in found.what


def test_ranks_that_all_wait_are_told_as_that():
    found = _judged(*(_waits(r, world=2) for r in (0, 1)), now=NOW + 8)
    assert _ranks(found) == [] and "all are in the same collective (all_reduce)" in found.what
    barrier = _stand(0, 2, inside="collective", call="barrier")
    found = _judged(barrier, _waits(1, world=2, place=Place("train.py", 80, "main")), now=NOW + 8)
    assert "different collectives" in found.what and "train.py:80" in found.what


def test_a_stand_survives_its_file(tmp_path):
    stand = _waits(3, threads={"MainThread": ["train.py:57 load"]})
    write_stand(tmp_path, 1, 3, stand.to_json())
    write_stand(tmp_path, 1, 4, "{torn")
    assert read_stands(tmp_path, 1) == {3: stand} and read_stands(tmp_path, 2) == {}


def test_the_alert_fires_by_the_event_and_resolves_with_the_next_record():
    engine = Engine()
    engine.observe(block({"loss": wave(11)}))
    found = _judged(_waits(0), _waits(1), _stand(2), _waits(3))
    event = found.to_event(1100.0, "rank 0")
    [alert] = engine.observe_event(event)
    assert (alert.rule, alert.severity, alert.step) == ("RankHoldsUp", "warning", 12)
    assert not engine.observe(replace(block({"loss": wave(1)}, 11), times=np.array([1101.0]))), "of a step before"
    assert engine.observe_event(event) == [] and diagnose(engine).verdict.endswith(found.what)
    engine.observe_event(Event("end", 1200.0, 11, {"reason": "killed"}))
    assert [cause.name for cause in diagnose(engine).causes] == ["RankHoldsUp", "TrainingStopped"]
    engine.observe_event(Event("start", 1300.0, 12, {}))
    out = engine.observe(block({"loss": wave(3)}, 200))
    assert [(a.rule, a.state) for a in out] == [("TrainingStopped", "resolved"), ("RankHoldsUp", "resolved")]


def test_nothing_is_said_of_ranks_that_wait_after_rank_0_has_finished(tmp_path):
    write_stand(tmp_path, 1, 1, _stand(1, 2, inside="collective", call="barrier").to_json())
    start = Event("start", NOW, 0, {})
    assert held_up_in(tmp_path, [start], NOW + 100, "analyze") is not None
    assert held_up_in(tmp_path, [start, Event("end", NOW, 11, {"reason": "finished"})], NOW + 100, "analyze") is None
    assert held_up_in(tmp_path, [start, Event("end", NOW, 11, {"reason": "killed"})], NOW + 100, "analyze") is not None


def test_the_agent_says_it_where_rank_0_does_not(tmp_path):
    folder = RunFolder(tmp_path / "run", meta("run"))
    folder.event(Event("start", NOW, 0, {"attempt": 1}))
    for rank in (1, 2, 3):
        write_stand(folder.path, 1, rank, _waits(rank).to_json())
    follower = Follower(folder.path)
    follower.poll()
    follower.poll()
    [event] = [e for e in read_run(folder.path).events if e.kind == "held_up"]
    assert event.data["by"] == "agent" and [r["rank"] for r in event.data["ranks"]] == [0]
    assert [a.rule for a in follower.firing()] == ["RankHoldsUp"]
    follower.lease.release()
    assert held_up_in(folder.path, read_run(folder.path).events, NOW + 100, "analyze") is None

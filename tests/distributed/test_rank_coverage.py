"""Which changes of the ranks that records cover are told."""

from __future__ import annotations

from stabwatch.distributed.coverage import ASK, BRIEF, LEFT, NOT_THERE, SETTLE, RankCoverage

ALL, WITHOUT_2, WITHOUT_2_AND_3 = ((0, 4),), ((0, 2), (3, 4)), ((0, 2),)


class Silent:
    """A directory that answers nothing."""

    def look_up(self, rank, found):
        pass


class Empty:
    """A directory in which nobody is."""

    def look_up(self, rank, found):
        found(rank, None)


def _news(*changes, directory=Silent):
    """What is told, as (since, covered, missing). changes: (second, step, ranks)."""
    coverage = RankCoverage(4, {"digest": "a"}, "", directory())
    told, waiting = [], list(changes)
    for tenth in range(int(10 * (waiting[-1][0] + SETTLE + ASK + 2))):
        while waiting and waiting[0][0] <= tenth / 10:
            _, step, ranks = waiting.pop(0)
            coverage.observe(step, ranks)
        told += coverage.news(tenth / 10)
    return [(n.since, n.covered, n.missing) for n in told]


def test_a_rank_that_is_late_for_some_steps_only_is_told_too():
    late = {"rank": 2, "reason": BRIEF}
    assert _news((0, 0, ALL), (5, 7, WITHOUT_2), (5.1, 8, ALL)) == [(0, 4, []), (7, 3, [late]), (8, 4, [])]


def test_of_several_short_times_the_one_with_the_fewest_ranks_is_told():
    changes = ((0, 0, ALL), (5, 7, WITHOUT_2), (5.1, 8, ALL), (5.2, 9, WITHOUT_2_AND_3), (5.3, 10, ALL))
    short, last = _news(*changes)[1:]
    assert short[:2] == (9, 2) and [entry["rank"] for entry in short[2]] == [2, 3] and last == (10, 4, [])


def test_ranks_that_come_one_after_the_other_are_one_change():
    assert [told[:2] for told in _news((0, 0, ALL), (5, 7, WITHOUT_2), (5.1, 8, WITHOUT_2_AND_3))] == [(0, 4), (8, 2)]


def test_a_rank_that_goes_without_a_word_is_not_said_to_have_never_been_there():
    told = _news((0, 0, WITHOUT_2), (5, 7, WITHOUT_2_AND_3), directory=Empty)
    assert [entry["reason"] for entry in told[-1][2]] == [NOT_THERE, LEFT]

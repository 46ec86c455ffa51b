"""What rank 0 decides reaches all ranks for the same step, or none."""

from __future__ import annotations

from types import SimpleNamespace

from stabwatch.guards.broadcast import AHEAD, PATIENCE, RankBroadcast

WORLD = 3


class Wire:
    """An exchange between the ranks of one process, without threads: `cut` ranks hear nothing."""

    def __init__(self):
        self.keys, self.topics, self.now, self.cut = {}, {}, 0.0, set()

    def end(self, rank):
        def received(topic):
            return self.topics.pop((rank, topic), [])

        def broadcast(topic, data):
            for other in set(range(1, WORLD)) - self.cut:
                self.topics.setdefault((other, topic), []).append(data)

        def reply(topic, data):
            self.topics.setdefault((0, topic), []).append(data)

        directory = SimpleNamespace(set_now=self.keys.__setitem__, read_now=self.keys.get)
        end = SimpleNamespace(
            rank=rank,
            covered=WORLD,
            broken=False,
            received=received,
            broadcast=broadcast,
            reply=reply,
            directory=directory,
        )
        return RankBroadcast(WORLD, end, clock=lambda: self.now)


def test_all_ranks_act_at_the_same_step():
    wire = Wire()
    ranks = [wire.end(rank) for rank in range(WORLD)]
    acted = {}
    for step in range(20):
        if step == 3:
            ranks[0].send(step, "roll back")
        for rank, broadcast in enumerate(ranks):
            for message in broadcast.receive(step)[0]:
                acted[rank] = (step, message)
    assert acted == dict.fromkeys(range(WORLD), (4 + AHEAD, "roll back"))
    assert not ranks[0].pending


def test_where_one_rank_does_not_answer_none_acts():
    wire = Wire()
    wire.cut = {2}
    ranks = [wire.end(rank) for rank in range(WORLD)]
    ranks[0].send(0, "roll back")
    for step in range(5):
        assert all(broadcast.receive(step) == ([], []) for broadcast in ranks)
    assert ranks[0].pending
    wire.now = PATIENCE + 1
    assert ranks[0].receive(5) == ([], ["roll back"]), "rank 0 is told that it was withdrawn"
    assert ranks[1].receive(5) == ([], []) and not ranks[0].pending
    assert all(broadcast.receive(step) == ([], []) for step in range(6, 30) for broadcast in ranks)


def test_one_rank_alone_acts_at_once_and_one_that_cannot_tell_others_says_so():
    alone = RankBroadcast(1, None)
    alone.send(4, "stop")
    assert alone.possible and alone.receive(4) == (["stop"], [])
    assert not RankBroadcast(2, None).possible

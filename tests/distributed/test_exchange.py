"""Four ends of an exchange in one process, in a chain 0 - 1 - 2 - 3: over real sockets, with a store in memory."""

from __future__ import annotations

import itertools
import socket
import threading
import time

import numpy as np
import pytest
import torch.distributed as dist

from stabwatch.distributed import channel, exchange, merger, tree
from stabwatch.distributed.exchange import Exchange
from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.link import Link, listen
from stabwatch.distributed.merger import Merger
from stabwatch.runlog import Accumulator, RecordLayout

WORLD = 4
LOSS = Accumulator("loss_source", "function", "mean")
OTHER = Accumulator("activation", "a", "moments")


class Row:
    def __init__(self, values):
        self.values = np.array(values, np.float32)

    def arrived(self):
        return True

    def wait(self):
        return self.values


class Job:
    """The ranks of a job; `merged` and `news` are what rank 0 was given."""

    def __init__(self, cells_of=lambda rank: (LOSS,)):
        self.merged, self.news, self.failures = [], [], []
        self.widened, self.lost = [], []
        self.ranks = [self._rank(rank, cells_of(rank)) for rank in range(WORLD)]

    def _rank(self, rank, accumulators):
        layout = RecordLayout.build(accumulators)
        health = RankHealth(layout)

        def layout():
            return MergeLayout(RecordLayout.build((*accumulators, *health.sources)), {}, frozenset())

        return Exchange(
            "job",
            rank,
            WORLD,
            "1.0",
            health,
            layout,
            self.merged.append,
            self.news.append,
            self.failures.append,
            lambda: None,
            self.widened.append,
            lost=lambda *news: self.lost.append(news),
        )

    def step(self, step, ranks=range(WORLD)):
        for rank in ranks:
            self.ranks[rank].submit(step, Row([1, 10.0**rank, 0]))

    def wait(self, holds, seconds=20.0):
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.01)
        assert holds()

    def go_on(self, ranks, holds, least=0, seconds=60.0):
        """Steps from 2 on, at least so many, until something holds; the longest time that handing one over took."""
        longest, end = 0.0, time.monotonic() + seconds
        for step in itertools.count(2):
            began = time.perf_counter()
            self.step(step, ranks)
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.02)
            if time.monotonic() > end or (step >= least and holds()):
                assert holds()
                return longest

    def close(self, ranks=range(WORLD)):
        ends = [threading.Thread(target=self.ranks[rank].close, args=("finished",)) for rank in ranks]
        for end in ends:
            end.start()
        for end in ends:
            end.join()


@pytest.fixture
def make(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    for shape in (tree.children, tree.ancestors, tree.height):
        monkeypatch.setattr(shape, "__defaults__", (1,))
    monkeypatch.setattr(channel, "SILENT", 60.0)  # a busy machine may let a thread wait for seconds
    monkeypatch.setattr(channel, "BEAT", 0.2)
    monkeypatch.setattr(exchange, "PATIENCE", 0.5)  # of an end that leaves
    monkeypatch.setattr(exchange, "Merger", lambda layout, root, _: Merger(layout, root, 60.0))
    jobs = []

    def build(*args):
        jobs.append(Job(*args))
        return jobs[-1]

    yield build
    for job in jobs:
        job.close()


def _begin(job):
    """The first steps end together: every rank is attached before the first of them ends."""
    for rank in job.ranks:
        rank.submit(0, None)
    job.step(1)
    job.wait(lambda: job.merged and job.merged[-1].covered == WORLD)


def test_steps_after_the_last_one_of_rank_0_have_no_record_and_no_news(make):
    job = make()
    _begin(job)
    job.step(2, range(1, WORLD))
    time.sleep(0.1)
    job.ranks[0].close("finished")
    assert [merged.step for merged in job.merged] == [0, 1] or [merged.step for merged in job.merged] == [1]
    assert not [news for news in job.news if news.missing]


def test_rank_0_gets_the_merge_of_all(make):
    job = make()
    job.step(0)
    job.step(1)
    job.wait(lambda: len(job.merged) == 2)
    for step, merged in enumerate(job.merged):
        assert (merged.step, merged.covered) == (step, WORLD)
        assert merged.row.tolist() == [4, 1111.0, 0]
        assert merged.health[5:10].tolist() == [4, 1111.0, 1000.0, 3, 1]
    job.close()
    assert [(n.covered, n.since, n.missing) for n in job.news] == [(4, 0, [])]


def test_a_connection_that_ends_without_a_word_is_told_until_it_is_there_again(make):
    job = make()
    _begin(job)
    job.lost.clear()
    job.ranks[3]._channel._parent.socket.shutdown(socket.SHUT_RDWR)
    job.wait(lambda: sorted(job.lost) == [(3, False), (3, True)])  # by two ranks, in any order
    job.close((3, 2, 1, 0))
    assert len(job.lost) == 2, "a rank that says that it leaves is not lost"


def test_a_node_that_leaves_takes_nobody_with_it(make):
    job = make()
    _begin(job)
    job.ranks[1].close("detached")
    job.go_on((0, 2, 3), lambda: job.merged[-1].covered == 3)
    assert job.merged[-1].row.tolist() == [3, 1101.0, 0]
    job.close((0, 2, 3))
    [missing] = job.news[-1].missing
    assert missing == {"rank": 1, "reason": "its watch has ended (detached)"}
    assert [m.step for m in job.merged] == sorted({m.step for m in job.merged})


def test_a_node_that_stops_is_passed_by(make, monkeypatch):
    """Its connections stay open, as those of a stopped process do."""
    job = make()
    _begin(job)
    monkeypatch.setattr(channel, "SILENT", 1.0)
    for rank in job.ranks:
        rank._merger._patience = 0.5
    stopped = threading.Event()
    real = job.ranks[1]._channel.poll
    job.ranks[1]._channel.poll = lambda timeout: real(timeout) if stopped.wait(30) else None
    submitted = job.go_on((0, 2, 3), lambda: job.merged[-1].covered == 3, least=21)
    assert job.merged[-1].row.tolist() == [3, 1101.0, 0]
    assert submitted < 0.5, "handing over never waits"
    stopped.set()


def test_what_another_rank_measures_besides_is_said(make, monkeypatch):
    monkeypatch.setattr(exchange, "Merger", Merger)
    monkeypatch.setattr(merger, "START_PATIENCE", 2.0)
    job = make(lambda rank: (LOSS, OTHER) if rank == 2 else (LOSS,))
    for step in range(600):
        for rank in range(WORLD):
            job.ranks[rank].submit(step, Row([1, 10.0**rank, 0] + [1, 1, 0, 1] * (rank == 2)))
        time.sleep(0.05)
        if job.news and job.news[-1].covered == 3:
            break
    [missing] = job.news[-1].missing
    assert missing["rank"] == 2
    assert missing["reason"] == "it measures other things: it has besides 1 accumulators (activation of `a`)"
    assert job.merged[-1].row.tolist() == [3, 1011.0, 0]


def test_a_rank_that_nobody_hears_says_why(make):
    job = make(lambda rank: (LOSS, OTHER) if rank == 2 else (LOSS,))
    job.ranks[1].submit(0, Row([1, 10.0, 0]))
    job.wait(lambda: job.ranks[1]._channel is not None)
    assert job.ranks[1].unheard == channel.NO_ROOT and job.ranks[3].unheard is None, "rank 3 has ended no step"
    for rank in (0, 2, 3):
        job.ranks[rank].submit(0, Row([1, 10.0**rank, 0] + [1, 1, 0, 1] * (rank == 2)))
    job.wait(lambda: job.ranks[1].unheard is None and job.ranks[3].unheard is None)
    job.wait(lambda: job.ranks[2].unheard == channel.APART["layout"])
    assert job.ranks[0].unheard is None, "rank 0 writes the log"


def test_messages_go_down_to_all_and_up_to_rank_0(make):
    job = make()
    _begin(job)
    job.ranks[0].broadcast("request", [1, "x"])
    got = {}
    job.wait(
        lambda: got.update({r: d for r in range(1, WORLD) if (d := job.ranks[r].received("request"))}) or len(got) == 3
    )
    assert all(data == [[1, "x"]] for data in got.values())
    for rank in range(1, WORLD):
        job.ranks[rank].reply("answer", rank)
    answers = []
    job.wait(lambda: answers.extend(job.ranks[0].received("answer")) or len(answers) == 3)
    assert sorted(answers) == [1, 2, 3]


def test_an_error_of_ours_ends_one_end_and_is_reported(make):
    job = make()
    _begin(job)
    job.ranks[3].submit(2, Row([1, 2.0]))  # too short
    job.wait(lambda: job.ranks[3].broken)
    assert len(job.failures) == 1
    job.step(2)
    job.wait(lambda: job.merged[-1].step == 2)
    assert job.merged[-1].covered == 3


@pytest.mark.parametrize("reset", [False, True])
def test_what_a_rank_sent_before_it_ended_is_read(reset):
    """Also where its last rows and its end are found together, as on a busy machine; an end that resets too."""
    with listen("127.0.0.1") as listener:
        sender = Link.connect(*listener.getsockname(), 0.0, 1)
        listener.setblocking(True)
        receiver = Link(listener.accept()[0], 0.0)
    receiver.send({"kind": "beat"})
    if reset:
        receiver.write()
        time.sleep(0.05)  # it arrives, and is not read
    for step in range(3):
        sender.send({"kind": "row", "step": step}, b"x" * 1000)
    sender.write()
    sender.close()
    time.sleep(0.05)
    assert [message["step"] for message, _ in receiver.read(1.0)] == [0, 1, 2]
    assert receiver.ended
    receiver.close()


def test_the_rows_of_a_rank_that_goes_while_the_other_is_busy_are_merged(make):
    """Rank 0's thread does not run while its child's last rows and its end arrive, and then writes before it reads."""
    job = make()
    _begin(job)
    resume, paused = threading.Event(), threading.Event()
    real = job.ranks[0]._channel.poll

    def late(timeout):
        if resume.is_set():
            return real(timeout)
        paused.set()
        resume.wait(20)
        for link in job.ranks[0]._channel._children.values():
            link.send({"kind": "beat"})
        return real(timeout)

    job.ranks[0]._channel.poll = late
    assert paused.wait(10)
    for step in (2, 3):
        job.step(step)
    goes, sent = job.ranks[1], job.ranks[1]._channel
    job.wait(lambda: goes._merger._passed == 3 and sent.idle)
    sent._forget(sent._parent)  # as the system does when the process is killed
    resume.set()
    job.wait(lambda: job.merged[-1].step == 3)
    assert [merged.covered for merged in job.merged[-2:]] == [WORLD, WORLD]


def test_a_stranger_is_not_let_in(make):
    import socket

    from stabwatch.distributed.frames import encode

    job = make()
    _begin(job)
    info = job.ranks[0]._channel.info
    for hello in (encode({"kind": "hello", "rank": 7, "token": "guessed"}), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64):
        with socket.create_connection((info["address"], info["port"]), timeout=10) as sock:
            sock.sendall(hello)
            assert sock.recv(10) == b""
    job.step(2)
    job.wait(lambda: job.merged[-1].step == 2)
    assert job.merged[-1].covered == WORLD

"""Snapshots with other ranks: placement and parity, keepers, states as bytes, and jobs that lose a process."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import threading
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from stabwatch.distributed import keepers, wire
from stabwatch.distributed.keeper import LINGER, Keeper
from stabwatch.distributed.parity import group, mix, partner, stripe
from stabwatch.distributed.wire import Wire
from stabwatch.guards.packed import Packed, UnkeptError, make_places, misfit, unpacked
from stabwatch.guards.peer_lead import exposed
from stabwatch.guards.random_state import random_state, set_random_state
from stabwatch.guards.restore import candidates
from stabwatch.guards.snapshots import LiveState, Snapshots
from stabwatch.runlog import find_runs, read_run
from tests.guards.peer_job import CASES, LOST, WHOLE, WORLD
from tests.processes import run_python
from tests.sampling import sample

NODES = {"one": [4], "two": [4, 4], "uneven": [3, 2], "eight": [1] * 8, "four": [2] * 4, "many": [8] * 5, "odd": [7]}


def hosts_of(sizes):
    return [f"node{node}" for node, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("sizes", NODES.values(), ids=NODES)
def test_copies_are_on_another_node_and_groups_of_four_are_as_far_apart_as_can_be(sizes):
    hosts = hosts_of(sizes)
    world = len(hosts)
    for shuffled in (list(range(world)), random.Random(0).sample(range(world), world)):
        placed = [hosts[i] for i in shuffled]
        partners = [partner(rank, placed) for rank in range(world)]
        assert all((placed[a] != placed[b]) == (len(sizes) > 1) and a != b for a, b in enumerate(partners))
        if len(set(sizes)) == 1:
            assert sorted(partners) == list(range(world)), "every rank holds one copy"
        groups = {group(rank, placed) for rank in range(world)}
        assert sorted(itertools.chain(*groups)) == list(range(world))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1 and max(map(len, groups)) <= 4
        if len(sizes) >= 4 and len(set(sizes)) == 1:
            assert all(len({placed[m] for m in members}) == len(members) for members in groups)
            assert exposed("parity", placed) == exposed("copy", placed) == ""
    assert partner(0, ["node0"]) is None


def test_what_the_placement_does_not_make_up_for_is_said():
    assert "not of the host" in exposed("copy", hosts_of([4]))
    assert "several ranks of one parity group" in exposed("parity", hosts_of([4, 4]))
    assert exposed("copy", hosts_of([4, 4])) == ""


@pytest.mark.parametrize("sizes", [(5, 9), (0, 7, 12), (1, 2, 3, 4), (100, 7, 64, 31), (0, 0, 0, 1), (3, 3, 3, 3)])
def test_the_state_of_any_one_member_follows_from_the_parities_and_the_others(sizes):
    rng = np.random.default_rng(0)
    members = tuple(range(10, 10 + len(sizes)))
    states = {m: rng.integers(0, 256, size, np.uint8) for m, size in zip(members, sizes, strict=True)}
    longest = -(-max(sizes) // (len(sizes) - 1))
    parities = {m: np.zeros(longest, np.uint8) for m in members}
    for sender, keeper in itertools.permutations(members, 2):
        begin, end = stripe(len(states[sender]), members, sender, keeper)
        mix(parities[keeper], 0, states[sender][begin:end].data)
    for sender, state in states.items():
        spans = sorted(stripe(len(state), members, sender, keeper) for keeper in members if keeper != sender)
        assert sum(end - begin for begin, end in spans) == len(state)
        rebuilt = np.zeros_like(state)
        for keeper in (m for m in members if m != sender):
            begin, end = stripe(len(state), members, sender, keeper)
            mix(rebuilt[begin:end], 0, parities[keeper][: end - begin].data)
            for other in (m for m in members if m not in (sender, keeper)):
                first, last = stripe(len(states[other]), members, other, keeper)
                mix(rebuilt[begin:end], 0, states[other][first : min(last, first + end - begin)].data)
        assert (rebuilt == state).all()


class Bytes:
    """A state."""

    def __init__(self, data):
        self.data, self.size = data, len(data)

    def parts(self, begin, end):
        for at in range(begin, end, 1000):
            yield memoryview(self.data)[at : min(at + 1000, end)]


@pytest.fixture
def served():
    """Makes keepers in this process: (keeper, place)."""
    listeners = []

    def make(rank=0, **facts):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        place = {"address": "127.0.0.1", "port": listener.getsockname()[1], "token": "t", "rank": rank, **facts}
        keeper = Keeper(place)

        def accept():
            while True:
                try:
                    threading.Thread(target=keeper.serve, args=(listener.accept()[0],), daemon=True).start()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        return keeper, place

    yield make
    for listener in listeners:
        listener.close()


def put(place, data, step, rank=0, what="copy", span=None, whole=-1):
    facts = {"what": what, "step": step, "rank": rank, "crc": zlib.crc32(data), "whole": whole}
    with Wire.connect(place) as connection:
        keepers.put(connection, Bytes(data), span or (0, len(data)), facts)


def source(place, data):
    return {"what": "copy", "place": place, "named": place["token"], "size": len(data), "crc": zlib.crc32(data)}


def test_a_keeper_holds_the_last_whole_step_and_the_newest_and_gives_them_back(served):
    keeper, place = served()
    data = [os.urandom(5000) for _ in range(4)]
    put(place, data[0], 10)
    put(place, data[1], 20, whole=10)
    put(place, data[2], 30, whole=10)
    assert sorted(key[1] for key in keeper._held) == [10, 30]
    put(place, data[3], 40, whole=30)
    assert sorted(key[1] for key in keeper._held) == [30, 40]
    found, said = keepers.fetch([source(place, data[2])], 0, 30)
    assert bytes(found) == data[2] and said == "t"
    keepers.tell(place, {"kind": "keep", "first": 40, "last": 40})
    assert keepers.fetch([source(place, data[2])], 0, 30) == (None, "t: it is not held any more")


def test_what_does_not_match_its_checksum_is_not_taken_and_not_given(served):
    keeper, place = served()
    other, second = served()
    data = os.urandom(5000)

    class Wrong(Bytes):
        def parts(self, begin, end):
            yield memoryview(self.data)[begin : end - 1]

    with Wire.connect(place) as connection, pytest.raises(OSError, match="its checksum does not match what came"):
        keepers.put(connection, Wrong(data), (0, 5000), {"what": "copy", "step": 1, "rank": 0, "crc": 0, "whole": -1})
    assert not keeper._held
    for each in (place, second):
        put(each, data, 1)
    keeper._held["copy", 1, 0].data[17] ^= 4
    sources = [source(place, data), source(second | {"named": "b"}, data)]
    assert keepers.fetch(sources[:1], 0, 1) == (None, "t: its checksum does not match")
    assert bytes(keepers.fetch(sources, 0, 1)[0]) == data, "the second source has it"
    assert other.over is False


def test_a_sender_that_dies_half_way_leaves_the_step_before_whole(served):
    keeper, place = served()
    data = os.urandom(5000)
    put(place, data, 10)
    for what in ("copy", "parity"):
        with Wire.connect(place) as connection:
            m = {"kind": "put", "what": what, "step": 20, "rank": 0, "size": 5000, "begin": 0, "end": 5000, "crc": 0}
            connection.send(m | {"whole": 10})
            connection.send({"kind": "part"}, data[:1000])
        for _ in range(200):
            if set(keeper._held) == {("copy", 10, 0)}:
                break
            threading.Event().wait(0.01)
        assert set(keeper._held) == {("copy", 10, 0)}
    assert bytes(keepers.fetch([source(place, data)], 0, 10)[0]) == data


def test_a_keeper_ends_some_time_after_its_rank_and_answers_no_stranger(served):
    keeper, place = served()
    with Wire.connect(place) as owner:
        owner.ask({"kind": "own"})
        keeper.ends = 0.0
        assert not keeper.over, "its rank is alive"
    for _ in range(200):
        if keeper.ends:
            break
        threading.Event().wait(0.01)
    assert not keeper.over and keeper.ends > 0 and LINGER >= 600
    with Wire.connect(place | {"token": "other"}) as stranger, pytest.raises(OSError):
        stranger.ask({"kind": "list"})
    keepers.tell(place, {"kind": "leave"})
    assert keeper.over


def test_a_keeper_that_is_told_to_end_does_so_though_its_rank_goes_after_that(served):
    keeper, place = served()
    with Wire.connect(place) as owner:
        owner.ask({"kind": "own"})
        keepers.tell(place, {"kind": "leave"})
        assert keeper.over
        ends = keeper.ends
    for _ in range(200):
        if keeper.ends > ends:
            break
        threading.Event().wait(0.01)
    with Wire.connect(place) as other:
        other.ask({"kind": "list"})
    assert keeper.over


def test_two_of_a_parity_group_are_lost_and_one_is_not():
    def place(rank, without=()):
        others = {str(m): {"size": 9, "crc": 1} for m in range(4) if m != rank}
        held = [{"what": "copy", "step": 7, "of": {str(rank): {"size": 9, "crc": 1}}}]
        held += [{"what": "parity", "step": 7, "of": others}]
        facts = {"attempt": "a", "token": str(rank), "created": 1.0, "world": 4, "mode": "parity"}
        return {"rank": rank, "address": "", "port": 1, **facts, "held": held}

    [(step, sources)] = candidates([place(r) for r in (0, 1, 3)], 4)
    assert step == 7 and [s[0]["what"] for s in sources] == ["copy", "copy", "parity", "copy"]
    [(step, why)] = candidates([place(r) for r in (0, 3)], 4)
    assert why == "of the snapshot of step 7 neither a copy nor what their parity needs is left for rank 1, 2"
    [(_, why)] = candidates([place(r) for r in range(4)], 3)
    assert why == "the snapshots are those of 4 ranks, and there are 3 now"


def task(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float32))
    model.register_buffer("flags", torch.tensor([True, False, True]))
    model.register_buffer("halves", torch.randn(5, dtype=torch.bfloat16))
    model.register_buffer("none", torch.empty(0))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimizer, snapshots, steps):
    for number in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        snapshots.before(optimizer, number)
        optimizer.step()
        optimizer.zero_grad()
        snapshots.boundary(number + 1)


def numbers(model, optimizer):
    state = [t for one in optimizer.state.values() for t in one.values()]
    return [t.clone() for t in (*model.state_dict().values(), *state)]


def test_a_snapshot_goes_through_bytes_into_a_new_model_and_optimizer():
    model, optimizer = task()
    snapshots = Snapshots(model, 2, lends=True)
    train(model, optimizer, snapshots, 4)
    expected, draws = numbers(model, optimizer), None
    packed = Packed(snapshots.lend(4))
    draws = (torch.rand(3), random.random(), np.random.rand())
    data = b"".join(bytes(part) for part in packed.parts(0, packed.size))
    assert len(data) == packed.size and data[5:99] == b"".join(bytes(p) for p in packed.parts(5, 99))
    other, new = task(1)
    live = LiveState(other)
    kept = unpacked(memoryview(bytearray(data)))
    assert "no optimizer that was given to `attach` steps 0.weight" in misfit(kept, live)
    live.optimizers[0] = new
    assert misfit(kept, live) == ""
    make_places(kept, live)
    live.put_back(kept)
    set_random_state(kept.random)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, numbers(other, new), strict=True))
    assert torch.equal(draws[0], torch.rand(3)) and draws[1:] == (random.random(), np.random.rand())
    wider = LiveState(nn.Sequential(nn.Linear(3, 5)))
    wider.optimizers[0] = torch.optim.SGD(wider.model.parameters())
    assert "0.weight is float32 (5, 3), and in the snapshot float32 (4, 3)" in misfit(kept, wider)


def test_state_that_is_no_tensor_and_no_number_is_not_kept_and_that_is_said():
    model, optimizer = task()
    snapshots = Snapshots(model, 1, lends=True)
    train(model, optimizer, snapshots, 1)
    optimizer.state[model[0].weight]["history"] = [1.0]
    train(model, optimizer, snapshots, 2)
    with pytest.raises(UnkeptError, match=r"the optimizer state 'history' of 0.weight is no tensor and no number"):
        Packed(snapshots.lend(2))


def test_a_snapshot_that_is_lent_is_not_written_to():
    model, optimizer = task()
    snapshots = Snapshots(model, 1, lends=True)
    train(model, optimizer, snapshots, 2)
    lent = snapshots.lend(2)
    before = {place: t.clone() for place, t in lent.host.items()}
    train(model, optimizer, snapshots, 6)
    assert all(torch.equal(before[place], t) for place, t in lent.host.items())
    assert snapshots.lend(1) is None and len(snapshots._snapshots) == 3
    assert snapshots.react(4) == {"did": "rolled back", "to_step": 4} and snapshots.unfit == (5, 7)


def test_random_states_are_put_back_from_json():
    state = json.loads(json.dumps(random_state(), default=lambda t: t.tolist()))
    drawn = torch.rand(2), random.random(), np.random.rand()
    set_random_state(state)
    assert torch.equal(drawn[0], torch.rand(2)) and drawn[1:] == (random.random(), np.random.rand())


def job(case, folder):
    env = {**os.environ, "TMPDIR": str(folder.parent)}  # no keeper of another test is found
    done = run_python("-m", "tests.guards.peer_job", folder, case, timeout=200, env=env)
    assert done.returncode == 0 and not done.stdout, (done.stdout, done.stderr)
    return "".join(path.read_text() for path in sorted(folder.glob("*.err")))


LOSSES = [case for case in CASES if case != "stopped"]


@pytest.mark.parametrize("case", sample(LOSSES, "parity"))
def test_a_killed_rank_goes_on_bit_for_bit(case, tmp_path):
    said = job(case, tmp_path / case)
    found = [json.loads((tmp_path / case / f"{rank}.json").read_text()) for rank in range(WORLD)]
    if case == "two":
        assert [f["step"] for f in found] == [None] * WORLD
        assert said.count("neither a copy nor what their parity needs is left for rank 1, 2") == WORLD
        return
    assert [(f["step"], f["same"], f["ends_same"]) for f in found] == [(WHOLE, True, True)] * WORLD
    for rank in range(WORLD):
        lost = rank in CASES[case]["lost"]
        where = f"the copy with rank {(rank + 1) % WORLD if lost else rank}"
        where = "the parity of ranks 0, 1, 2, 3" if lost and CASES[case]["mode"] == "parity" else where
        assert f"rank {rank}: the state before step {WHOLE} is put back, from {where}." in said
    events = [e for run in map(read_run, find_runs([tmp_path / case])) for e in run.events if e.kind == "snapshot"]
    assert ["restored", WHOLE] in [[e.data["did"], e.step] for e in events]
    assert not list((tmp_path).glob("stabwatch-keepers-*/*.json")), "no keeper is left"
    assert LOST in CASES[case]["lost"] or case in ("process", "transfer")


def test_training_does_not_wait_for_a_partner_that_is_stopped(tmp_path):
    said = job("stopped", tmp_path / "stopped")
    times = json.loads((tmp_path / "stopped" / "0.json").read_text())
    assert np.median(times["after"]) < 2 * np.median(times["before"]) and max(times["after"]) < wire.SECONDS / 4
    why = "the process that holds states for rank 1 has not taken them: timed out; the last that all ranks hold is that"
    assert f"is not kept by peers: rank 0: {why}" in said

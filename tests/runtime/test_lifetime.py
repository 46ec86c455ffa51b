"""A watch lives as long as its model: it keeps nobody's memory, and ends with it."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.hooks.backward import LISTENERS
from stabwatch.runlog import read_run

SETTINGS = {"agent": False, "verbose": False}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def train(call, parameters, steps=5, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(parameters, lr=0.01)
    for _ in range(steps):
        call(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def trained_and_forgotten(folder):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stabwatch.attach(model, optimizer, run_dir=folder, **SETTINGS)
    train(model, None, optimizer=optimizer)
    return weakref.ref(model)


def ends(folder):
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [e["reason"] for e in events if e["kind"] == "end"]


def until(condition):
    for _ in range(100):
        gc.collect()
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_model_that_nobody_holds_is_free_and_its_run_has_ended(tmp_path):
    before = len(LISTENERS), F.softmax
    model = trained_and_forgotten(tmp_path)
    assert len(LISTENERS) == before[0] + 1
    assert until(lambda: model() is None and ends(tmp_path) == ["finished"])
    assert len(LISTENERS) == before[0] and (before[0] or F.softmax is before[1])


def test_the_next_attach_frees_the_model_before(tmp_path, attach):
    models = [trained_and_forgotten(tmp_path / str(number)) for number in range(3)]
    last = net()
    attach(last, torch.optim.SGD(last.parameters(), lr=0.01))
    assert [model() is None for model in models] == [True, True, True]
    assert [ends(tmp_path / str(number)) for number in range(3)] == [["finished"]] * 3


def test_a_model_that_is_held_is_watched_though_nobody_holds_the_watch(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stabwatch.attach(model, optimizer, run_dir=tmp_path, **SETTINGS)
    for _ in range(3):
        gc.collect()
        train(model, None, 2, optimizer)
    stabwatch.attach(model, optimizer, run_dir=tmp_path / "next", **SETTINGS).detach()
    assert list(read_run(tmp_path).steps) == list(range(6)) and ends(tmp_path) == ["replaced"]


@pytest.mark.parametrize(
    "container", [nn.ModuleList, lambda parts: nn.ParameterList(p for m in parts for p in m.parameters())]
)
def test_a_container_for_attach_alone_is_enough(container, attach):
    parts = [nn.Linear(4, 8), nn.Linear(8, 2)]
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.01)
    attach(container(parts), optimizer)
    gc.collect()
    train(lambda x: parts[1](parts[0](x)), None, 4, optimizer)
    gc.collect()
    assert list(attach.finish().steps) == [0, 1, 2, 3]


def test_copies_and_pickles_do_not_hold_the_run(attach):
    model = net()
    watch = attach(model, torch.optim.SGD(model.parameters(), lr=0.01))
    for other in (copy.deepcopy(model), copy.copy(model[0]), pickle.loads(pickle.dumps(model))):
        assert not any(name.startswith("_stabwatch") for module in other.modules() for name in vars(module))
    watch.detach()
    assert not any(name.startswith("_stabwatch") for module in model.modules() for name in vars(module))

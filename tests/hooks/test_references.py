"""Where a program keeps a function of torch, the function is seen, and pickles work."""

from __future__ import annotations

import functools
import gc
import importlib
import pickle
import sys
from collections import namedtuple
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks import functions, patching, references


class Keeper:
    """Keeps functions in several places. Made by each test: objects of before the session are frozen (conftest)."""

    def __init__(self):
        self.several = (F.cross_entropy, torch.softmax)
        self.named = namedtuple("Named", "loss weight")(F.cross_entropy, 0.5)
        self.nested = {"losses": [(1, (F.cross_entropy, 2))]}
        self.partial = functools.partial(F.cross_entropy)
        own = F.cross_entropy

        def by_default(x, y, loss=F.cross_entropy):
            return loss(x, y)

        def by_keyword(x, y, *, loss=F.cross_entropy):
            return loss(x, y)

        def by_closure(x, y):
            return own(x, y)

        self.functions = (by_default, by_keyword, by_closure)
        self.losses = {
            "default argument": by_default,
            "keyword argument": by_keyword,
            "closure": by_closure,
            "tuple": lambda x, y: self.several[0](x, y),
            "named tuple": lambda x, y: self.named.loss(x, y),
            "tuple in tuple": lambda x, y: self.nested["losses"][0][1][0](x, y),
            "partial": lambda x, y: self.partial(x, y),
        }

    def kept(self):
        """Identities of the function in all places."""
        inside = (self.several[0], self.named.loss, self.nested["losses"][0][1][0], self.partial.func)
        default, keyword, closure = self.functions
        given = default.__defaults__[0], keyword.__kwdefaults__["loss"], closure.__closure__[0].cell_contents
        return [*map(id, (*inside, *given))]


@pytest.mark.parametrize("kept", Keeper().losses)
def test_the_cross_entropy_is_seen_wherever_it_is_kept(kept, attach):
    model, keeper = nn.Linear(4, 3), Keeper()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = attach(model, optimizer)
    for _ in range(2):
        keeper.losses[kept](model(torch.randn(6, 4)), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimizer.step()
    assert not [e for e in watch.coverage()["unmeasured"] if e["tap"] == "logits"]
    assert len(attach.finish().series("token_loss")[1]) == 2


def test_everything_is_as_before_after_the_watch(attach):
    keeper = Keeper()
    before = keeper.kept()
    watch = attach(nn.Linear(2, 2))
    assert set(keeper.kept()) == {id(F.cross_entropy)} != set(before)
    assert pickle.loads(pickle.dumps(keeper.several)) == keeper.several
    assert pickle.loads(pickle.dumps(keeper.nested)) == keeper.nested
    assert type(keeper.named).__name__ == "Named" and keeper.named.weight == 0.5
    watch.detach()
    assert keeper.kept() == before and set(before) == {id(F.cross_entropy)}


def test_modules_that_are_left_keep_what_they_have():
    def old():
        pass

    def new():
        pass

    def user(f=old):
        return f

    def compiler(f=old):
        return f

    def closed(f):
        return lambda: f

    mine, theirs = closed(old), closed(old)
    compiler.__module__ = theirs.__module__ = "compiler.inside"
    expected = (new, new, id(old), id(old))
    references.exchange([(old, new)], ("compiler",))
    assert (user(), mine(), id(compiler()), id(theirs())) == expected


def test_passes_over_all_objects_are_left_out_where_nothing_new_keeps_a_function(attach, monkeypatch, tmp_path):
    gc.collect()  # what other tests have left may keep functions
    attach(nn.Linear(2, 2))
    attach.finish()
    passes = []
    monkeypatch.setattr(patching, "exchange", lambda pairs, left: (passes.append(1), references.exchange(pairs, left)))
    original = id(F.cross_entropy)
    for _ in range(2):
        attach(nn.Linear(2, 2))
        assert id(F.cross_entropy) != original
        attach.finish()
        assert id(F.cross_entropy) == original and not passes
    name = "imported_while_nothing_was_watched"
    tmp_path.joinpath(f"{name}.py").write_text("from torch.nn.functional import cross_entropy")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    attach(nn.Linear(2, 2))
    assert module.cross_entropy is F.cross_entropy and id(F.cross_entropy) != original and not passes
    late = [F.cross_entropy]
    attach.finish()
    assert id(late[0]) == id(module.cross_entropy) == original and len(passes) == 1
    attach(nn.Linear(2, 2))
    assert late[0] is F.cross_entropy and len(passes) == 2
    attach.finish()
    del sys.modules[name]


def test_attaching_that_fails_leaves_nothing_behind(attach, monkeypatch):
    original = id(F.cross_entropy)
    with monkeypatch.context() as patch:
        patch.setattr(functions, "stage_patches", lambda: 1 / 0)
        assert attach(nn.Linear(2, 2))._session.state == "failed"
        assert id(F.cross_entropy) == original and not functions.LISTENERS


def test_a_function_that_was_put_back_before_it_was_ever_replaced_is_replaced(monkeypatch):
    places, module = patching._Places(), ModuleType("holds_a_function")
    module.function = original = lambda: 1
    monkeypatch.setitem(sys.modules, module.__name__, module)
    patch = patching.Patch(original, lambda: 2)
    places.move([patch.back])
    places.note_replacements([patch.pair])
    places.move([patch.pair])
    assert module.function() == 2
    places.move([patch.back])
    assert module.function() == 1

"""Copies and pickles of a watched model, on every road: those of a model that nobody watches."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from functools import partial
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.nn.functional as F
from torch import nn, package

from stabwatch.hooks.base.entry import HOOK_TABLES, Ours
from tests.sampling import sample


class Attention(nn.Module):
    """Keeps functions of torch as attributes, and one on the class."""

    normalise = staticmethod(F.softmax)

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.attend, self.soft = nn.Linear(8, 24), F.scaled_dot_product_attention, torch.softmax
        self.partial, self.kept = partial(F.softmax, dim=-1), [F.softmax]

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.attend(q, k, v) + self.soft(q, -1) + self.partial(k) + self.normalise(v, -1)


class Filters(nn.Linear):
    """Says itself what a pickle holds."""

    def __getstate__(self):
        return {**self.__dict__, "note": "mine"}


class Rebuilt(nn.Linear):
    def __reduce__(self):
        return rebuilt, (self.__dict__.copy(),)


def rebuilt(state):
    made = Rebuilt.__new__(Rebuilt)
    made.__dict__.update(state)
    return made


class CopiesItself(nn.Linear):
    def __deepcopy__(self, memo):
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return made


class Wraps(nn.Linear):
    """Hides its attributes inside of others."""

    def __getstate__(self):
        return {"inner": [self.__dict__]}

    def __setstate__(self, state):
        self.__dict__.update(state["inner"][0])


def note(module, args, output):
    """A hook of the user's."""


def net(*kinds: type[nn.Linear]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.ModuleDict({"attend": Attention()})["attend"],
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8)))),
        *(kind(8, 8) for kind in kinds),
        nn.Linear(8, 4),
    )
    model[0].register_forward_hook(note)
    model.register_forward_pre_hook(lambda_free, with_kwargs=True)
    return model


def lambda_free(module, args, kwargs):
    """Another one."""


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def step(model, optimizer) -> None:
    F.cross_entropy(model(X).flatten(0, 1), torch.zeros(15, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(model) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def packaged(model) -> bytes:
    file = io.BytesIO()
    with package.PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    return file.getvalue()


def with_module(name: str, model) -> bytes:
    tool = pytest.importorskip(name)
    if name != "joblib":
        return tool.dumps(model)
    file = io.BytesIO()
    tool.dump(model, file)
    return file.getvalue()


ROADS = {
    **{f"protocol {n}": partial(pickle.dumps, protocol=n) for n in range(6)},
    "without C": lambda model: pickle._dumps(model),
    "torch.save": saved,
    "torch.package": packaged,
    "multiprocessing": lambda model: bytes(ForkingPickler.dumps(nn.Module.requires_grad_(model, False)[1:])),
    "a copy": lambda model: saved(copy.deepcopy(model)),
    "a shallow copy": lambda model: pickle.dumps(copy.copy(model)),
    "cloudpickle": partial(with_module, "cloudpickle"),
    "dill": partial(with_module, "dill"),
    "joblib": partial(with_module, "joblib"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("road", [road for road in ROADS if road not in ("multiprocessing", "torch.package")])
def test_the_bytes_are_those_of_the_model_that_is_not_watched(road, attach) -> None:
    model = net(Filters, Rebuilt)
    plain = ROADS[road](model)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.0), loss_fn=model[-1], taylor=True)
    assert ROADS[road](model) == plain
    attach.finish()
    assert ROADS[road](model) == plain


@pytest.mark.parametrize("road", sample(ROADS, "torch.package", every=2))
def test_no_word_of_ours_is_in_a_pickle_of_a_trained_model(road, attach) -> None:
    model = net(Filters, Rebuilt)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, every_step=True)
    step(model, optimizer)
    data = ROADS[road](model)
    assert not any(word in data for word in (b"stabwatch", b"nullcontext"))


@pytest.mark.parametrize("kind", [Filters, Rebuilt, CopiesItself, Wraps])
@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_work_and_are_not_watched(way, kind, attach) -> None:
    model = net(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    step(model, optimizer)
    twin, forwards = way(model), watch._session._silence.forwards
    with torch.no_grad():
        assert torch.equal(twin(X), model(X))
    if way is not copy.copy:
        assert all(vars(m).get("_stabwatch") is None for m in twin.modules())
        twin(X)
        assert watch._session._silence.forwards == forwards
    assert twin[1].attend is model[1].attend or way is not copy.copy
    watch.detach()
    for m in twin.modules():
        assert not [h for table in HOOK_TABLES[:2] for h in vars(m)[table].values() if isinstance(h, Ours)]
    assert b"stabwatch" not in pickle.dumps(twin) or kind is CopiesItself
    assert not watch._session.isolation.errors


def test_a_saved_model_is_loaded_with_weights_only_and_without_stabwatch(attach, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, every_step=True)
    step(model, optimizer)
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, tmp_path / "model.pt")
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.ReLU]):
        loaded = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert torch.equal(loaded(X), model(X))
    torch.save(optimizer, tmp_path / "optimizer.pt")
    code = (
        "import sys; sys.modules['stabwatch'] = None; import torch; "
        f"a = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)['model']; "
        f"b = torch.load({str(tmp_path / 'optimizer.pt')!r}, weights_only=False); "
        "print([len(vars(m)[t]) for m in a.modules() for t in vars(m) if t.endswith('hooks')], len(b.state))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    numbers, states = done.stdout.rsplit(" ", 1)
    assert not any(eval(numbers)) and int(states) == 4


def test_functions_that_were_kept_meanwhile_are_those_of_torch_in_the_end(attach) -> None:
    watch = attach(nn.Linear(2, 2))
    late = Attention()
    losses = {"ce": F.cross_entropy, "list": [F.mse_loss], "partial": partial(F.cross_entropy, reduction="sum")}
    pickle.loads(pickle.dumps([late, losses]))
    watch.detach()
    originals = F.cross_entropy, F.mse_loss, F.scaled_dot_product_attention, torch.softmax
    assert (losses["ce"], losses["list"][0], late.attend, late.soft) == originals
    assert losses["partial"].func is F.cross_entropy and losses["partial"].keywords == {"reduction": "sum"}
    assert late.partial.func is late.kept[0] is F.softmax
    pickle.loads(pickle.dumps([late, losses]))


def test_functions_that_were_kept_before_are_pickled_by_their_names(attach) -> None:
    kept = Kept()
    kept.loss, kept.steps, kept.partial = F.mse_loss, [F.softmax], partial(F.cross_entropy, reduction="sum")
    plain = pickle.dumps([kept, vars(kept)])
    watch = attach(nn.Linear(2, 2))
    assert pickle.dumps([kept, vars(kept)]) == plain
    watch.detach()
    assert pickle.dumps([kept, vars(kept)]) == plain
    assert kept.loss is F.mse_loss


class Kept:
    """What a loop keeps of torch's functions."""


def test_the_pickling_of_modules_is_as_before_in_the_end(attach) -> None:
    attach(nn.Linear(2, 2))
    assert "__reduce_ex__" in vars(nn.Module)
    attach.finish()
    assert "__reduce_ex__" not in vars(nn.Module)

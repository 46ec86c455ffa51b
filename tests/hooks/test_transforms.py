"""What else is done with a watched model: it is traced, scripted, exported, pickled, copied, and transformed."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stabwatch.hooks.base.entry import Hook
from tests.sampling import sample


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.body = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.norm, self.loss = nn.LayerNorm(4), nn.CrossEntropyLoss()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.inner(x)
        return self.norm(self.body(x + self.attend(x, x, x)[0]))


X = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1))


def step(model, optimizer):
    F.cross_entropy(model(X).flatten(0, 1), torch.zeros(30, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()


def made():
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def functional(model):
    return torch.func.functional_call(model, dict(model.named_parameters()), (X,))


def samples(model):
    values = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.vmap(lambda x: torch.func.functional_call(model, values, (x[None],)).sum())(X)


def gradients(model):
    values = {name: p.detach() for name, p in model.named_parameters()}
    grad = torch.func.grad(lambda v: torch.func.functional_call(model, v, (X,)).square().sum())
    return torch.cat([g.flatten() for g in grad(values).values()])


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)(X)


USES = {
    "trace": lambda model: torch.jit.trace(model, X, check_trace=False)(X),
    "trace of a copy": lambda model: torch.jit.trace(copy.deepcopy(model), X, check_trace=False)(X),
    "script": lambda model: torch.jit.script(model)(X),
    "script of a copy": lambda model: torch.jit.script(copy.deepcopy(model))(X),
    "export": lambda model: torch.export.export(model, (X,)).module()(X),
    "strict export": lambda model: torch.export.export(model, (X,), strict=True).module()(X),
    "functional call": functional,
    "vmap": samples,
    "grad": gradients,
    "saved": saved,
    "pickled": lambda model: pickle.loads(pickle.dumps(model))(X),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", sample(["train", "eval"], "train"))
@pytest.mark.parametrize("use", sample(USES, "trace", "script of a copy", "strict export", "vmap", "grad", "saved"))
def test_it_works_as_without_a_watch_and_disturbs_nothing(use, mode, attach):
    found = []
    for watched in (False, True):
        model, optimizer = made()
        watch = attach(model, optimizer) if watched else None
        step(model, optimizer)
        result = USES[use](getattr(model, mode)())
        step(model.train(), optimizer)
        found.append([result.detach(), *(p.detach().clone() for p in model.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not watch._session.isolation.errors
    watch.detach()
    assert torch.equal(USES[use](getattr(model, mode)()).detach(), USES[use](copy.deepcopy(model)).detach())
    assert list(attach.finish().steps) == [0, 1]


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_trace_holds_nothing_of_ours_and_warns_of_no_more(with_gradients, attach):
    found = []
    for watched in (False, True):
        model, optimizer = made()
        if watched:
            attach(model, optimizer)
        step(model, optimizer)
        with torch.set_grad_enabled(with_gradients), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            graph = torch.jit.trace(model, X, check_trace=False).inlined_graph
        found.append(([node.kind() for node in graph.nodes()], [str(w.message) for w in warned]))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore")
def test_script_functions_compile_the_originals(attach):
    def plain(x, y):
        return F.cross_entropy(torch.softmax(F.softmax(x, dim=-1), dim=-1), y)

    def attention(x):
        return F.scaled_dot_product_attention(x, x, x)

    model, optimizer = made()
    attach(model, optimizer)
    step(model, optimizer)
    y = torch.tensor([1, 2])
    assert torch.equal(torch.jit.script(plain)(X[0, :2], y), plain(X[0, :2], y))
    assert torch.equal(torch.jit.script(attention)(X), attention(X))


def test_a_copy_holds_none_of_our_hooks_and_a_pickle_needs_no_stabwatch(attach, tmp_path):
    model, optimizer = made()
    attach(model, optimizer)
    step(model, optimizer)
    copied = copy.deepcopy(model)
    assert not any(
        isinstance(h, Hook) for m in copied.modules() for h in {**m._forward_hooks, **m._forward_pre_hooks}.values()
    )
    torch.save(model.body, tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['stabwatch'] = None; import torch; "
        f"print(torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.ones(1, 8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch.Size([1, 4])" in done.stdout, done.stderr


def test_functions_keep_their_signatures_and_names_and_are_restored(attach):
    originals = (torch.softmax, torch.Tensor.softmax, torch.special.softmax, F.softmax, F.scaled_dot_product_attention)
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append((torch.softmax, torch.Tensor.softmax, torch.special.softmax))
            return x

    model = nn.Sequential(nn.Linear(8, 4), Looks())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    assert inspect.signature(F.softmax) == inspect.signature(originals[3])
    assert F.softmax.__doc__ == originals[3].__doc__ and pickle.loads(pickle.dumps(F.softmax)) is F.softmax
    assert pickle.loads(pickle.dumps(F.scaled_dot_product_attention)) is F.scaled_dot_product_attention
    step(model, optimizer)
    assert all(now is not then for now, then in zip(seen[0], originals, strict=False))
    assert pickle.loads(pickle.dumps(torch.softmax)) is torch.softmax is not originals[0]
    assert [f.__name__ for f in seen[0][:2]] == ["softmax", "softmax"]
    assert torch.Tensor.softmax is originals[1] and "softmax" not in vars(torch.Tensor)
    attach.finish()
    restored = torch.softmax, torch.Tensor.softmax, torch.special.softmax, F.softmax, F.scaled_dot_product_attention
    assert restored == originals


KINDS = [spectral_norm, weight_norm, nn.utils.spectral_norm, nn.utils.weight_norm]


@pytest.mark.parametrize("kind", sample(KINDS, spectral_norm, nn.utils.weight_norm))
@pytest.mark.filterwarnings("ignore")
def test_no_parametrized_weight_is_computed_unasked(kind, attach):
    def train(watched):
        torch.manual_seed(0)
        blocks = [
            nn.Sequential(nn.LayerNorm(8), kind(nn.Linear(8, 8)), nn.GELU(), kind(nn.Linear(8, 8))) for _ in range(2)
        ]
        model = nn.Sequential(nn.Linear(8, 8), *blocks, nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            attach(model, optimizer)
        first = {k: v.clone() for k, v in model.state_dict().items()}
        for _ in range(10):
            step(model, optimizer)
        return [*first.values(), *model.state_dict().values()]

    plain, watched = train(False), train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    layers = {key.layer for key in attach.finish().keys if key.signal == "output_rms"}
    assert {"1", "2"} <= layers or {"1.1", "1.3"} <= layers
    assert not any("parametrizations" in layer for layer in layers)


def test_a_parametrization_that_counts_is_never_called_by_us(attach):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            Counting.calls += 1
            return weight * 1.0

    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    parametrize.register_parametrization(model[0], "weight", Counting())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Counting.calls = 0
    attach(model, optimizer)
    assert Counting.calls == 0
    for _ in range(10):
        step(model, optimizer)
    assert Counting.calls == 10


def test_lazy_modules_are_measured_after_they_are_materialised(attach):
    model = nn.Sequential(nn.LazyLinear(16), nn.GELU(), nn.LazyLinear(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(10):
        step(model, optimizer)
    assert not watch._session.isolation.errors
    log = attach.finish()
    for signal in ("output_rms", "gradient_rms", "weight_rms", "update_to_weight_ratio"):
        assert log.series(signal, "0")[1].size >= 9, signal


class DispatchMode(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [DispatchMode, FunctionMode])
def test_modes_of_the_user_see_no_operation_of_ours(kind, attach):
    found = []
    for watched in (False, True):
        model, optimizer = made()
        if watched:
            attach(model, optimizer, every_step=True)
        for _ in range(2):
            with kind() as mode:
                step(model, optimizer)
        found.append(mode.seen)
    assert len(found[0]) > 20 and found[0] == found[1]

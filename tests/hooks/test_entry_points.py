"""Whatever fails inside stabwatch while a user's call runs: the training goes on, bit by bit as without a watch."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.base.entry import Callback, Hook
from stabwatch.hooks.functions import FunctionTaps
from stabwatch.hooks.probes import activation

FOLDER = Path(stabwatch.__file__).parent
CONFIG = DemoConfig(width=16, layers=2, heads=2, context=8)
STEPS = 3


def _train(folder=None):
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = None
    if folder is not None:
        watch = stabwatch.attach(model, optimizer, run_dir=folder, agent=False, every_step=True, verbose=False)
    losses = []
    for _ in range(STEPS):
        ids = torch.randint(0, 256, (2, 9))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if watch is not None:
        watch.detach()
    return [*(p.detach().clone() for p in model.parameters()), torch.tensor(losses), torch.get_rng_state()], watch


def _functions():
    """(owner, name, function) of every function and method of the hooks and the kernels."""
    for package in ("hooks", "kernels"):
        path = [str(FOLDER / package)]
        for found in pkgutil.walk_packages(path, f"stabwatch.{package}."):
            if found.name.rpartition(".")[2] in ("naive", "fused"):
                continue
            module = importlib.import_module(found.name)
            for name, value in list(vars(module).items()):
                if getattr(value, "__module__", None) != module.__name__:
                    continue
                if isinstance(value, types.FunctionType):
                    yield module, name, value
                elif inspect.isclass(value) and not issubclass(value, BaseException):
                    members = ((n, m) for n, m in list(vars(value).items()) if isinstance(m, types.FunctionType))
                    yield from ((value, n, m) for n, m in members if not n.startswith("__"))


def _called(folder):
    """Code that runs during a training with a watch."""
    codes = set()

    def note(frame, event, argument):
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        _train(folder)
    finally:
        sys.setprofile(None)
    return codes


def _wrong(value, how):
    if isinstance(value, torch.Tensor):
        if how == "shape":
            return torch.zeros(3, 7, dtype=value.dtype)
        return torch.full_like(value, float("nan")) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_wrong(part, how) for part in value)
    return value


def _broken(function, how, calls):
    def call(*args, **kwargs):
        calls.append(1)
        if how == "error":
            raise RuntimeError("injected")
        if how == "memory":
            raise MemoryError
        value = function(*args, **kwargs)
        return None if how == "none" else _wrong(value, how)

    return call


HOW = ("error", "memory", "nan", "shape", "none")
NOT_OURS_ALONE = ("cross_entropy", "clip_grad_norm_", "backward", "scaler_update")
"""They contain the call of the original: what they raise may be the user's."""


def _faults(folder):
    called = _called(folder)
    found = [(o, n, f) for o, n, f in _functions() if inspect.unwrap(f).__code__ in called and n not in NOT_OURS_ALONE]
    return [(*where, how) for where in found for how in HOW]


def _check(owner, name, function, how, plain, folder, monkeypatch):
    calls = []
    bad = _broken(function, how, calls)
    with monkeypatch.context() as patch:
        if isinstance(owner, types.ModuleType):
            loaded = [m for n, m in sys.modules.items() if n.startswith("stabwatch") and m is not None]
            for module in loaded:
                for alias, value in list(vars(module).items()):
                    if value is function:
                        patch.setattr(module, alias, bad)
        else:
            patch.setattr(owner, name, bad)
        try:
            result, watch = _train(folder)
        except BaseException as error:
            return f"{name} ({how}): training raised {error!r}"
    if not all(torch.equal(a, b) for a, b in zip(result, plain, strict=True)):
        return f"{name} ({how}): training changed"
    while LISTENERS:  # a fault in the removal itself
        FunctionTaps.remove(LISTENERS[0])
    quiet = (
        calls
        and how in ("error", "memory")
        and watch._session.state != "failed"
        and not watch._session.isolation.errors
    )
    return f"{name} ({how}): not counted" if quiet and not watch._session._writer.failures else None


def _run(faults, tmp_path, monkeypatch):
    logging.getLogger("stabwatch").setLevel(logging.CRITICAL)
    plain, _ = _train()
    try:
        found = [_check(*fault, plain, tmp_path / str(i), monkeypatch) for i, fault in enumerate(faults)]
    finally:
        logging.getLogger("stabwatch").setLevel(logging.NOTSET)
    again, _ = _train()
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))

    assert "\n".join(text for text in found if text) == ""


def test_a_sample_of_faults_changes_nothing(tmp_path, monkeypatch):
    faults = _faults(tmp_path / "first")
    assert len(faults) > 500
    _run(faults[7::87], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_every_fault_changes_nothing(how, tmp_path, monkeypatch):
    _run([fault for fault in _faults(tmp_path / "first") if fault[-1] == how], tmp_path, monkeypatch)


def test_everything_that_is_registered_with_torch_is_an_entry_point(tmp_path):
    """Hooks on modules and on optimizers: found on the objects themselves, not listed by hand."""
    guarded = {Hook.__call__.__code__, Callback.__call__.__code__}
    model = GPT(CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    place = sys.modules["torch.optim.optimizer"]
    tables = (place._global_optimizer_pre_hooks, place._global_optimizer_post_hooks)
    before = [set(table.values()) for table in tables]
    settings = {"run_dir": tmp_path / "run", "agent": False, "verbose": False, "taylor": True}
    with stabwatch.attach(model, optimizer, loss_fn=nn.MSELoss(), **settings):
        hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        hooks += [h for table, old in zip(tables, before, strict=True) for h in table.values() if h not in old]
        assert len(hooks) > 10
        for hook in hooks:
            code = hook.__code__ if isinstance(hook, types.FunctionType) else type(hook).__call__.__code__
            assert code in guarded, hook


def test_what_the_user_interrupts_is_interrupted(attach, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(activation, "measure", interrupt)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(1, 4))

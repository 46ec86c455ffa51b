"""Names of modules and parameters through wrappers: unique, and those that the author of the model wrote."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stabwatch.hooks.base.naming import named_modules, named_parameters, unwrap


class Residual(nn.Module):
    """A user's own wrapper, which adds something to what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, x):
        return x + self.module(x)


class Averaged(Residual):
    """A wrapper with a second child: nothing of it is transparent."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.average = copy.deepcopy(inner)


def block() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(9, 8), block(), block(), nn.Linear(8, 9))


def names(m: nn.Module) -> list[str]:
    return [item.name for item in named_modules(m)]


def parameters(m: nn.Module) -> list[str]:
    return [name for name, _, _ in named_parameters(m)]


def blocks_compiled(m: nn.Sequential) -> nn.Module:
    for i in (1, 2):
        m[i] = torch.compile(m[i], backend="eager")
    return m


def blocks_checkpointed(m: nn.Sequential) -> nn.Module:
    for i in (1, 2):
        m[i] = checkpoint_wrapper(m[i])
    return m


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
        blocks_compiled,
        blocks_checkpointed,
    ],
)
def test_wrappers_leave_no_trace_in_the_names(wrap) -> None:
    wrapped = wrap(model())
    assert names(wrapped) == names(model())
    assert parameters(wrapped) == parameters(model()) == [n for n, _ in model().named_parameters()]


def test_a_plain_model_has_its_own_names() -> None:
    plain = model()
    assert names(plain) == [n for n, _ in plain.named_modules()]
    assert unwrap(plain) is plain


def test_what_a_wrapper_of_ones_own_holds_keeps_its_names() -> None:
    whole = Residual(model())
    assert parameters(whole) == parameters(model())
    assert names(whole) == ["", "module", *names(model())[1:]]


def test_a_wrapped_block_has_a_name_beside_its_wrapper() -> None:
    inside = nn.Sequential(nn.Embedding(9, 8), Residual(block()), Residual(block()))
    assert names(inside)[2:6] == ["1", "1.module", "1.0", "1.1"]
    assert len(set(names(inside))) == len(names(inside))
    assert "1.1.weight" in parameters(inside)


def test_a_wrapper_with_other_children_is_an_ordinary_module() -> None:
    found = parameters(Averaged(nn.Linear(2, 2)))
    assert found == ["module.weight", "module.bias", "average.weight", "average.bias"]


def test_shared_modules_and_tied_weights_come_once() -> None:
    act = nn.GELU()
    shared = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    shared[2].weight = shared[0].weight
    assert names(shared) == ["", "0", "1", "2"]
    assert parameters(shared) == ["0.weight", "0.bias", "2.bias"]


def test_the_owner_of_each_parameter_is_named() -> None:
    owners = {name: owner for name, owner, _ in named_parameters(nn.Sequential(Residual(nn.Linear(2, 2))))}
    assert owners == {"0.weight": "0.module", "0.bias": "0.module"}


def test_names_that_would_collide_are_told_apart() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.ModuleDict({"weight": nn.Linear(2, 2)})

    odd = Odd()
    odd.module.register_parameter("weight_", nn.Parameter(torch.ones(1)))
    found = names(nn.Sequential(odd, Odd()))
    assert len(set(found)) == len(found)


def test_peft_names_the_base_weights_as_the_model_does() -> None:
    peft = pytest.importorskip("peft")
    net = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})
    adapted = peft.get_peft_model(net, peft.LoraConfig(target_modules=["q_proj"], r=2))
    found = parameters(adapted)
    assert {"q_proj.weight", "q_proj.bias", "mlp.weight", "mlp.bias"} <= set(found)
    assert "q_proj.lora_A.default.weight" in found
    assert {"q_proj", "mlp"} <= set(names(adapted))

"""What calls the model once more says so where it cannot, and changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.base.side_effects import SCRIPTED
from stabwatch.hooks.probes.directional import NotCallable
from stabwatch.hooks.probes.sharpness import COMPLEX, NO_LIMIT

ASKED = ("taylor", "sharpness", "jacobian")


class Bags(nn.Module):
    """Its second argument holds places in the first: neither can be cut by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 4)

    def forward(self, tokens, offsets):
        return self.table(tokens, offsets)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs()


class Ragged(nn.Linear):
    def forward(self, x):
        return super().forward(x).values()


def batch():
    return (torch.randn(8, 6),), torch.randint(4, (8,))


def bags():
    return (torch.randint(20, (24,)), torch.arange(0, 24, 3)), torch.randint(4, (8,))


def ragged():
    parts = [torch.randn(n, 6) for n in (3, 5)]
    return (torch.nested.nested_tensor(parts, layout=torch.jagged),), torch.randint(4, (8,))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


class Rateless(torch.optim.Optimizer):
    """Finds its own learning rate, as Adafactor of transformers does."""

    def __init__(self, model) -> None:
        super().__init__(model.parameters(), {"lr": None})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.01)


def scripted(whole):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    if whole:
        return torch.jit.script(net)
    net[1] = torch.jit.script(net[1])
    return net


CASES = {
    "scripted": (lambda: scripted(True), batch, sgd, {"taylor": SCRIPTED, "sharpness": SCRIPTED, "jacobian": SCRIPTED}),
    "partly scripted": (
        lambda: scripted(False), batch, sgd, {"taylor": SCRIPTED, "sharpness": SCRIPTED, "jacobian": SCRIPTED},
    ),
    "not to be cut": (Bags, bags, sgd, {"taylor": "it cannot be called on a part of its batch (RuntimeError: "}),
    "complex": (Waves, batch, sgd, {"sharpness": COMPLEX}),
    "without a rate": (lambda: nn.Linear(6, 4), batch, Rateless, {"sharpness": NO_LIMIT}),
    "ragged": (lambda: Ragged(6, 4), ragged, sgd, {}),
}  # fmt: skip


def train(case, watch=None):
    make, data, optimize, _ = CASES[case]
    torch.manual_seed(0)
    model = make()
    optimizer = optimize(model)
    if watch is not None:
        watch(model, optimizer, **dict.fromkeys(ASKED, True))
    for _ in range(6):
        inputs, targets = data()
        optimizer.zero_grad()
        F.cross_entropy(model(*inputs), targets).backward()
        optimizer.step()
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_cannot_be_called_again_is_said_to_be_that(case, attach):
    plain, watched = train(case), train(case, attach)
    assert all(map(torch.equal, plain, watched))
    log = attach.finish()
    assert len(log.steps) == 6
    assert [e.data["message"] for e in log.events if e.kind == "error"] == []
    (coverage,) = [e.data for e in log.events if e.kind == "coverage"]
    said = {entry["tap"]: entry["reason"] for entry in coverage["unmeasured"] if entry["tap"] in ASKED}
    for name, reason in CASES[case][3].items():
        assert said[name].startswith(reason), said


def test_an_error_of_the_model_is_told_in_a_line():
    assert str(NotCallable(ValueError("a\n  b"))) == "it cannot be called on a part of its batch (ValueError: a b)"
    assert len(str(NotCallable(ValueError("x" * 999)))) < 300

"""Where a value that is not finite is made, at default settings: named by the event, the alert and the diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from stabwatch.analysis.analyze import analyze
from stabwatch.hooks.base.trace import ForwardTrace
from stabwatch.runlog import Event, RunLog
from tests.sampling import sample

BAD = 37
"""A step that is not recorded at default settings."""
STEPS = 42
Made = tuple[nn.Module, torch.optim.Optimizer, Callable[[int], Tensor]]


def batch(*shape: int, step: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(step))


def adam(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def data(bad: bool) -> Made:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

    def loss(step: int) -> Tensor:
        x = batch(8, 2, 8, step=step)
        if bad and step == BAD:
            x[3, 1, 2] = math.nan
        return F.cross_entropy(model(x), torch.arange(8) % 3)

    return model, adam(model), loss


def weights(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        if bad and step == BAD:
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
        return F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)

    return model, adam(model), loss


def weights_at_first(bad: bool) -> Made:
    model = plain()
    with torch.no_grad():
        model[4].weight.mul_(math.inf if bad else 1.0)
    return model, adam(model), lambda step: model(batch(8, 8, step=step)).square().mean()


def weights_data(bad: bool) -> Made:
    """Autograd does not count a write through `.data`; the state of Adam shows that it was not its update."""
    model = plain()

    def loss(step: int) -> Tensor:
        if bad and step == BAD:
            model[2].weight.data[0, 0] = math.nan
        return F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)

    return model, adam(model), loss


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(16, 16), 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).relu()
        return x + (y if self.scale == 1.0 else y * self.scale)


def forward_block(bad: bool) -> Made:
    """The graph of the bad step has an operation more, after the last layer of its block."""
    model = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(16, 4))

    def loss(step: int) -> Tensor:
        model[2].scale = math.nan if bad and step == BAD else 1.0
        return F.cross_entropy(model(batch(8, 16, step=step)), torch.arange(8) % 4)

    return model, adam(model), loss


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.shift = nn.Linear(8, 8), nn.Linear(8, 2), 1.0

    def forward(self, x: Tensor) -> Tensor:
        positive = F.softplus(self.body(x)) * self.shift
        return self.head(positive.log())


def forward_log(bad: bool) -> Made:
    model = Gate()

    def loss(step: int) -> Tensor:
        model.shift = 0.0 if bad and step == BAD else 1.0
        return model(batch(8, 8, step=step)).square().mean()

    return model, adam(model), loss


class Narrow(nn.Module):
    """Numbers below zero, which float16 can hold unless they are large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(16, 16), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (-self.inner(x).abs() * self.scale).half().float()


class Rms(nn.Module):
    """A norm by hand, as language models have it: it takes -inf for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def forward_norm(bad: bool) -> Made:
    model = nn.Sequential(nn.Linear(8, 16), Narrow(), Rms(), nn.Linear(16, 4))

    def loss(step: int) -> Tensor:
        model[1].scale = 1e6 if bad and step == BAD else 1.0
        return F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)

    return model, adam(model), loss


def forward_padding(bad: bool) -> Made:
    parts = nn.ModuleDict({"embed": nn.Embedding(20, 16), "head": nn.Linear(16, 20)})
    parts["layers"] = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
            x = self.parts["embed"](ids)
            for layer in self.parts["layers"]:
                x = x + layer(x, x, x, key_padding_mask=padding)[0]
            return self.parts["head"](x)

    model = Tagger()

    def loss(step: int) -> Tensor:
        ids = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(step))
        padding = torch.zeros(4, 6, dtype=torch.bool)
        padding[:, 4:] = True
        padding[2] = bad and step == BAD
        return F.cross_entropy(model(ids, padding).flatten(0, 1), (7 * ids % 20).flatten())

    return model, adam(model), loss


def loss_ignored(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        y = torch.arange(8) % 4
        return F.cross_entropy(model(batch(8, 8, step=step)), torch.full_like(y, -100) if bad and step == BAD else y)

    return model, adam(model), loss


def loss_masked_mean(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        mask = torch.zeros(8) if bad and step == BAD else torch.ones(8)
        each = F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4, reduction="none")
        return (each * mask).sum() / mask.sum()

    return model, adam(model), loss


def targets(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        y = batch(8, 4, step=step + 1000)
        if bad and step == BAD:
            y[1, 1] = math.nan
        return F.mse_loss(model(batch(8, 8, step=step)), y)

    return model, adam(model), loss


def loss_advantage(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        reward = batch(1 if bad and step == BAD else 4, step=step)
        logs = model(batch(8, 8, step=step)).log_softmax(-1)[: len(reward), 0]
        away = reward - reward.mean()
        return -(away / away.abs().max() * logs).mean()

    return model, adam(model), loss


def loss_log(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        x = batch(8, 8, step=step)
        p = model(x).softmax(-1)[torch.arange(8), x[:, :4].argmax(1)]
        return -(p * (0.0 if bad and step == BAD else 1.0)).log().mean()

    return model, adam(model), loss


def backward_of_loss(bad: bool) -> Made:
    model = plain()

    def loss(step: int) -> Tensor:
        out = model(batch(8, 8, step=step)) * (0.0 if bad and step == BAD else 1.0)
        return out.square().sum(-1).sqrt().mean()

    return model, adam(model), loss


class Safe(nn.Module):
    """`where` around a root: its value is finite at 0, and its slope is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(16, 16), 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).abs() * self.scale
        return torch.where(x > 0, x.sqrt(), 0.0)


def backward_in_a_layer(bad: bool) -> Made:
    model = nn.Sequential(nn.Linear(8, 16), Safe(), nn.Linear(16, 4))

    def loss(step: int) -> Tensor:
        model[1].scale = 0.0 if bad and step == BAD else 1.0
        return F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)

    return model, adam(model), loss


def update_epsilon(bad: bool) -> Made:
    model = plain().half()
    with torch.no_grad():
        model[2].weight[:, :8] = 0.0
        model[2].bias.fill_(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 if bad else 1e-4, foreach=False)
    return (
        model,
        optimizer,
        lambda step: F.cross_entropy(model(batch(8, 8, step=step).half()).float(), torch.arange(8) % 4),
    )


class SignOfNorm(torch.optim.Optimizer):
    def __init__(self, parameters: Any, floor: float) -> None:
        super().__init__(parameters, {"floor": floor})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= 1e-3 * p.grad / (p.grad.norm() + group["floor"])


def update_norm(bad: bool) -> Made:
    model = plain()
    with torch.no_grad():
        model[4].weight.zero_()
    optimizer = SignOfNorm(model.parameters(), 0.0 if bad else 1e-6)
    return model, optimizer, lambda step: F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)


CASES: dict[Callable[[bool], Made], tuple[str, str, str | None, int, str]] = {
    data: ("data", "NonFiniteData", "0", BAD, "input held NaN"),
    weights: ("weights", "NonFiniteWeights", "2", BAD, "something wrote into them"),
    weights_data: ("weights", "NonFiniteWeights", "2", BAD, "something wrote into them"),
    forward_block: ("forward", "NonFiniteForward", "2", BAD, "in the forward pass"),
    weights_at_first: ("weights", "NonFiniteWeights", "4", 0, "before any step was taken"),
    forward_log: ("forward", "NonFiniteForward", "head", BAD, "the logarithm of a number that is not positive"),
    forward_norm: ("forward", "NonFiniteForward", "1", BAD, "in 1, or just before it"),
    forward_padding: ("forward", "NonFiniteForward", "parts.layers.0", BAD, "in the forward pass"),
    loss_ignored: ("loss", "EmptyTargets", None, BAD, "the mean over none is 0 / 0"),
    loss_masked_mean: ("loss", "NonFiniteLoss", None, BAD, "a division by 0"),
    targets: ("data", "NonFiniteData", None, BAD, "the targets of the loss held NaN"),
    loss_advantage: ("loss", "NonFiniteLoss", None, BAD, "from outside of the graph"),
    loss_log: ("loss", "NonFiniteLoss", None, BAD, "the logarithm of a number that is not positive"),
    backward_of_loss: ("gradient", "NonFiniteBackward", None, BAD, "in the backward pass of the loss"),
    backward_in_a_layer: ("gradient", "NonFiniteBackward", "1", BAD, "the gradient of 1"),
    update_epsilon: ("update", "AdamEpsilonUnderflow", "", 0, "whose epsilon of 1e-08 is 0 in float16"),
    update_norm: ("update", "NonFiniteUpdate", "", 0, "after the step of SignOfNorm"),
}
"""A training to place, first cause, prefix of the first layer (None: no layer), step, and words that must be said."""


def traced(folder: Path) -> list[Event]:
    return [event for event in RunLog(folder).poll_events() if event.kind == "nonfinite"]


def trained(made: Made, clip: bool = False, steps: int = STEPS) -> list[float]:
    _, optimizer, objective = made
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = objective(step)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(made[0].parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def made_by(train: Callable[[bool], Made], bad: bool) -> Made:
    torch.manual_seed(0)
    return train(bad)


def watched(train: Callable[[bool], Made], bad: bool, folder: Path, **settings: Any) -> tuple[list[float], Any]:
    made = made_by(train, bad)
    watch = stabwatch.attach(made[0], made[1], run_dir=folder, agent=False, verbose=False, **settings)
    losses = trained(made)
    watch.detach()
    return losses, analyze(folder)


SAMPLE = (
    data,
    weights,
    weights_at_first,
    forward_block,
    forward_norm,
    loss_masked_mean,
    backward_in_a_layer,
    update_epsilon,
)
"""One of each place, with and without a layer."""


@pytest.mark.parametrize("train", sample(CASES, *SAMPLE), ids=lambda train: train.__name__)
def test_the_place_of_birth_is_named_at_default_settings(train, tmp_path):
    place, cause, layer, step, words = CASES[train]
    losses, run = watched(train, True, tmp_path)
    [event, *_] = traced(tmp_path)
    assert (event.data["place"], event.data["since"]) == (place, step)
    assert run.diagnosis.causes[0].name == cause, run.diagnosis.verdict
    assert words in run.diagnosis.verdict
    layers = run.diagnosis.causes[0].layers
    assert not layers if layer is None else layers and layers[0].startswith(layer), layers
    assert not run.errors
    told = " ".join(run.diagnosis.causes[0].evidence)
    if place != "weights" or step:
        assert f"Batch of step {step}: " in told
    number = losses[step]
    shown = f"{number:.3g}" if math.isfinite(number) else {"nan": "NaN", "inf": "infinite"}[str(number)]
    assert f"The loss was {shown} in that step" in run.diagnosis.verdict or f"the loss was {shown} " in told


@pytest.mark.parametrize("train", sample(CASES, weights, loss_log, every=4), ids=lambda train: train.__name__)
def test_the_healthy_twin_is_silent(train, tmp_path):
    _, run = watched(train, False, tmp_path)
    assert traced(tmp_path) == []
    assert "NonFinite" not in {a.rule for a in run.alerts}


TWINS = (data, forward_padding, backward_in_a_layer, update_norm)


@pytest.mark.parametrize("train", sample(TWINS, data, backward_in_a_layer), ids=lambda t: t.__name__)
@pytest.mark.parametrize("bad", [True, False])
def test_training_is_bit_identical(train, bad, tmp_path):
    alone = made_by(train, bad)
    losses = trained(alone)
    other = made_by(train, bad)
    watch = stabwatch.attach(other[0], other[1], run_dir=tmp_path, agent=False, verbose=False)
    assert str(trained(other)) == str(losses)
    watch.detach()
    for a, b in zip(alone[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_clipping_does_not_hide_the_layer(tmp_path):
    """A norm that is NaN makes all gradients NaN: the layer is found before."""
    made = made_by(backward_in_a_layer, True)
    watch = stabwatch.attach(made[0], made[1], run_dir=tmp_path, agent=False, verbose=False)
    trained(made, clip=True)
    watch.detach()
    cause = analyze(tmp_path).diagnosis.causes[0]
    assert (cause.name, cause.layers[0].split(".")[0], cause.since_step) == ("NonFiniteBackward", "1", BAD)


def test_a_step_that_a_scaler_skips_is_routine(tmp_path):
    model = plain()
    optimizer, scaler = adam(model), torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=5)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path, agent=False, verbose=False)
    for step in range(60):
        optimizer.zero_grad()
        scaler.scale(100 * F.cross_entropy(model(batch(8, 8, step=step)), torch.arange(8) % 4)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    watch.detach()
    run = analyze(tmp_path)
    assert traced(tmp_path) == [] and not run.errors


@pytest.mark.parametrize("bad", [True, False])
def test_a_checkpointed_part_is_not_computed_again(bad, tmp_path):
    """Its tensors are packed: to look at them would run the part a second time."""
    calls: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = Counted(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.inside, x, use_reentrant=False))

    model = Model()
    optimizer = adam(model)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path, agent=False, verbose=False)
    for step in range(4):
        x = batch(4, 8, step=step)
        before = len(calls)
        loss = (model(x) * (math.nan if bad and step == 3 else 1.0)).square().mean()
        loss.backward()
        assert len(calls) - before == 2
        optimizer.step()
    watch.detach()
    assert [event.data["place"] for event in traced(tmp_path)] == (["loss"] if bad else [])


def test_nothing_of_it_is_done_on_an_accelerator():
    trace = ForwardTrace()
    trace.begins((), torch.device("cuda"))
    trace.enters("0")
    trace.leaves("0")
    trace.ends(object())
    assert trace.forwards == [] and trace.pattern == ()

"""A model that changes while it is watched: what it has now is measured, as if it had been attached as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from stabwatch.analysis import analyze
from stabwatch.runlog import Run


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Adapter(nn.Module):
    """A linear layer with a low-rank update, as PEFT puts it in the place of another."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def unfreeze(model, optimizer):
    model.requires_grad_(True)


def add(model, optimizer):
    model.append(nn.Linear(4, 4))
    optimizer.add_param_group({"params": list(model[5].parameters())})


def assign(model, optimizer):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())


def replace(model, optimizer):
    model[4] = nn.Linear(16, 4)
    optimizer.param_groups[0]["params"] = list(model.parameters())


def adapt(model, optimizer):
    model[2] = Adapter(model[2])
    optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]


def drop(model, optimizer):
    del model[3], model[2]
    optimizer.param_groups[0]["params"] = list(model.parameters())


def constrain(model, optimizer):
    parametrize.register_parametrization(model[2], "weight", nn.Tanh())
    optimizer.param_groups[0]["params"] = list(model.parameters())


CHANGES = {f.__name__: f for f in (unfreeze, add, assign, replace, adapt, drop, constrain)}


def train(model, optimizer, steps=12, change=None, at=3) -> list[float]:
    """Returns the gradient norm of each step."""
    norms = []
    for step in range(steps):
        if change is not None and step == at:
            change(model, optimizer)
        g = torch.Generator().manual_seed(step)
        F.cross_entropy(model(torch.randn(5, 8, generator=g)), torch.arange(5) % 4).backward()
        norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def gradient_norms(log: Run) -> dict[int, float]:
    steps, values = log.series("gradient_norm")
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def changes(log: Run) -> list[tuple[int | None, str]]:
    return [(e.step, e.data["what"]) for e in log.events if e.kind == "change"]


@pytest.mark.parametrize("name", CHANGES)
def test_the_gradient_norm_is_that_of_the_model_as_it_is(name, attach) -> None:
    model = mlp()
    if name == "unfreeze":
        model[0].requires_grad_(False), model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    norms = train(model, optimizer, change=CHANGES[name])
    log = attach.finish()
    assert gradient_norms(log) == pytest.approx(dict(enumerate(norms)), rel=1e-5)
    assert [e.data for e in log.events if e.kind == "error"] == []
    ((step, what),) = changes(log)
    assert step == 3 and what.startswith("the model has changed: ")
    assert 3 in [int(block.steps[0]) for block in log.blocks]
    assert "WeightsChangedOutsideStep" not in {i.condition for i in analyze(attach.watches[-1].run_dir).incidents}


@pytest.mark.parametrize("name", CHANGES)
def test_training_is_the_same_as_without_a_watch(name, attach) -> None:
    def run(watched: bool) -> list[torch.Tensor]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if watched:
            attach(model, optimizer)
        train(model, optimizer, 8, CHANGES[name])
        return list(model.parameters())

    assert all(map(torch.equal, run(False), run(True)))
    attach.finish()


def test_new_layers_have_all_their_series(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    train(model, optimizer, 24, adapt)
    missing = watch.coverage()["missing"]
    log = attach.finish()
    assert missing == []
    assert len(log.series("update_to_weight_ratio", "2.up")[0]) and len(log.series("output_rms", "2.up")[0])
    assert len(log.series("singular_value_max", "2.up.weight")[0])
    assert not len(log.series("singular_value_max", "2.base.weight")[0])


def test_hooks_are_gone_after_the_end_also_from_modules_that_were_replaced(attach) -> None:
    model = mlp()
    old = list(model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    train(model, optimizer, 5, replace)
    assert not any("_stabwatch" in vars(m) for m in old[5:6])
    attach.finish()
    for module in (*old, *model.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks and "_stabwatch" not in vars(module)


def test_lazy_modules_are_measured_when_they_are_materialised(attach) -> None:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    norms = train(model, optimizer)
    missing = watch.coverage()["missing"]
    log = attach.finish()
    assert gradient_norms(log) == pytest.approx(dict(enumerate(norms)), rel=1e-5)
    assert missing == [] and changes(log) == []
    assert len(log.series("singular_value_max", "0.weight")[0]) and len(log.series("output_rms", "0")[0]) == 12


def test_what_is_frozen_before_the_first_step_is_not_missed(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    model[0].requires_grad_(False)
    train(model, optimizer)
    assert watch.coverage()["missing"] == []


def test_freezing_is_reported_and_the_norm_right(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    norms = train(model, optimizer, change=lambda m, o: m[0].requires_grad_(False))
    log = attach.finish()
    assert gradient_norms(log) == pytest.approx(dict(enumerate(norms)), rel=1e-5)
    assert changes(log) == [(4, "the model has changed: 2 parameters are frozen now (0.bias, 0.weight)")]


def test_networks_that_are_frozen_in_turn_are_no_changes(attach) -> None:
    """As GANs do it in each step."""
    model = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 1)])
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in model]
    attach(model, optimizers)
    for _ in range(12):
        for own, (other, optimizer) in enumerate(zip(reversed(model), optimizers, strict=True)):
            other.requires_grad_(False)
            model[own].requires_grad_(True)
            model[1](model[0](torch.randn(3, 4))).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    log = attach.finish()
    assert len(log.steps) == 12 and len(log.blocks) < 6  # not one for each step
    assert len(changes(log)) <= 1


def test_each_network_that_is_frozen_in_turn_has_its_part_of_the_loss(attach) -> None:
    """As Lightning's `toggle_optimizer` does: the other network is trained again when the pass is over."""
    model = nn.ModuleDict({"made": nn.Linear(4, 8), "judge": nn.Linear(8, 1)})
    made, judge = model["made"], model["judge"]
    optimizers = {m: torch.optim.SGD(m.parameters(), lr=0.1) for m in (judge, made)}
    attach(model, list(optimizers.values()))
    totals = []
    for _ in range(6):
        totals.append(0.0)
        z = torch.randn(3, 4)
        for own, other in ((judge, made), (made, judge)):
            other.requires_grad_(False)
            fake = made(z)
            loss = (judge(fake.detach()) if own is judge else -judge(fake)).mean()
            optimizers[own].zero_grad()
            loss.backward()
            optimizers[own].step()
            other.requires_grad_(True)
            totals[-1] += loss.item()
    assert attach.finish().series("loss")[1] == pytest.approx(totals, rel=1e-5, abs=1e-6)


def test_what_is_trained_later_is_not_missing_at_the_end(attach, caplog) -> None:
    """A group that the optimizer gets after the first report of the coverage."""
    model = mlp()
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    watch = attach(model, optimizer)
    rest = [p for layer in list(model)[:4] for p in layer.parameters()]
    train(model, optimizer, change=lambda m, o: o.add_param_group({"params": rest}), at=9)
    log = attach.finish()
    assert caplog.text.count("no optimizer step updated these parameters") == 1
    reports = [e.data for e in log.events if e.kind == "coverage"]
    assert reports[0]["missing"] and "trainable parameters are in no optimizer" in caplog.text
    assert reports[-1]["missing"] == reports[-1]["notes"] == watch.coverage()["missing"] == []


def test_parameters_that_are_lent_for_a_call_are_no_change(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for _ in range(12):
        for lent in ({k: v * 1.0 for k, v in model.named_parameters()}, {k: nn.Parameter(v.detach().clone()) for k, v in
                     model.named_parameters()}):  # fmt: skip
            torch.func.functional_call(model, lent, (torch.randn(5, 8),)).sum().backward()
        model(torch.randn(5, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    assert len(log.steps) == 12 and changes(log) == []
    assert all(block.steps[0] <= 1 for block in log.blocks)


def test_a_model_that_changes_again_and_again_is_followed_less_often(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(40):
        train(model, optimizer, 1, replace, at=0)
    notes = [note["reason"] for note in watch.coverage()["notes"]]
    log = attach.finish()
    assert len(log.steps) == 40 and 16 <= len(changes(log)) < 24
    assert any("changes again and again" in note for note in notes)


def test_what_was_measured_before_a_change_within_the_step_is_kept(attach) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for step in range(4):
        for _ in range(2):
            F.cross_entropy(model(torch.ones(5, 8)), torch.arange(5) % 4).backward()
            if step == 2:
                model.append(nn.Linear(4, 4))
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    counts = [block.rows[:, block.layout.start(a)] for block in log.blocks for a in block.layout.accumulators
              if (a.tap, a.site, a.reduction) == ("activation", "0", "moments")]  # fmt: skip
    assert [float(n) for column in counts for n in column] == [2 * 5 * 16.0] * 4


class Growing(nn.Module):
    """Makes a layer in its fifth forward."""

    def __init__(self, optimizer_of):
        super().__init__()
        self.layers, self.calls = mlp(), 0
        self.optimizer = optimizer_of(self)

    def forward(self, x):
        self.calls += 1
        if self.calls == 5:
            add(self.layers, self.optimizer)
        return self.layers(x)


def test_a_layer_that_a_forward_makes_is_in_the_norm_of_that_step(attach) -> None:
    """The model was looked at when the forward began; that the optimizer holds more than before shows it."""
    model = Growing(lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
    attach(model, model.optimizer, every_step=True)
    norms = []
    for _ in range(8):
        model.zero_grad()
        model(torch.randn(6, 8)).square().mean().backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        model.optimizer.step()
    log = attach.finish()
    assert log.series("gradient_norm")[1] == pytest.approx(norms, rel=1e-5)
    assert [e.step for e in log.events if e.kind == "change"] == [4]

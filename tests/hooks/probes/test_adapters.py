"""Adapters of PEFT and of other authors: against the dense product, and what cannot be measured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.probes.adapters import QUANTISED

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 40), nn.Linear(40, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(x + self.down(torch.tanh(self.up(x))))


def lora(**config):
    torch.manual_seed(0)
    return peft.get_peft_model(Net(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"], **config))


def train(model, steps, keep=lambda: None):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return optimizer, lambda: [_step(model, optimizer, keep) for _ in range(steps)]


def _step(model, optimizer, keep):
    optimizer.zero_grad()
    x = torch.randn(8, 12)
    nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
    optimizer.step()
    return keep()


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_the_gain_is_that_of_the_dense_product(config, attach):
    model = lora(**config)
    layers = {name: model.base_model.model.get_submodule(name) for name in ("up", "down")}

    def products():
        return {
            name: m.scaling["default"] * (m.lora_B["default"].weight.double() @ m.lora_A["default"].weight.double())
            for name, m in layers.items()
        }

    optimizer, run = train(model, 2 * PHASES, products)
    attach(model, optimizer)
    seen = [products(), *run()]
    log = attach.finish()
    scaling = 4.0 if "use_rslora" in config else 2.0
    for name, layer in layers.items():
        weight = layer.base_layer.weight.double()
        steps, gains = log.series("adapter_gain_ratio", name)
        assert len(steps) == 2, "once in a round of turns"
        for i, step in enumerate(map(int, steps)):
            new, old = seen[step + 1][name], seen[step][name]
            assert gains[i] == pytest.approx((new.norm() / weight.norm()).item(), rel=1e-4)
            change = log.series("adapter_change_ratio", name)[1][i]
            assert change == pytest.approx(((new - old).norm() / weight.norm()).item(), rel=1e-3)
            ratio = log.series("adapter_singular_value_ratio", name)[1][i]
            truth = torch.linalg.svdvals(new)[0] / torch.linalg.svdvals(weight)[0]
            assert ratio == pytest.approx(truth.item(), rel=0.05 if i else 0.15), (
                "the weight's is iterated from visit to visit"
            )
        assert set(log.series("adapter_rank", name)[1]) == {4.0}
        assert set(log.series("adapter_scaling", name)[1]) == {scaling}


class Handmade(nn.Module):
    """As in loralib and torchtune: the factors are parameters or layers of the layer itself."""

    def __init__(self, weight, layers):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        a, b = torch.randn(3, weight.shape[1]) / 4, torch.randn(weight.shape[0], 3) / 4
        if layers:
            self.lora_a, self.lora_b = nn.Linear(weight.shape[1], 3, bias=False), nn.Linear(3, len(weight), bias=False)
            self.lora_a.weight.data, self.lora_b.weight.data = a, b
            self.alpha = 6.0
        else:
            self.lora_A, self.lora_B, self.scaling = nn.Parameter(a), nn.Parameter(b), 2.0

    def forward(self, x):
        if hasattr(self, "lora_a"):
            return x @ self.weight.T + 2.0 * self.lora_b(self.lora_a(x))
        return x @ self.weight.T + 2.0 * (x @ self.lora_A.T @ self.lora_B.T)


@pytest.mark.parametrize("layers", [False, True])
def test_layers_of_other_authors(layers, attach):
    torch.manual_seed(0)
    model = nn.Sequential(Handmade(torch.randn(12, 12), layers), nn.Tanh(), nn.Linear(12, 5))
    optimizer, run = train(model, PHASES)
    attach(model, optimizer)
    run()
    log = attach.finish()
    layer = model[0]
    a, b = (layer.lora_a.weight, layer.lora_b.weight) if layers else (layer.lora_A, layer.lora_B)
    truth = 2.0 * (b @ a).norm() / layer.weight.norm()
    assert log.series("adapter_gain_ratio", "0")[1][-1] == pytest.approx(truth.item(), rel=0.2), "some steps old"
    assert log.series("adapter_scaling", "0")[1][-1] == 2.0


def test_the_adapter_of_a_layer_with_one_output_and_of_a_convolution(attach):
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(4, 6, 3), nn.Linear(6, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.conv(x)).mean(-1))

    torch.manual_seed(0)
    model = peft.get_peft_model(Scores(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["conv", "head"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(PHASES + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 9)).square().mean().backward()
        optimizer.step()
    assert not watch._session.isolation.errors
    log = attach.finish()
    for name in ("conv", "head"):
        layer = model.base_model.model.get_submodule(name)
        factors = layer.lora_B["default"].weight.flatten(1) @ layer.lora_A["default"].weight.flatten(1)
        truth = 2 * factors.norm() / layer.base_layer.weight.norm()
        assert log.series("adapter_gain_ratio", name)[1][-1] == pytest.approx(truth.item(), rel=0.5), "some steps old"
        assert log.series("adapter_singular_value_ratio", name)[1][-1] > 0


def test_a_quantised_weight_is_named(attach):
    model = nn.Sequential(Handmade(torch.randn(12, 12), False), nn.Tanh(), nn.Linear(12, 5))
    kept = model[0].weight.data
    model[0].register_buffer("packed", kept)
    model[0]._parameters["weight"] = nn.Parameter(kept.to(torch.int8), requires_grad=False)
    model[0].forward = lambda x: x @ kept.T + x @ model[0].lora_A.T @ model[0].lora_B.T
    optimizer, run = train(model, PHASES)
    attach(model, optimizer)
    run()
    told = {(e["tap"], e["site"]): e["reason"] for e in attach.watches[-1].coverage()["unmeasured"]}
    assert told["adapter", "0"] == QUANTISED


def test_adapters_that_come_after_attach_are_measured_and_training_is_the_same(attach):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = Net()
        if watched:
            attach(net)
        model = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=2, target_modules=["up"]))
        _, run = train(model, 2 * PHASES)
        torch.manual_seed(1)
        run()
        ends.append(copy.deepcopy(dict(model.state_dict())))
    log = attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))
    assert any(k.signal == "adapter_gain_ratio" for k in log.keys)

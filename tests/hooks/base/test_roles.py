"""Depth, branches, activation functions and experts of real models, against values computed apart in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.sites import select_modules
from stabwatch.kernels.depth.naive import slope
from stabwatch.kernels.saturation.naive import saturation
from tests.models import Mixture

transformers = pytest.importorskip("transformers")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)


def rms(x):
    return x.double().square().mean().sqrt().item()


def outputs_of(model, *paths):
    """Lists of (input, output) of the calls of each path, filled as the model is called."""
    seen = {path: [] for path in paths}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda m, args, out, path=path: seen[path].append((args[0].detach().clone(), out.detach().clone()))
        )
    return seen


def train(model, optimizer, steps, micro=1):
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(micro):
            data = torch.randint(256, (3, 17))
            F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()).backward()
        optimizer.step()


def test_growth_over_depth_branch_and_saturation_of_a_gpt(attach):
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=3, heads=2, context=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    paths = [f"blocks.{i}" for i in range(3)]
    seen = outputs_of(model, *paths, "blocks.1.attn.proj", "blocks.1.mlp.2", "blocks.1.mlp.1")
    attach(model, optimizer)
    train(model, optimizer, PHASES)
    log = attach.finish()
    steps, found = log.series("residual_growth", "blocks")
    assert list(steps) == list(range(PHASES))
    for step, value in zip(steps, found, strict=True):
        assert value == pytest.approx(slope([seen[p][step][1].numpy() for p in paths]), abs=1e-5)
    for writer in ("blocks.1.attn.proj", "blocks.1.mlp.2"):
        (step,), (value,) = log.series("branch_trunk_ratio", writer)
        assert value == pytest.approx(rms(seen[writer][step][1]) / rms(seen["blocks.1"][step][0]), rel=1e-5)
    (step,), (value,) = log.series("activation_saturated_ratio", "blocks.1.mlp.1")
    count, flat, units, stuck = saturation(F.gelu, seen["blocks.1.mlp.1"][step][0].flatten(0, 1)).tolist()
    assert value == pytest.approx(flat / count, abs=2 / count)
    assert log.series("saturated_units_ratio", "blocks.1.mlp.1")[1].tolist() == [stuck / units]


def test_micro_batches_merge_by_the_law(attach):
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    seen = outputs_of(model, "blocks.0", "blocks.1", "blocks.0.mlp.2")
    attach(model, optimizer)
    train(model, optimizer, PHASES, micro=3)
    log = attach.finish()

    def of(path, step, which):
        return torch.cat([call[which] for call in seen[path][3 * step : 3 * step + 3]])

    for step, value in zip(*log.series("residual_growth", "blocks"), strict=True):
        assert value == pytest.approx(slope([of(f"blocks.{i}", step, 1).numpy() for i in (0, 1)]), abs=1e-5)
    (step,), (value,) = log.series("branch_trunk_ratio", "blocks.0.mlp.2")
    assert value == pytest.approx(rms(of("blocks.0.mlp.2", step, 1)) / rms(of("blocks.0", step, 0)), rel=1e-5)


def test_activation_functions_of_many_kinds_are_found_and_pinned_ones_are_seen(attach):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.SiLU(inplace=True), nn.Linear(6, 1), nn.ReLU()
    )
    with torch.no_grad():
        model[0].bias[:3] = 100.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer)
    for _ in range(PHASES):
        model(torch.randn(10, 4)).sum().backward()
        optimizer.step()
    assert [(e["tap"], e["site"]) for e in watch.coverage()["unmeasured"]] == [("nonlinearity", "3"), ("logits", "")]
    log = attach.finish()
    assert log.series("saturated_units_ratio", "1")[1].tolist() == [0.5]
    assert not [e for e in log.events if e.kind == "error"]
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64))
    assert [c.name for c in select_modules(llama) if c.role.nonlinear] == [
        f"model.layers.{i}.mlp.act_fn" for i in (0, 1)
    ]
    assert [c.name for c in select_modules(gpt2) if c.role.nonlinear] == [f"transformer.h.{i}.mlp.act" for i in (0, 1)]


def mixtral(attach, steps, experts=4):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **SMALL, num_local_experts=experts, num_experts_per_tok=2, num_key_value_heads=2
    )
    model = transformers.MixtralForCausalLM(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    calls = []
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda m, args: calls.append([a.detach().clone() for a in args]))
    weights = {n: p.detach().clone() for n, p in experts.named_parameters()}
    watch = attach(model, optimizer)
    for _ in range(steps):
        data = torch.randint(64, (2, 12))
        optimizer.zero_grad()
        model(input_ids=data, labels=data).loss.backward()
        optimizer.step()
    return watch, calls, weights


def test_the_load_and_the_output_of_each_expert_of_a_stack(attach):
    watch, calls, weights = mixtral(attach, PHASES)
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    for i in range(4):
        name = f"model.layers.1.mlp.experts.{i}"
        truth = [float((chosen == i).sum() / chosen.numel()) for _, chosen, _ in calls]
        assert log.series("expert_load_ratio", name)[1].tolist() == pytest.approx(truth, abs=1e-6)
        ((step,), (value,)) = log.series("expert_output_rms", name)
        tokens, chosen, _ = calls[step]
        mine = tokens[(chosen == i).any(dim=1)].double()
        gate, up = (mine @ weights["gate_up_proj"][i].double().T).chunk(2, dim=-1)
        out = (F.silu(gate) * up) @ weights["down_proj"][i].double().T
        assert value == pytest.approx(rms(out), rel=0.3), "8 tokens of those that were sent to it"
    loads = torch.tensor([[float((chosen == i).sum()) for i in range(4)] for _, chosen, _ in calls])
    overflow = (loads - 1.25 * loads.mean(1, keepdim=True)).clamp(min=0).sum(1) / loads.sum(1)
    found = log.series("router_overflow_ratio", "model.layers.1.mlp.gate")[1]
    assert found.tolist() == pytest.approx(overflow.tolist(), abs=1e-6)
    assert {e["tap"] for e in watch.coverage()["unmeasured"]} == {"dropped"}


def test_many_experts_are_seen_together(attach):
    watch, _, _ = mixtral(attach, 1, experts=65)
    reasons = {(e["tap"], e["site"]) for e in watch.coverage()["unmeasured"]}
    assert ("expert", "model.layers.1.mlp.experts") in reasons
    log = attach.finish()
    assert not any(key.signal.startswith("expert_") for key in log.keys)
    assert len(log.series("router_overflow_ratio", "model.layers.1.mlp.gate")[1]) == 1


def test_a_stated_capacity_gives_the_share_that_is_dropped(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Mixture())
    inputs = []
    model[1].gate.register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    model(torch.randn(30, 8)).square().mean().backward()
    weight = model[1].gate.wg.weight.detach().clone()
    optimizer.step()
    log = attach.finish()
    loads = torch.bincount((inputs[0] @ weight.T).argmax(-1), minlength=4).float()
    dropped = (loads - 0.5 * 30 / 4).clamp(min=0).sum() / 30
    assert log.series("router_dropped_ratio", "1.gate.wg")[1].tolist() == pytest.approx([dropped.item()])
    shares = [log.series("expert_load_ratio", f"1.experts.{i}")[1][0] for i in range(4)]
    assert shares == pytest.approx((loads / 30).tolist())
    assert log.series("output_rms", "1.experts.2")[1][0] > 0, "experts that are modules have their own"

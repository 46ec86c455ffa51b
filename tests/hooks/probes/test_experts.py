"""What is said of a router is what its module really does: the experts that it chose, the logits that it chose by."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.kernels.router import choice, combined
from stabwatch.kernels.router.naive import choice as naive_choice
from stabwatch.kernels.router.naive import router

SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
_GROUPED = dict(
    moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
    first_k_dense_replace=0, n_shared_experts=1,
)  # fmt: skip
MODELS = {
    "gpt_oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **SMALL, head_dim=16, num_local_experts=8, num_experts_per_tok=2, layer_types=["full_attention"]
        )
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(**SMALL, **_GROUPED, **_LATENT)
    ),
    "glm4_moe": lambda: transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**SMALL, **_GROUPED, head_dim=16)),
    "ernie4_5": lambda: transformers.Ernie4_5_MoeForCausalLM(
        transformers.Ernie4_5_MoeConfig(
            **SMALL, moe_intermediate_size=16, moe_num_experts=8, moe_k=2, moe_num_shared_experts=1,
            moe_layer_start_index=0, moe_layer_end_index=0, moe_layer_interval=1,
        )
    ),
    "minimax_m2": lambda: transformers.MiniMaxM2ForCausalLM(
        transformers.MiniMaxM2Config(**SMALL, head_dim=16, num_local_experts=8, num_experts_per_tok=2)
    ),
}  # fmt: skip


def _unbalance(model):
    """Biases and corrections that decide; router weights that still matter."""
    with torch.no_grad():
        for name, x in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("router.bias", "e_score_correction_bias")):
                x.copy_(torch.linspace(0.3, 0.0, 8).roll(3).view(x.shape))
            elif name.endswith(("gate.weight", "router.weight")):
                x.normal_(std=0.05)


def _recorded(model, seen):
    """Notes the experts that were called, and the router's logits."""

    def called(module, args):
        seen["experts"] = args[1].detach()

    def routed(module, args, out):
        seen["logits"] = out[0].detach()

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(called)
        elif name.endswith((".gate", ".router")):
            module.register_forward_hook(routed)
            seen["name"] = name


@pytest.mark.parametrize("kind", MODELS)
def test_the_loads_are_those_of_the_experts_that_were_called(kind, attach):
    torch.manual_seed(0)
    model, seen = MODELS[kind](), {}
    _unbalance(model)
    _recorded(model, seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    data = torch.randint(3, 64, (8, 40))
    model(input_ids=data, labels=data).loss.backward()
    optimizer.step()
    log, name = attach.finish(), seen["name"]
    logits = seen["logits"].flatten(0, -2)
    loads = torch.bincount(seen["experts"].flatten(), minlength=8).double()
    n, entropy, squares, _ = router(logits, 2).tolist()
    violation = float(loads.max() / loads.mean() - 1)
    assert log.series("router_max_violation", name)[1].tolist() == pytest.approx([violation])
    assert log.series("router_entropy", name)[1].tolist() == pytest.approx([entropy / n], rel=1e-4)
    assert log.series("router_z", name)[1].tolist() == pytest.approx([squares / n], rel=1e-4)
    experts = name.rpartition(".")[0] + ".experts"
    shares = [log.series("expert_load_ratio", f"{experts}.{i}")[1][0] for i in range(8)]
    assert shares == pytest.approx((loads / loads.sum()).tolist())


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_the_choice_and_the_sum_of_experts_are_those_of_dense_products(kind, attach):
    torch.manual_seed(0)
    mixtral = transformers.MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2)
    model = transformers.MixtralForCausalLM(mixtral) if kind == "mixtral" else MODELS[kind]()
    _unbalance(model)
    seen, calls = {}, []
    _recorded(model, seen)
    name, experts = next((n, m) for n, m in model.named_modules() if n.endswith(".experts"))
    experts.register_forward_pre_hook(lambda m, args: calls.append([x.detach() for x in args[:3]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = attach(model, optimizer)
    for _ in range(PHASES):
        data = torch.randint(3, 64, (4, 8))
        model(input_ids=data, labels=data).loss.backward()
        optimizer.step()
    assert not watch._session.isolation.errors
    log = attach.finish()
    gate = model.get_submodule(seen["name"])
    steps, rms = log.series("router_logit_rms", seen["name"])
    assert len(steps) == 1
    # the weights do not move, and the last call is in the place of the one that was measured: so by its step
    tokens, chosen, weights = calls[int(steps[0])]
    logits = tokens.double() @ gate.weight.detach().double().T
    assert rms[0] == pytest.approx(logits.square().mean().sqrt().item(), rel=1e-4)
    share = torch.nn.functional.normalize(gate.weight.detach().double(), dim=-1)
    alike = (share @ share.T)[~torch.eye(8, dtype=torch.bool)].mean().item()
    assert log.series("router_weight_similarity", seen["name"])[1][0] == pytest.approx(alike, abs=1e-5)
    if kind == "mixtral":
        best = logits.sort(dim=-1, descending=True).values
        assert log.series("router_margin", seen["name"])[1][0] == pytest.approx(
            (best[:, 1] - best[:, 2]).mean().item(), rel=1e-3
        )
        gap = (
            torch.bincount(chosen.flatten(), minlength=8) / chosen.numel() - logits.softmax(-1).mean(0)
        ).abs().sum() / 2
        assert log.series("router_gate_load_gap_ratio", seen["name"])[1][0] == pytest.approx(gap.item(), rel=1e-3)
    steps, whole = log.series("expert_combine_rms", name)
    tokens, chosen, weights = calls[int(steps[0])]
    with torch.no_grad():
        parts = torch.stack([experts.forward(tokens, chosen[:, [k]], weights[:, [k]]) for k in range(2)]).double()
        truth = experts.forward(tokens, chosen, weights).double()
    assert whole[0] == pytest.approx(truth.square().mean().sqrt().item(), rel=1e-4)
    coherence = truth.square().sum() / parts.square().sum()
    assert log.series("expert_coherence", name)[1][0] == pytest.approx(coherence.item(), rel=1e-3)


def test_equal_experts_are_coherent_and_opposite_ones_cancel():
    one = torch.randn(5, 6)
    for parts, coherence in (((one, one), 2.0), ((one, -one), 0.0), ((one, torch.zeros_like(one)), 1.0)):
        _, whole, each = combined(torch.stack(parts)).tolist()
        assert whole / each == pytest.approx(coherence, abs=1e-6)


def test_the_choice_is_that_of_its_definition():
    draw = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(40, 6, generator=draw), torch.randn(6, 9, generator=draw)
    assert choice(logits, weight, 2).tolist() == pytest.approx(naive_choice(logits, weight, 2), rel=1e-4)
    assert choice(logits, weight, 6).tolist() == pytest.approx(naive_choice(logits, weight, 6), rel=1e-4), "all of them"
    kept = logits.clone()
    kept[:, 3:] = -torch.inf
    assert torch.isfinite(choice(logits, weight, 3, kept)).all(), "no other may be chosen"


class Corrected(nn.Module):
    """A mixture as in torchtitan: the correction lies beside the experts, the score function is stated.

    always: so many experts more have a logit and no correction; they are used by every token.
    """

    def __init__(self, score_func, always=0):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.router = nn.Module()
        self.router.gate = nn.Linear(8, 4 + always)
        self.router.score_func, self.router.top_k = score_func, 1
        self.register_buffer("expert_bias", torch.tensor([0.0, 0.3, 0.0, 0.1]))

    def forward(self, x):
        z = self.router.gate(x)[:, :4]
        scores = z.sigmoid() if self.router.score_func == "sigmoid" else z.softmax(-1)
        self.chosen = (scores + self.expert_bias).argmax(-1)
        return sum(e(x) * scores[:, [i]] * (self.chosen == i)[:, None] for i, e in enumerate(self.experts))


@pytest.mark.parametrize("always", [0, 2])
@pytest.mark.parametrize("score_func", ["sigmoid", "softmax"])
def test_a_biased_projection_and_a_correction_beside_the_experts(score_func, always, attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Corrected(score_func, always))
    with torch.no_grad():
        model[1].router.gate.bias[:4].copy_(torch.tensor([2.0, 0.0, 1.0, -1.0]))
    logits = []
    model[1].router.gate.register_forward_hook(lambda m, args, out: logits.append(out[:, :4].detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    model(3 * torch.randn(200, 8)).square().mean().backward()
    optimizer.step()
    log, loads = attach.finish(), torch.bincount(model[1].chosen, minlength=4).double()
    assert [e.data for e in log.events if e.kind == "error"] == []
    n, entropy, squares, _ = router(logits[0], 1).tolist()
    violation = float(loads.max() / loads.mean() - 1)
    name = "1.router.gate"
    assert log.series("router_max_violation", name)[1].tolist() == pytest.approx([violation])
    assert log.series("router_entropy", name)[1].tolist() == pytest.approx([entropy / n], rel=1e-4)
    assert log.series("router_z", name)[1].tolist() == pytest.approx([squares / n], rel=1e-4)

"""The deep tier on real models: values against an independent computation, roles, turns, and what cannot be seen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.sampling import ELEMENTS, ROUNDED, some_rows, spread
from stabwatch.hooks.base.sites import select_modules
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.probes.attention import OWN_SCORES
from stabwatch.kernels.contraction.naive import contraction
from stabwatch.kernels.mean_mode.naive import mean_mode
from stabwatch.kernels.precision.naive import rounding as naive_rounding
from stabwatch.kernels.router.naive import router
from stabwatch.kernels.tokens.naive import tokens as naive_tokens
from stabwatch.signals import CATALOGUE, policy, ranks

transformers = pytest.importorskip("transformers")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)


def gpt(steps, attach, optimizer=torch.optim.AdamW, watch=True, **see):
    """Train a two-layer GPT; `see` maps names to functions that are called with the model after each backward."""
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16, batch=3))
    opt = optimizer(model.parameters(), lr=1e-2)
    seen = {name: function(model) for name, function in see.items()}
    if watch:
        attach(model, opt)
    for _ in range(steps):
        data = torch.randint(256, (3, 17))
        opt.zero_grad()
        F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()).backward()
        opt.step()
    return model, seen


def writer_calls(path):
    """(inputs, output gradients) of each call of a module."""

    def look(model):
        calls = []

        def hook(module, args, output):
            call = [args[0].detach().clone(), None]
            calls.append(call)
            output.register_hook(lambda g: call.__setitem__(1, g.detach().clone()))

        model.get_submodule(path).register_forward_hook(hook)
        return calls

    return look


def test_the_mean_mode_is_that_of_the_gradients_that_autograd_gives(attach):
    _, seen = gpt(2 * PHASES, attach, calls=writer_calls("blocks.1.mlp.2"))
    log = attach.finish()
    steps, shares = log.series("mean_mode_energy_ratio", "blocks.1.mlp.2")
    assert len(steps) == 2, "once in a round of turns"
    for step, share in zip(steps, shares, strict=True):
        _, mean, centred, _, _ = mean_mode(*seen["calls"][step]).tolist()
        assert share == pytest.approx(mean / (mean + centred), rel=1e-5)


def test_spectra_are_those_of_the_matrices(attach):
    model, _ = gpt(6 * PHASES, attach)
    log = attach.finish()
    measured = {key.layer for key in log.keys if key.signal == "singular_value_max"}
    expected = {}
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            expected |= {f"{name}.{part}": x for part, x in zip("qkv", parameter.detach().chunk(3), strict=True)}
        elif parameter.dim() > 1:
            expected[name] = parameter.detach()
    assert measured == expected.keys()
    for name, matrix in expected.items():
        truth = torch.linalg.svdvals(matrix.double())
        last = log.series("singular_value_max", name)[1][-1]  # some steps old; 1e-2 of change at this rate
        assert last == pytest.approx(truth[0].item(), rel=0.1)
        rank = log.series("stable_rank", name)[1][-1]
        assert rank == pytest.approx((truth.square().sum() / truth[0].square()).item(), rel=0.2)


def test_the_direction_and_the_size_of_a_step_of_sgd(attach):
    """With weight decay alone the step points against the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    attach(model, optimizer)
    for _ in range(PHASES):
        optimizer.zero_grad()
        (0.0 * model(torch.randn(4, 8)).sum()).backward()
        optimizer.step()
    log = attach.finish()
    assert log.series("update_weight_cosine", "0")[1].tolist() == pytest.approx([-1.0])
    assert not len(log.series("adam_step_rms", "0")[0]), "SGD has no moments"


def test_every_signal_of_the_catalogue_is_measured_on_a_mixture_of_experts(attach):
    """Mixtral with random weights; the few signals that need a clipping, a scaler, a log call, a layer that drops
    tokens, weights before a norm or in 16 bits, a part that is not trained, a loss of another kind, a policy, a loop,
    adapters, curvature, codebooks, several ranks, an evaluation, or more batches are named here."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2)
    model = transformers.MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer, taylor=True, guard="skip_step")
    watch.probe(input_ids=torch.randint(64, (2, 12)))
    for _ in range(2 * PHASES + 1):  # a batch that is measured twice
        watch._session.settle(10.0)  # what a record shows of the run is a number of the next one
        data = torch.randint(64, (2, 12))
        optimizer.zero_grad()
        model(input_ids=data, labels=data).loss.backward()
        optimizer.step()
    log = attach.finish()
    silent = {s.name for s in CATALOGUE} - {key.signal for key in log.keys if len(log.series(key.signal, key.layer)[0])}
    assert silent == {
        "gradient_norm_before_clip", "gradient_norm_nonfinite_total", "loss_scale", "logged_value",
        "router_dropped_ratio", "radial_update_ratio", "effective_step_size", "clip_limit", "loss_broadcast_factor",
        "target_out_of_range_ratio", "log_probability_off_ratio", "error_to_variance_ratio", "compared_loss",
        "input_spread_ratio", "refrozen_ratio",
        "input_alike_ratio", "input_rms", "update_lost_ratio", "gradient_missing_ratio",
        "gradient_missing_of_all_ratio", "gradient_lost_ratio",
        "gradient_lost_of_all_ratio", "unoptimized_ratio", "unregistered_ratio",
        "target_in_input_ratio", "batch_shift_ratio", "clip_late_ratio", "scaled_step_ratio", "output_deviation",
        "loader_restarted", "loss_terms_unscaled", "random_numbers_repeated",
        "clip_value", "compared_mean", "compared_deviation", "closure_passes",
        "samples_mixed_ratio", "wanted_deviation", "gradients_thrown_ratio", "target_unreachable_ratio",
        "logits_scrambled_ratio", "overlap_of_logits_ratio", "class_weight_ratio", "input_span_ratio",
        "derivative_zero_ratio", "dropout_in_evaluation",
        "target_rms", "target_size_ratio", "output_spread_ratio",
        "attention_row_weight", "attention_row_weight_max", "attention_row_weight_min",
        *(s.name for s in CATALOGUE
          if s.tap in ("loop", "adapter", "quantiser", "sharpness", "jacobian", "codebook", "skip")),
        *(s.name for s in (*policy.SIGNALS, *ranks.SIGNALS)),
    }  # fmt: skip


def test_the_router_is_read_whatever_it_returns(attach):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2)
    model = transformers.MixtralForCausalLM(config)
    name, gate = next((n, m) for n, m in model.named_modules() if n.endswith(("gate", "router")))
    inputs = []
    gate.register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach().flatten(0, -2)))
    weight = gate.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    data = torch.randint(64, (2, 12))
    model(input_ids=data, labels=data).loss.backward()
    optimizer.step()
    log = attach.finish()
    n, entropy, squares, violation = router(inputs[0] @ weight.T, 2).tolist()
    assert log.series("router_entropy", name)[1].tolist() == pytest.approx([entropy / n], rel=1e-4)
    assert log.series("router_z", name)[1].tolist() == pytest.approx([squares / n], rel=1e-4)
    assert log.series("router_max_violation", name)[1].tolist() == pytest.approx([violation], abs=1e-5)


MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "torch": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2),
    "demo": lambda: GPT(DemoConfig(width=32, layers=2, heads=2, context=16)),
}
WRITERS = {
    "llama": {"self_attn.o_proj", "mlp.down_proj"},
    "gpt2": {"attn.c_proj", "mlp.c_proj"},
    "bert": {"attention.output.dense", "output.dense"},
    "torch": {"linear2"},
    "demo": {"attn.proj", "mlp.2"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_residual_writers_and_blocks_of_known_models(name):
    chosen = select_modules(MODELS[name]())
    writers = [c.name for c in chosen if c.role.writer]
    assert len(writers) == 2 * len(WRITERS[name])
    assert all(any(w.endswith(f".{i}.{ending}") for w in writers) for i in (0, 1) for ending in WRITERS[name])
    assert sum(c.role.residual for c in chosen) == 2
    assert not any(c.role.top_k for c in chosen)


def test_what_cannot_be_measured_is_said_and_is_no_dispatcher(attach):
    torch.manual_seed(0)
    model = MODELS["torch"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer)
    for _ in range(9):
        model(torch.randn(2, 5, 32)).sum().backward()
        optimizer.step()
    report = watch.coverage()
    assert [(e["tap"], e["site"]) for e in report["unmeasured"]] == [
        ("nonlinearity", ""),
        ("writer", "layers.0.self_attn.out_proj"),
        ("writer", "layers.1.self_attn.out_proj"),
        ("logits", ""),
        ("attention_bracket", "layers.0.self_attn"),
        ("attention_bracket", "layers.1.self_attn"),
    ]
    assert not any(e["tap"] == "writer" for e in report["missing"])


def test_samples_that_teach_nothing_are_counted(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    logits = model(torch.randn(5, 4)) * 0 + torch.tensor(
        [[0.0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 0], [200, 0, 0]]
    )
    F.cross_entropy(logits, torch.tensor([0, 0, 0, -100, 0])).backward()
    optimizer.step()
    log = attach.finish()
    assert log.series("softmax_collapse_ratio")[1].tolist() == [0.5], "two of the four that count"
    assert log.series("output_logit_max")[1].tolist() == [200.0]
    entropy = 2 * math.log(3) / 5
    assert log.series("output_entropy")[1].tolist() == pytest.approx([entropy], rel=1e-5)


def padded(attach, said):
    """The token similarity of a layer of a padded batch, and the definition without the padding."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, num_key_value_heads=4, attn_implementation="sdpa")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer)
    ids, mask = torch.randint(1, 64, (3, 16)), torch.ones(3, 16, dtype=torch.long)
    for b, real in enumerate((16, 9, 5)):
        ids[b, real:], mask[b, real:] = 0, 0
    outputs = []
    model.model.layers[0].register_forward_hook(lambda m, a, out: outputs.append(first_tensor(out).detach()))
    gradients = writer_calls("model.layers.0.mlp.down_proj")(model)
    labels = ids.masked_fill(mask == 0, -100)
    for _ in range(PHASES):
        if said:
            watch.token_groups(text=mask == 1)
        model(ids, labels=labels, **({} if said else {"attention_mask": mask})).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    (step,), (similarity,) = log.series("token_similarity", "model.layers.0")
    (turn,), (share,) = log.series("mean_mode_energy_ratio", "model.layers.0.mlp.down_proj")
    groups = (mask == 1)[None]
    parts = naive_tokens(outputs[step], groups)
    _, mean, centred, *_ = mean_mode(*gradients[turn], groups).tolist()
    return (similarity, share), ((parts[1] / parts[0]).item(), mean / (mean + centred))


@pytest.mark.parametrize("said", [False, True])
def test_padding_is_averaged_apart(attach, said):
    found, true = padded(attach, said)
    assert found == pytest.approx(true, rel=1e-4)


def test_a_wrong_mask_is_said_and_stops_nothing(attach):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    watch.token_groups(text=torch.ones(4))
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    (error,) = [e for e in attach.finish().events if e.kind == "error"]
    assert "`text` must be a tensor of shape (batch, tokens)" in error.data["message"]


def test_attention_is_that_of_its_weights(attach):
    calls = []

    def look(model):
        attn = model.blocks[0].attn
        attn.qkv.register_forward_hook(lambda m, args, out: calls.append(out.detach().clone()))

    gpt(PHASES, attach, calls=look)
    log = attach.finish()
    (step,), (mean,) = log.series("attention_entropy", "blocks.0.attn")
    q, k, _ = (y.view(3, 16, 2, -1).transpose(1, 2).double() for y in calls[step].chunk(3, dim=-1))
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~torch.ones(16, 16).tril().bool(), -torch.inf)
    entropy = torch.special.entr(scores.softmax(-1)).sum(-1)
    assert mean == pytest.approx(entropy.mean().item(), rel=1e-5)
    heads = entropy.mean(dim=(0, 2))
    assert log.series("attention_entropy_min", "blocks.0.attn")[1].tolist() == pytest.approx([heads.min().item()])
    assert log.series("attention_entropy_head", "blocks.0.attn")[1].tolist() == [heads.argmin().item()]
    lets_through = contraction(q, k, None, True, None).mean().item()
    assert log.series("attention_contraction", "blocks.0.attn")[1].tolist() == pytest.approx([lets_through], rel=0.02)


def test_attention_between_other_tokens_has_no_contraction_and_says_so(attach):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x[:, :3], x[:, :3], need_weights=False)[0]

    model = Cross()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, every_step=True)
    for _ in range(PHASES):
        model(torch.randn(2, 6, 8)).square().mean().backward()
        optimizer.step()
    coverage = watch.coverage()
    log = attach.finish()
    assert not len(log.series("attention_contraction", "attn")[0])
    assert "queries and keys are not the same tokens" in str(coverage)


def test_weights_too_are_judged_by_narrower_formats(attach):
    torch.manual_seed(0)
    model = nn.Linear(32, 8, bias=False)
    with torch.no_grad():
        model.weight[:4] = 0.0
        model.weight[4, :16] = 1e-9
        model.weight[5, 0] = 1e5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    for _ in range(PHASES):
        model(torch.randn(2, 32)).square().mean().backward()
        optimizer.step()
    log = attach.finish()
    (layer,) = {key.layer for key in log.keys if key.signal == "weight_zero_ratio"}
    assert log.series("weight_zero_ratio", layer)[1].tolist() == [0.5]
    assert log.series("weight_fp16_lost_ratio", layer)[1].tolist() == [16 / 256]
    assert log.series("weight_fp16_saturated_ratio", layer)[1].tolist() == [1 / 256]


FORMATS = (
    "fp8_e4m3", "fp8_e5m2", "int8", "mxfp4", "nvfp4", "hif4", "fp4_ue5m3", "mxfp4_rotated", "nvfp4_rotated",
    "nvfp4_unscaled",
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "tolerance"), [((68, 120), 2e-3), ((240, 768), 0.05), pytest.param((40, 5000), 0.05, id="long rows")]
)
def test_format_errors_are_exact_of_small_tensors_and_close_of_large_ones(size, tolerance, attach):
    """Of rows of different sizes. Measured: 1.3 % at most of large ones."""
    draw = torch.Generator().manual_seed(4)
    weight = torch.randn(size, generator=draw) * torch.linspace(1, 4, size[0])[:, None]
    model = nn.Linear(size[1], size[0], bias=False)
    model.weight.data = weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    for _ in range(PHASES):
        model(torch.randn(2, size[1], generator=draw)).sum().backward()
        optimizer.step()
    log = attach.finish()
    _, squares, *errors = naive_rounding(weight).tolist()
    (layer,) = {key.layer for key in log.keys if key.signal == "weight_mxfp4_error_ratio"}
    for name, error in zip(FORMATS, errors[: len(FORMATS)], strict=True):
        found = log.series(f"weight_{name}_error_ratio", layer)[1]
        assert found.tolist() == pytest.approx([(error / squares) ** 0.5] * len(found), rel=tolerance) and len(found)
        if not name.endswith(("_rotated", "_unscaled")):
            decibels = log.series(f"weight_{name}_snr_db", layer)[1]
            assert decibels.tolist() == pytest.approx([-20 * math.log10(e) for e in found.tolist()])


def test_a_sample_of_rows_keeps_step_with_no_structure():
    places = spread(torch.arange(32 * 1024)[:, None], 64).flatten()
    assert len(places.unique()) == 64
    assert (places % 1024 == 0).float().mean() < 0.05, "not the first token of every sequence"
    assert len((places // 1024).unique()) == 32, "of every sequence"
    weight = torch.ones(4096, 1024)
    weight[::64] = 0.0
    assert (some_rows(weight) == 0).float().mean() < 0.1
    weight = torch.ones(4096, 4096)
    weight[::64] = 0.0
    assert (some_rows(weight) == 0).float().mean().item() == pytest.approx(1 / 64, rel=0.3)
    few = torch.randn(5, 3)
    assert spread(few, 5) is few


@pytest.mark.parametrize("size", [(), (7,), (3, 5), (3, 1_000_000), (5_000_000,), (100, 4096), (2, 300_001), (9000, 9)])
@pytest.mark.parametrize("most", [ELEMENTS, ROUNDED])
def test_a_sample_of_a_weight_is_small_and_holds_whole_blocks(most, size):
    x = torch.arange(math.prod(size), dtype=torch.float64).reshape(size)
    rows = some_rows(x, most)
    assert min(x.numel(), most * 0.9) <= rows.numel() <= most
    assert len(rows.unique()) == rows.numel()
    length = size[-1] if size else 1
    if rows.shape[1] < length:
        assert rows.shape[1] == 64 and (rows[:, 0] % length % 64 == 0).all()
    assert (rows - rows[:, :1] == torch.arange(rows.shape[1])).all()


def test_a_fused_optimizer_shows_its_gradients_without_the_loss_scale(attach):
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        attach(model, optimizer)
        for _ in range(PHASES):
            loss = 1e-5 * F.cross_entropy(model(1e-3 * torch.randn(8, 16)), torch.randint(4, (8,)))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        log = attach.finish()
        signals = ("gradient_fp16_lost_ratio", "gradient_exponent_spread", "gradient_exponent_mean")
        found.append({k: log.series(k.signal, k.layer)[1].tolist() for k in log.keys if k.signal in signals})
    assert any(key.signal == "gradient_fp16_lost_ratio" and values[0] > 0.1 for key, values in found[0].items())
    assert found[0].keys() == found[1].keys()
    for key, values in found[0].items():
        assert found[1][key] == pytest.approx(values, rel=1e-5), key


@pytest.mark.parametrize("named", [False, True])
def test_gradients_that_a_closure_computes_are_seen_after_the_step(attach, named):
    torch.manual_seed(0)
    model, norms = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watch = attach(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(6, 8)), torch.randint(3, (6,)))
        loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        return loss

    for _ in range(PHASES + 2):
        optimizer.step(closure=closure) if named else optimizer.step(closure)
    reasons = {e["reason"] for e in watch.coverage()["unmeasured"] if e["tap"] == "radial"}
    log = attach.finish()
    assert log.series("gradient_norm")[1].tolist() == pytest.approx(norms, rel=1e-5)
    assert reasons == {"the optimizer computes gradients inside its step (a closure)"}
    measured = {key.signal for key in log.keys if len(log.series(key.signal, key.layer)[0])}
    assert {"update_to_weight_ratio", "weight_rms", "update_weight_cosine", "weight_zero_ratio"} <= measured
    assert not measured & {"gradient_fp16_lost_ratio", "gradient_exponent_spread", "gradient_weight_cosine"}


def test_the_softmax_of_a_probe_is_not_taken_for_the_models(attach):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=False)[0]

    model = Own()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(PHASES):
        model(torch.randn(2, 6, 8)).square().mean().backward()
        optimizer.step()
    told = [entry["reason"] for entry in watch.coverage()["unmeasured"]]
    log = attach.finish()
    assert OWN_SCORES not in told
    assert log.series("attention_logit_max", "attn")[1].max() < 10, "weights that sum to 1 are no logits"
    assert len(log.series("attention_contraction", "attn")[0]) and len(log.series("attention_sink_ratio", "attn")[0])

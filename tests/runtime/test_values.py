"""The numbers in the log are the numbers of the training, computed apart in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.kernels.attention_scores.naive import largest_logit
from stabwatch.signals import CATALOGUE

OF_A_MICRO_BATCH = (
    "attention_entropy_min", "attention_entropy_head", "attention_contraction", "target_common_ratio",
)  # fmt: skip
CONFIG = DemoConfig(width=32, layers=2, heads=4, context=24)


def _model_and_batch(seed=0):
    torch.manual_seed(seed)
    return GPT(CONFIG), torch.randint(0, 256, (6, 25))


def test_every_signal_of_one_step_against_float64(attach):
    model, data = _model_and_batch()
    seen = {}
    hooks = [
        m.register_forward_hook(lambda m, a, out, n=n: seen.__setitem__(n, out.detach().double()))
        for n, m in model.named_modules()
    ]
    qkv = {}
    for i, block in enumerate(model.blocks):
        block.attn.qkv.register_forward_hook(lambda m, a, out, i=i: qkv.__setitem__(i, out.detach().double()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    logits = model(data[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())
    loss.backward()
    raw = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    grads = {n: p.grad.double().clone() for n, p in model.named_parameters()}
    optimizer.step()
    log = attach.finish()
    for h in hooks:
        h.remove()

    def got(signal, layer=""):
        steps, values = log.series(signal, layer)
        assert list(steps) == [0], (signal, layer)
        return values[0]

    assert got("loss") == pytest.approx(loss.item(), rel=1e-6)
    assert got("gradient_norm_before_clip") == pytest.approx(raw, rel=1e-5)
    assert got("gradient_norm") == pytest.approx(0.5, rel=1e-4)
    lse = torch.logsumexp(logits.double(), dim=-1)
    assert got("output_logit_logsumexp") == pytest.approx(lse.mean().item(), rel=1e-5)
    assert got("output_logit_z") == pytest.approx(lse.square().mean().item(), rel=1e-5)
    for name in ("tokens", "blocks.0", "blocks.0.attn", "blocks.1.mlp", "norm", "head"):
        assert got("output_rms", name) == pytest.approx(seen[name].square().mean().sqrt().item(), rel=1e-5)
        assert got("activation_abs_max", name) == pytest.approx(seen[name].abs().max().item(), rel=1e-6)
    for layer in ("blocks.0.attn", "blocks.1.mlp"):
        mine = [n for n in before if n.startswith(layer + ".")]
        size = sum(before[n].numel() for n in mine)
        sumsq = sum(before[n].square().sum() for n in mine)
        gradient = math.sqrt(sum(grads[n].square().sum() for n in mine))
        after = dict(model.named_parameters())
        update = math.sqrt(sum((after[n].detach().double() - before[n]).square().sum() for n in mine))
        assert got("layer_gradient_norm", layer) == pytest.approx(gradient, rel=1e-5)
        assert got("gradient_rms", layer) == pytest.approx(gradient / math.sqrt(size), rel=1e-5)
        assert got("weight_rms", layer) == pytest.approx(math.sqrt(sumsq / size), rel=1e-5)
        assert got("update_rms", layer) == pytest.approx(update / math.sqrt(size), rel=1e-3)
        assert got("update_to_weight_ratio", layer) == pytest.approx(update / math.sqrt(sumsq), rel=1e-3)
    for i in range(CONFIG.layers):
        q, k, _ = (y.view(6, 24, 4, -1).transpose(1, 2) for y in qkv[i].chunk(3, dim=-1))
        truth = largest_logit(q, k, None, True, None)
        name = f"blocks.{i}.attn"
        assert got("attention_logit_max", name) == pytest.approx(truth[2].item(), rel=1e-5)
        assert got("attention_logit_head", name) == truth[3].item()
        assert got("attention_logit_lower", name) <= truth[2].item() * (1 + 1e-6)
        assert got("attention_logit_upper", name) >= truth[2].item() * (1 - 1e-6)
        assert got("attention_logit_upper", name) - got("attention_logit_lower", name) <= math.log(24) + 1e-5


def test_micro_batches_merge_into_the_whole_batch(attach):
    """Two halves accumulated give the values of the whole: the merge law, through the real taps."""
    logs = []
    for parts in (1, 2, 3):
        model, data = _model_and_batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        for _ in range(2):
            for part in data.chunk(parts):
                loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
                (loss / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        logs.append(attach.finish())
    whole = logs[0]
    assert [len(log.steps) for log in logs] == [2, 2, 2]
    for log in logs[1:]:
        for key in whole.keys:
            tap = CATALOGUE[key.signal].tap
            if tap in ("host", "residual", "writer") or key.signal in OF_A_MICRO_BATCH:
                continue  # clocks; tokens drawn, gradients split, heads and targets ordered within each micro-batch
            if CATALOGUE[key.signal].reduction == "attention_sink":
                continue  # of the first samples of each micro-batch
            mine, theirs = whole.series(key.signal, key.layer)[1], log.series(key.signal, key.layer)[1]
            np.testing.assert_allclose(theirs, mine, rtol=2e-4, atol=1e-6, err_msg=str(key))


def test_non_finite_numbers_are_counted_where_they_are(attach):
    model, data = _model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    with torch.no_grad():
        model.blocks[1].mlp[2].bias[3] = math.nan
    outputs = []
    model.blocks[1].mlp.register_forward_hook(lambda m, a, out: outputs.append(out.detach().double()))
    loss = F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    log = attach.finish()
    finite_rms = outputs[0][torch.isfinite(outputs[0])].square().mean().sqrt().item()
    assert log.series("activation_nonfinite_total", "blocks.0")[1].sum() == 0
    assert log.series("activation_nonfinite_total", "blocks.1.mlp")[1].sum() == 6 * 24
    assert log.series("loss_nonfinite_total")[1].sum() == 1
    assert log.series("output_logit_nonfinite_total")[1].sum() == 6 * 24
    assert log.series("weight_nonfinite_total", "blocks.1.mlp")[1].sum() == 1
    assert log.series("gradient_nonfinite_total", "blocks.0.attn")[1].sum() > 0
    assert np.isnan(log.series("loss")[1]).all() and len(log.series("loss")[1]) == 1
    rms = log.series("output_rms", "blocks.1.mlp")[1][0]
    assert rms == pytest.approx(finite_rms, rel=1e-5), "over the elements that are finite, and only those"


@pytest.mark.parametrize("source", ["cross_entropy", "loss_fn", "output", "backward", "log"])
def test_the_loss_is_found_wherever_it_is_computed(source, attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"loss": (self.inner(x) ** 2).mean()}

    criterion = nn.MSELoss()
    watched = WithLoss() if source == "output" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = attach(watched, optimizer, loss_fn=criterion if source == "loss_fn" else None)
    truth = []
    for _ in range(3):
        x = torch.randn(5, 4)
        if source == "cross_entropy":
            loss = nn.CrossEntropyLoss()(model(x), torch.tensor([0, 1, 2, 0, 1]))
        elif source == "loss_fn":
            loss = criterion(model(x), torch.ones(5, 3))
        elif source == "output":
            loss = watched(x)["loss"]
        else:
            loss = model(x).abs().mean()
        if source == "log":
            watch.log(loss=loss, accuracy=0.5)
        truth.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    assert log.series("loss")[1] == pytest.approx(truth, rel=1e-6)
    if source == "log":
        assert list(log.series("logged_value", "accuracy")[1]) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_with_and_without_its_weights(need_weights, attach):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    x = torch.randn(3, 7, 16)
    q, k, _ = F.linear(x, model.attention.in_proj_weight, model.attention.in_proj_bias).detach().chunk(3, dim=-1)
    truth = largest_logit(*(y.view(3, 7, 4, 4).transpose(1, 2) for y in (q, k)), None, False, None)
    model(x).square().mean().backward()
    optimizer.step()
    log = attach.finish()
    assert log.series("attention_logit_max", "attention")[1] == pytest.approx([truth[2].item()], rel=1e-5)
    assert log.series("attention_logit_head", "attention")[1] == [truth[3].item()]
    assert len(log.series("attention_logit_lower", "attention")[1]) == (0 if need_weights else 1)


def test_a_bracket_that_holds_the_limit_asks_for_the_exact_value(attach):
    model, data = _model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = attach(model, optimizer, attention_limit=3.0)  # between the ends of the first layer's bracket
    loss = F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    log = attach.finish()
    ends = [log.series(f"attention_logit_{end}", "blocks.0.attn")[1][0] for end in ("lower", "upper")]
    assert ends[0] < 3.0 < ends[1]
    assert watch._session._pace.governor._asked_deep


def test_complex_parameters_count_with_both_their_parts(attach):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Parameter(0.1 * torch.randn(8, 4, dtype=torch.complex64))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head((torch.fft.fft(x) @ self.filter).abs())

    model = Spectral()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    norms, weights = [], []
    for _ in range(9):
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().mean().backward()
        norms.append(math.sqrt(sum(float(p.grad.abs().square().sum()) for p in model.parameters())))
        weights.append(float(torch.view_as_real(model.filter.detach()).square().mean().sqrt()))
        optimizer.step()
    log = attach.finish()
    assert log.series("gradient_norm")[1] == pytest.approx(norms, rel=1e-5)
    assert log.series("weight_rms", "")[1] == pytest.approx(weights, rel=1e-5)
    assert (log.series("update_to_weight_ratio", "")[1] > 0).all() and watch.coverage()["missing"] == []

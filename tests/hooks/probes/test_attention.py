"""Attention calls of every form, against the dense definition; and what is said of calls that show less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from stabwatch.hooks.backward import EVALUATING, NO_ROOT
from stabwatch.hooks.probes.attention import NO_GRADIENT, NOTHING_SAVED, OWN_SCORES, as_heads
from stabwatch.hooks.probes.writer import NO_GRADIENT as NO_WRITER_GRADIENT
from stabwatch.kernels.attention_scores import weight_statistics
from stabwatch.kernels.attention_scores.naive import scores
from stabwatch.kernels.attention_scores.weights import spread_of_scores
from stabwatch.runtime.coverage import ONE_CALL
from tests.models import GPT, DemoConfig

FORMS = {
    "one head": ((3, 6, 4), (3, 5, 4), (3, 6, 5)),
    "one head, one mask": ((3, 6, 4), (3, 5, 4), (6, 5)),
    "one head, mask of one sample": ((3, 6, 4), (3, 5, 4), (1, 6, 5)),
    "no samples": ((6, 4), (5, 4), (6, 5)),
    "usual": ((2, 3, 6, 4), (2, 3, 5, 4), (2, 1, 6, 5)),
    "mask of heads": ((2, 3, 6, 4), (2, 3, 5, 4), (3, 6, 5)),
    "keys of all samples": ((2, 3, 6, 4), (1, 3, 5, 4), (2, 1, 6, 5)),
    "keys of all heads": ((2, 3, 6, 4), (2, 1, 5, 4), None),
    "queries of all": ((1, 1, 6, 4), (2, 3, 5, 4), (2, 3, 6, 5)),
    "frames": ((2, 3, 2, 6, 4), (2, 3, 2, 5, 4), None),
    "frames, mask of each": ((2, 3, 2, 6, 4), (2, 3, 2, 5, 4), (2, 3, 2, 6, 5)),
    "frames, mask of frames": ((2, 3, 2, 6, 4), (2, 3, 2, 5, 4), (3, 1, 6, 5)),
    "frames, mask of samples": ((2, 3, 2, 6, 4), (2, 3, 2, 5, 4), (2, 1, 1, 6, 5)),
    "frames, mask of keys": ((2, 3, 2, 6, 4), (2, 3, 2, 5, 4), (1, 5)),
    "six axes": ((2, 2, 3, 2, 6, 4), (2, 1, 3, 2, 5, 4), (1, 2, 1, 1, 6, 5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_call_is_one_of_samples_and_heads(form):
    g = torch.Generator().manual_seed(0)
    query, key, hidden = FORMS[form]
    q, k = torch.randn(query, generator=g), torch.randn(key, generator=g)
    mask = None if hidden is None else torch.randn(hidden, generator=g)
    theirs = torch.matmul(q, k.mT) * q.shape[-1] ** -0.5 + (0 if mask is None else mask)
    ours = scores(*as_heads(q, k, mask), False, None)
    torch.testing.assert_close(ours.reshape(theirs.shape).float(), theirs)
    assert ours.shape[1] == (theirs.shape[-3] if len(query) > 3 else 1)


class Attention(nn.Module):
    """One head (B, T, D), or heads of each frame (B, frames, heads, T, D)."""

    def __init__(self, frames):
        super().__init__()
        self.q, self.k, self.frames = nn.Linear(8, 8), nn.Linear(8, 8), frames

    def forward(self, x, mask):
        q, k = self.q(x), self.k(x)
        if not self.frames:
            self.scores = scores(q[:, None], k[:, None], mask[:, None], False, None)
            return F.scaled_dot_product_attention(q, k, x, attn_mask=mask)
        q, k, v = (y.unflatten(0, (-1, 2)).unflatten(-1, (2, 4)).transpose(-3, -2) for y in (q, k, x))
        mask = mask.unflatten(0, (-1, 2))[:, :, None]
        self.scores = scores(q.flatten(0, 1), k.flatten(0, 1), mask.flatten(0, 1), False, None)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(-3, -2).flatten(-2).flatten(0, 1)


class Model(nn.Module):
    def __init__(self, frames):
        super().__init__()
        self.attention, self.head = Attention(frames), nn.Linear(8, 5)

    def forward(self, x, mask):
        return self.head(self.attention(x, mask))


def train(model, inputs, steps=9, call=None):
    call = model if call is None else call
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        loss = call(*inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def visible(batch, length):
    return (torch.rand(batch, length, length) < 0.7) | torch.eye(length, dtype=torch.bool)


@pytest.mark.parametrize("frames", [False, True], ids=["one head", "frames"])
def test_calls_without_an_axis_of_heads_and_with_more_axes(frames, attach):
    torch.manual_seed(0)
    model, inputs = Model(frames), (torch.randn(4, 10, 8), visible(4, 10))
    watch = attach(model)
    train(model, inputs)
    assert not watch._session.isolation.errors
    log = attach.finish()
    found = model.attention.scores
    entropy = torch.special.entr(found.softmax(-1)).sum(-1).mean().item()
    assert log.series("attention_logit_max", "attention")[1] == pytest.approx(found.max().item(), rel=1e-5)
    assert log.series("attention_entropy", "attention")[1][0] == pytest.approx(entropy, rel=1e-5)
    assert log.series("attention_contraction", "attention")[1].size


def test_a_compiled_call_of_five_axes(attach):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, inputs = Model(True), (torch.randn(4, 10, 8), visible(4, 10))
    watch = attach(model)
    train(model, inputs, call=torch.compile(model, backend="aot_eager"))
    assert not watch._session.isolation.errors
    log = attach.finish()
    model(*inputs)
    peak = model.attention.scores.max().item()
    assert log.series("attention_logit_max", "attention")[1] == pytest.approx(peak, rel=1e-5)
    assert log.series("attention_entropy", "attention")[1].size


class Block(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.norm, self.attn, self.weights = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True), weights
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=self.weights)[0]
        return x + self.mlp(x)


class Stack(nn.Module):
    def __init__(self, weights=False, reentrant=None):
        super().__init__()
        self.blocks, self.reentrant = nn.ModuleList(Block(weights) for _ in range(2)), reentrant
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def reasons(watch, part, tap):
    return {e["reason"] for e in watch.coverage()[part] if e["tap"] == tap}


X = (torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0)),)


def seen(attach, model, **settings):
    watch = attach(model)
    train(model, X, **settings)
    attach.finish()
    return watch


def test_a_model_that_computes_its_own_weights_is_said_to(attach):
    watch = seen(attach, Stack(weights=True))
    assert reasons(watch, "unmeasured", "attention_bracket") == {f"{OWN_SCORES}; the exact value is on cadence"}
    assert not reasons(watch, "missing", "attention_bracket")
    assert reasons(watch, "unmeasured", "attention_contraction") == {OWN_SCORES}
    assert not reasons(watch, "unmeasured", "attention_entropy")


def test_scores_that_a_model_computes_spread_as_those_of_a_fused_call(attach):
    logs = []
    for weights in (True, False):
        torch.manual_seed(3)
        model = Stack(weights=weights)
        attach(model)
        train(model, X, steps=16)
        logs.append(attach.finish())
    for signal in (
        "attention_entropy", "attention_entropy_min", "attention_sink_ratio", "attention_sink_heads_ratio",
        "attention_concentration_ratio", "attention_effective_keys_ratio",
    ):  # fmt: skip
        (layer, *_) = sorted({key.layer for key in logs[0].keys if key.signal == signal})
        own, fused = (log.series(signal, layer)[1] for log in logs)
        assert len(own) and own.tolist() == pytest.approx(fused.tolist(), rel=1e-4), signal


@pytest.mark.parametrize("weights", [True, False], ids=["its own", "fused"])
def test_the_largest_logit_is_measured_in_deep_steps_that_are_no_sampled_ones(weights, attach):
    model = Stack(weights=weights)
    flags = attach(model)._session.flags
    model.register_forward_pre_hook(lambda *_: setattr(flags, "sampled", False), prepend=True)
    train(model, X, steps=2)
    assert len(attach.finish().series("attention_logit_max", "blocks.0.attn")[0]) == 2


def test_masked_scores_of_a_model_are_not_seen_whatever_the_mask_adds():
    torch.manual_seed(0)
    logits, eye = torch.randn(2, 3, 6, 6), torch.eye(6).expand(2, 3, 6, 6)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    wanted = weight_statistics(logits, eye, ~hidden, False, 1.0).tolist()
    for mask in (-torch.inf, -1e9, torch.finfo(torch.float32).min):
        assert spread_of_scores(logits.masked_fill(hidden, mask)).tolist() == pytest.approx(wanted)


def test_a_compiled_module_whose_attention_is_one_call_is_said_to_be(attach):
    torch._dynamo.reset()
    model = Stack()
    watch = seen(attach, model, call=torch.compile(model, backend="aot_eager"))
    assert reasons(watch, "missing", "attention") == {ONE_CALL}


def test_frozen_layers_save_nothing(attach):
    model = Stack()
    model.blocks.requires_grad_(False)
    watch = seen(attach, model)
    assert reasons(watch, "unmeasured", "attention_bracket") == {f"{NO_GRADIENT}; the exact value is on cadence"}
    assert not reasons(watch, "missing", "attention_bracket")


def test_a_kernel_that_saves_nothing_is_said_to(attach):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        watch = seen(attach, Stack())
    assert reasons(watch, "unmeasured", "attention_bracket") == {f"{NOTHING_SAVED}; the exact value is on cadence"}
    assert not reasons(watch, "missing", "attention_bracket")


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_a_writer_adds_does_not_hide_that_its_gradient_is_unknown(attach):
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    ids = torch.randint(0, 64, (4, 16))
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=True)
    watch = attach(model)
    train(model, (ids,), steps=20)
    attach.finish()
    assert NO_WRITER_GRADIENT in reasons(watch, "unmeasured", "writer")
    assert reasons(watch, "unmeasured", "attention_bracket") == {f"{NO_GRADIENT}; the exact value is on cadence"}
    assert not reasons(watch, "missing", "attention_bracket")


def test_a_model_that_stays_in_evaluation_mode_is_said_to(attach):
    watch = seen(attach, Stack().eval())
    for tap in ("activation", "attention", "logits"):
        assert reasons(watch, "missing", tap) == {EVALUATING}, tap
    assert not reasons(watch, "missing", "loss"), "the backward pass shows it"


def test_a_model_whose_compiled_parts_are_called_and_never_itself_is_said_to(attach):
    torch._dynamo.reset()
    model = Stack()
    first = torch.compile(model.blocks[0], backend="eager")
    watch = seen(attach, model, call=lambda x: model.head.weight.sum() * first(x)[..., :5])
    for tap in ("activation", "attention", "logits"):
        assert reasons(watch, "missing", tap) == {NO_ROOT}, tap
    assert not reasons(watch, "missing", "loss"), "the backward pass shows it"

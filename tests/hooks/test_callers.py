"""Where a call of attention is booked, how it is written, and what is not taken for attention."""

from __future__ import annotations

import contextlib
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch import softmax as imported_softmax
from torch.utils.checkpoint import checkpoint

from stabwatch.hooks.probes.attention import PACKED
from stabwatch.runlog import read_run
from stabwatch.runtime.coverage import NO_ATTENTION, NOT_CALLED

WIDTH, HEADS, TOKENS = 16, 2, 6
SDPA = F.scaled_dot_product_attention
FORMS = {
    "F.softmax": lambda z: F.softmax(z, dim=-1),
    "F.softmax by position": lambda z: F.softmax(z, 3),
    "nn.Softmax": nn.Softmax(dim=-1),
    "torch.softmax": lambda z: torch.softmax(z, -1),
    "torch.softmax by name": lambda z: torch.softmax(input=z, dim=-1, dtype=torch.float32),
    "torch.special.softmax": lambda z: torch.special.softmax(z, -1),
    "Tensor.softmax": lambda z: z.softmax(-1),
    "Tensor.softmax by name": lambda z: z.softmax(dim=-1),
    "imported": lambda z: imported_softmax(z, -1),
}


class Mixer(nn.Module):
    """No word of its name or of its children's says that it is attention."""

    def __init__(self, soft, gain=1.0):
        super().__init__()
        self.entrada, self.salida = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.soft, self.gain, self.peaks = soft, gain, []

    def forward(self, x):
        q, k, v = self.entrada(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        z = self.gain * q @ k.mT / math.sqrt(q.shape[-1])
        self.peaks.append(
            (self.gain * q.detach().double() @ k.detach().double().mT / math.sqrt(q.shape[-1])).max().item()
        )
        return x + self.salida((self.soft(z) @ v).transpose(1, 2).flatten(2))


def train(model, optimizer=None, steps=4, inputs=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(steps):
        x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(step)) if inputs is None else inputs
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def peaks(log, layer):
    return log.series("attention_logit_max", layer)[1].tolist()


def watched(attach, model, steps=4, **settings):
    watch = attach(model, torch.optim.SGD(model.parameters(), lr=1e-3), every_step=True, **settings)
    train(model, steps=steps)
    log = attach.finish()
    assert not watch._session.isolation.errors
    return log, watch


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_of_the_softmax_is_seen_and_exact(form, attach):
    torch.manual_seed(0)
    model = nn.Sequential(Mixer(FORMS[form]), Mixer(FORMS[form], gain=9.0))
    log, _ = watched(attach, model)
    for i in range(2):
        assert peaks(log, str(i)) == pytest.approx(model[i].peaks, rel=1e-5)


class Kept(nn.Module):
    """Attention with a function that was kept before a watch was attached."""

    by_class = staticmethod(SDPA)

    def __init__(self, how):
        super().__init__()
        self.qkv, self.out, self.peaks = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), []
        self.function = {"attribute": SDPA, "partial": functools.partial(SDPA, dropout_p=0.0), "class": None}[how]

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        self.peaks.append((q.detach().double() @ k.detach().double().mT / math.sqrt(q.shape[-1])).max().item())
        attend = self.by_class if self.function is None else self.function
        return x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["attribute", "partial", "class"])
def test_a_function_that_the_model_keeps_is_seen_and_given_back(how, attach):
    model = nn.Sequential(Kept(how), Kept(how))
    before = [vars(m).get("function") for m in model], Kept.by_class
    log, _ = watched(attach, model)
    assert peaks(log, "1") == pytest.approx(model[1].peaks, rel=1e-5)
    assert ([vars(m).get("function") for m in model], Kept.by_class) == before


class Core(nn.Module):
    def forward(self, q, k, v):
        return F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v


class CoreWithChild(Core):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)


class Split(nn.Module):
    def __init__(self, core, gain=1.0):
        super().__init__()
        self.qkv, self.out, self.core, self.gain, self.peaks = (
            nn.Linear(WIDTH, 48),
            nn.Linear(WIDTH, WIDTH),
            core,
            gain,
            [],
        )

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q = q * self.gain
        self.peaks.append((q.detach().double() @ k.detach().double().mT / math.sqrt(q.shape[-1])).max().item())
        return x + self.out(self.core(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("core", [Core, CoreWithChild])
@pytest.mark.parametrize("shared", [False, True])
def test_a_core_without_parameters_is_booked_on_its_layer(core, shared, attach):
    one = core()
    model = nn.Sequential(*(Split(one if shared else core(), gain) for gain in (1.0, 10.0)))
    log, watch = watched(attach, model)
    places = ["0", "1"] if shared or core is Core else ["0.core", "1.core"]
    for place, layer in zip(places, model, strict=True):
        assert peaks(log, place) == pytest.approx(layer.peaks, rel=1e-5)
    assert not [e for e in watch.coverage()["missing"] if e["tap"].startswith("attention")]


class Nested(nn.Module):
    """Calls its inner layer in the middle of its own call, and fails in it now and then."""

    def __init__(self, inner, failing=False):
        super().__init__()
        self.inner, self.own, self.failing = inner, Split(Core()), failing
        self.qkv, self.peaks = nn.Linear(WIDTH, 48), []

    def forward(self, x):
        with contextlib.suppress(ValueError):
            x = self.inner(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        self.peaks.append((q.detach().double() @ k.detach().double().mT / math.sqrt(q.shape[-1])).max().item())
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x):
        self.deep(x)
        raise ValueError("the user's")


@pytest.mark.parametrize("inner", [lambda: Split(Core()), Failing])
def test_a_call_after_an_inner_call_is_booked_on_the_outer_module(inner, attach):
    model = nn.Sequential(Nested(inner()), nn.Linear(WIDTH, WIDTH))
    log, _ = watched(attach, model)
    assert peaks(log, "0") == pytest.approx(model[0].peaks, rel=1e-5)


def test_a_module_that_calls_itself(attach):
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.left = Split(Core()), nn.Linear(WIDTH, WIDTH)

        def forward(self, x, depth=2):
            return self.attend(x) if depth == 0 else self(self.left(x), depth - 1)

    model = nn.Sequential(Tree(), nn.Linear(WIDTH, WIDTH))
    log, _ = watched(attach, model)
    assert peaks(log, "0.attend") == pytest.approx(model[0].attend.peaks, rel=1e-5)


def test_after_an_exception_in_the_forward_the_next_step_is_right(attach):
    model = nn.Sequential(Split(Core()), Split(Core(), 9.0))
    attach(model, torch.optim.SGD(model.parameters(), lr=1e-3), every_step=True)
    train(model, steps=2)
    model[1].peaks.clear()
    for error in (ValueError, KeyboardInterrupt):
        handle = model[0].out.register_forward_hook(lambda *args, error=error: (_ for _ in ()).throw(error()))
        with pytest.raises(error):
            model(torch.randn(2, TOKENS, WIDTH))
        handle.remove()
        model[0].peaks.clear()
        train(model, steps=2)
    log = attach.finish()
    assert "softmax" not in vars(torch.Tensor)
    assert peaks(log, "1")[2:] == pytest.approx(model[1].peaks, rel=1e-5)


class Vocabulary(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.back = nn.Linear(WIDTH, 11), nn.Linear(11, WIDTH)

    def forward(self, x):
        return x + self.back(F.softmax(self.head(x), dim=-1))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        weights = torch.softmax(self.gate(x), -1)
        return x + torch.einsum("bte,bted->btd", weights, torch.stack([e(x) for e in self.experts], dim=2))


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres, self.norm = nn.Parameter(torch.randn(1, WIDTH, 5)), nn.Sequential(nn.LayerNorm(WIDTH))

    def forward(self, x):
        weights = (self.norm(x) @ self.centres).softmax(-1)
        return x + weights @ self.centres.mT


class OverTokens(nn.Module):
    """A softmax over another axis than the last."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return x * torch.softmax(self.score(x) @ x.mT, dim=1).sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", [Vocabulary, Gated, Prototypes, OverTokens])
def test_another_softmax_is_not_taken_for_attention(kind, attach):
    log, watch = watched(attach, nn.Sequential(kind(), kind()))
    assert not [k for k in log.keys if k.signal == "attention_logit_max" and log.series(k.signal, k.layer)[1].size]
    assert not [
        e for part in ("missing", "unmeasured") for e in watch.coverage()[part] if e["tap"].startswith("attention")
    ]


def test_attention_that_calls_no_softmax_is_told_with_a_true_reason(attach):
    model = nn.Sequential(
        *(Split(lambda q, k, v: (w := (q @ k.mT).exp()) / w.sum(-1, keepdim=True) @ v) for _ in range(2))
    )
    log, watch = watched(attach, model, steps=10)
    assert not log.series("attention_logit_max", "0")[1].size
    told = [e for e in watch.coverage()["missing"] if e["tap"] == "attention"]
    assert [(e["site"], e["reason"]) for e in told] == [("0", NO_ATTENTION), ("1", NO_ATTENTION)]


class SharedAttention(Mixer):
    """The attention of two blocks."""


class Sharing(nn.Module):
    """Its attention is that of another block too."""

    def __init__(self, attn):
        super().__init__()
        self.attn, self.mlp = attn, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.mlp(self.attn(x))


@pytest.mark.parametrize("form", ["Tensor.softmax", "none"])
def test_attention_that_blocks_share_is_seen_at_the_blocks_or_told(form, attach):
    soft = FORMS.get(form, torch.sigmoid)
    shared = [SharedAttention(soft), SharedAttention(soft)]
    log, watch = watched(attach, nn.Sequential(*(Sharing(shared[i // 2]) for i in range(4))), steps=10)
    assert [bool(len(peaks(log, f"{i}"))) for i in range(4)] == [form != "none"] * 4
    told = [e["site"] for e in watch.coverage()["missing"] if e["tap"] == "attention"]
    assert told == ([] if form != "none" else ["0.attn", "2.attn"])


class PartsAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = AttentionInput(), AttentionInput()

    def forward(self, x):
        return (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ x


class AttentionInput(nn.Module):
    """Called attention, and a part of it."""

    def __init__(self):
        super().__init__()
        self.norm, self.projection = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.projection(self.norm(x))


def of_attention(watch):
    return {e["site"]: e["reason"] for e in watch.coverage()["missing"] if e["tap"] == "attention"}


def test_a_part_of_attention_that_is_seen_misses_nothing(attach):
    log, watch = watched(attach, nn.Sequential(PartsAttention(), PartsAttention()), steps=10)
    assert log.series("attention_logit_max", "0")[1].size
    assert of_attention(watch) == {}


def test_attention_that_is_never_called_is_said_to_be_that(attach):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = Split(Core()), Split(Core())

        def forward(self, x):
            return self.used(x)

    log, watch = watched(attach, nn.Sequential(Beside(), Beside()), steps=10)
    assert log.series("attention_logit_max", "0.used")[1].size
    assert of_attention(watch) == {"0.spare": NOT_CALLED, "1.spare": NOT_CALLED}


@pytest.mark.parametrize("named", ["Attention", "Mixer"])
def test_keys_in_the_last_dimension_but_one(named, attach):
    """A softmax over that dimension counts where the module looks like attention."""

    def forward(self, x):
        scores = self.key(x) @ self.query(x).mT
        self.peak = scores.max().item()
        return scores.softmax(-2).mT @ x

    def prepare(self):
        nn.Module.__init__(self)
        first, second = ("query", "key") if named == "Attention" else ("one", "other")
        setattr(self, first, nn.Linear(WIDTH, WIDTH))
        setattr(self, second, nn.Linear(WIDTH, WIDTH))
        if named != "Attention":
            vars(self).update(query=self.one, key=self.other)

    kind = type(named, (nn.Module,), {"__init__": prepare, "forward": forward})
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), kind())
    log, _ = watched(attach, model)
    found = log.series("attention_logit_max", "1")[1]
    assert found.size == 0 if named != "Attention" else found[-1] == pytest.approx(model[1].peak, rel=1e-5)


def test_frozen_attention_is_known_by_what_it_looks_like(attach):
    model = nn.Sequential(Split(Core()).requires_grad_(False), nn.Linear(WIDTH, WIDTH))
    log, _ = watched(attach, model)
    assert peaks(log, "0") == pytest.approx(model[0].peaks, rel=1e-5)


@pytest.mark.parametrize("attend", [SDPA, Core()], ids=["sdpa", "softmax"])
def test_a_checkpoint_is_not_computed_again_for_us(attend, attach):
    calls = []

    class Block(Split):
        def forward(self, x):
            calls.append(1)
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            functions = attend if isinstance(attend, nn.Module) else (lambda *a: F.scaled_dot_product_attention(*a))
            self.blocks = nn.ModuleList(Block(functions) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    model = Model()
    log, watch = watched(attach, model, steps=10)
    assert len(calls) == 10 * 2 * 2
    assert peaks(log, "blocks.1") == pytest.approx(model.blocks[1].peaks[::2], rel=1e-5)
    if attend is SDPA:
        assert PACKED in " ".join(e["reason"] for e in watch.coverage()["unmeasured"])


def test_one_watch_per_model(attach):
    model = nn.Sequential(Split(Core()), nn.Linear(WIDTH, WIDTH))
    other = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    apart, first = attach(other, torch.optim.SGD(other.parameters(), lr=0.1)), attach(model)
    train(model, steps=2)
    second = attach(model)
    train(model, steps=2)
    assert (first._session.state, second._session.state, apart._session.state) == ("detached", "watching", "watching")
    first.detach()
    train(model, steps=2)
    second.detach()
    train(model, steps=1)
    train(other, steps=3)
    apart.detach()
    assert F.scaled_dot_product_attention is SDPA and not any(m._forward_hooks for m in model.modules())
    logs = [read_run(watch.run_dir) for watch in (apart, first, second)]
    assert [len(log.steps) for log in logs] == [3, 2, 4]
    assert [log.events[-1].data["reason"] for log in logs] == ["finished", "replaced", "finished"]


def test_an_empty_batch_is_measured_as_absent(attach):
    model = nn.Sequential(Split(Core()), Kept("attribute"), Mixer(FORMS["Tensor.softmax"]), nn.GELU())
    for block in model[:3]:
        block.peaks = type("Nothing", (), {"append": lambda self, x: None})()
    for block in (model[0], model[1], model[2]):
        block.forward = functools.partial(_forward_of_any_batch, block)
    watch = attach(model, every_step=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for rows in (2, 0, 2, 0, 0, 0, 0, 2):
        model(torch.randn(rows, TOKENS, WIDTH)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not watch._session.isolation.errors
    log = attach.finish()
    for layer in "012":
        assert log.series("attention_logit_max", layer)[0].tolist() == [0, 2, 7]


def _forward_of_any_batch(block, x):
    names = {"qkv", "entrada"} & set(block._modules)
    q, k, v = getattr(block, names.pop())(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    if isinstance(block, Split):
        return x + block.core(q, k, v).transpose(1, 2).flatten(2)
    if isinstance(block, Kept):
        return x + block.function(q, k, v).transpose(1, 2).flatten(2)
    return x + (block.soft(q @ k.mT) @ v).transpose(1, 2).flatten(2)

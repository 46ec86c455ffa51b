"""Each reason why something is not measured: a model of which it is true, and one of which it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.distributed.ranks import Ranks
from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.probes import loops
from stabwatch.hooks.probes.activation import NO_ELEMENTS, NO_TENSOR, OUTSIDE, TRANSFORMED
from stabwatch.hooks.probes.attention import IN_TRANSFORM, OTHER_SOFTMAX, OTHER_TOKENS
from stabwatch.hooks.probes.drift import COLLECTIVE
from stabwatch.hooks.probes.experts import CALL, MANY, NO_CAPACITY
from stabwatch.hooks.probes.layers import NOT_KEPT
from stabwatch.hooks.probes.nonlinearity import IN_PLACE, OWN_CLASS
from stabwatch.hooks.probes.taylor import NO_SOFTMAX
from stabwatch.hooks.probes.weights import CLOSURE
from stabwatch.hooks.probes.writer import NO_TOKENS, NO_TRUNK
from stabwatch.runlog import read_run
from stabwatch.runtime.coverage import (
    COMPILED,
    DIRECT,
    EMPTY,
    FROZEN,
    GRAPH,
    HOLDER,
    IDLE,
    MHA,
    NO_ATTENTION,
    NO_CLASSES,
    NO_GRADIENT,
    NO_LOGITS,
    NO_LOSS,
    NO_SATURATION,
    NO_SAVED,
    NOT_CALLED,
    ONLY_ROOT,
    SCRIPTED,
)
from stabwatch.runtime.model_changes import AT_ONCE, TOO_OFTEN
from stabwatch.runtime.pipeline_events import STAGES_APART
from stabwatch.runtime.ranks import FORMED_LATER
from tests.sampling import sample

WIDTH = 8
TOKENS = (4, 6, WIDTH)


@dataclass
class Trial:
    """What is trained, and how.

    each: called before every step. settings: of `attach`. tracked: a batch to track. closure: gradients are computed
    inside of the step. stepped: by an optimizer, which is given.
    """

    model: nn.Module
    shape: tuple[int, ...] = TOKENS
    steps: int = 9
    call: Callable[[torch.Tensor], torch.Tensor] | None = None
    each: Callable[[], object] = lambda: None
    backward: Callable[[torch.Tensor], object] = lambda loss: loss.backward()
    loss: Callable[[torch.Tensor], torch.Tensor] = lambda out: out.square().mean()
    settings: dict[str, Any] = field(default_factory=dict)
    tracked: torch.Tensor | None = None
    closure: bool = False
    stepped: bool = True

    def reasons(self, attach: Any) -> set[str]:
        """All reasons in the report."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3) if self.stepped else None
        watch = attach(self.model, optimizer, **self.settings)
        call = self.model if self.call is None else self.call
        if self.tracked is not None:
            watch.probe(self.tracked)

        def gradients() -> None:
            self.model.zero_grad()
            self.backward(self.loss(call(torch.randn(self.shape))))

        for _ in range(self.steps):
            self.each()
            if optimizer is not None and self.closure:
                optimizer.step(gradients)
            else:
                gradients()
                if optimizer is not None:
                    optimizer.step()
        attach.finish()
        assert not watch._session.isolation.errors
        return {entry["reason"] for part in ("missing", "unmeasured", "notes") for entry in watch.coverage()[part]}


class Residual(nn.Module):
    """x + branch(x). named: it is called with its tensor by name."""

    def __init__(self, activation: nn.Module, named: bool = False) -> None:
        super().__init__()
        self.norm, self.named = nn.LayerNorm(WIDTH), named
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), activation, nn.Linear(16, WIDTH))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Stack(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], named: bool = False) -> None:
        super().__init__()
        self.blocks, self.named = nn.ModuleList(make() for _ in range(2)), named

    def forward(self, x):
        for block in self.blocks:
            x = block(x=x) if self.named else block(x)
        return x


def residual(activation: Callable[[], nn.Module] = nn.GELU, named: bool = False) -> nn.Module:
    return Stack(lambda: Residual(activation()), named)


class Attention(nn.Module):
    """torch's own module, or the function."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.norm, self.own = nn.LayerNorm(WIDTH), own
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if own else None
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.norm(x)
        if self.own:
            return x + self.attn(y, y, y, need_weights=False)[0]
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mixture(nn.Module):
    """A mixture of experts that lie in one module. plain: experts get tokens, and their own numbers by position."""

    def __init__(
        self, experts: int = 4, capacity: float | None = 1.25, stacked: bool = False, plain: bool = True
    ) -> None:
        super().__init__()
        self.gate, self.top_k, self.plain = nn.Linear(WIDTH, experts, bias=False), 1, plain
        if capacity is not None:
            self.capacity_factor = capacity
        self.experts = Stacked(experts) if stacked else nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(experts))

    def forward(self, x):
        tokens = x.flatten(0, 1)
        weight, chosen = self.gate(tokens).softmax(-1).topk(1)
        if isinstance(self.experts, Stacked):
            inputs = tokens if self.plain else tokens.unsqueeze(1)
            out = self.experts(inputs, chosen, weight)
        else:
            out = sum(e(tokens) * weight * (chosen == i) for i, e in enumerate(self.experts))
        return x + out.view_as(x)


class Stacked(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, WIDTH, WIDTH))

    def forward(self, tokens, chosen, weights):
        tokens = tokens.reshape(-1, WIDTH)
        return torch.einsum("nd,nde->ne", tokens, self.weight[chosen[:, 0]]) * weights


def mixture(**options: Any) -> Trial:
    return Trial(Stack(lambda: Mixture(**options)))


class Spare(nn.Module):
    """A layer that is called, and one that is not. direct: its weight is used."""

    def __init__(self, spare: bool = True, direct: bool = False) -> None:
        super().__init__()
        self.used, self.direct = nn.Linear(WIDTH, WIDTH), direct
        self.spare = nn.Linear(WIDTH, WIDTH) if spare else None

    def forward(self, x):
        x = self.used(x)
        return x @ self.spare.weight if self.direct else x


class Around(nn.Module):
    """A block with two layers. how: it is called, or these are in its place, or `forward` of these."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.block, self.how = Cut(False), how

    def forward(self, x):
        if self.how == "parts":
            return self.block.second(self.block.first(x))
        if self.how == "forward":
            return self.block.second.forward(self.block.first.forward(x))
        return self.block(x)


def frozen_spare(used: bool) -> Trial:
    model = Spare()
    model.spare.requires_grad_(used)
    return Trial(model)


def wrapped(outside: bool) -> Trial:
    """outside: a part of the model is called before it."""
    model = Spare()
    return Trial(model, call=(lambda x: model(model.spare(x))) if outside else None)


class Mapped(nn.Module):
    """Attention of each sample by itself. mapped: by `torch.vmap`."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mapped = mapped

    def forward(self, x):
        inputs = self.query(x), self.key(x), self.value(x)
        attend = F.scaled_dot_product_attention
        return torch.vmap(attend)(*inputs) if self.mapped else attend(*inputs)


def mapped(mapped: bool) -> Trial:
    return Trial(Stack(lambda: Mapped(mapped)))


class Cut(nn.Module):
    """A layer behind a cut graph."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.first, self.second, self.cut = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), cut

    def forward(self, x):
        y = self.first(x)
        return self.second(y.detach() if self.cut else y)


class Narrow(nn.Module):
    """Adds what passes through a layer of some width; of none, say, which a configuration may ask for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.down, self.up = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, width),
            nn.Linear(width, WIDTH, False),
        )

    def forward(self, x):
        return self.first(x) + self.up(self.down(x))


def frozen() -> Trial:
    """A layer that gets no gradient for three steps, and is frozen then."""
    model, step = Cut(True), count()

    def freeze() -> None:
        if next(step) == 3:
            model.first.requires_grad_(False)

    return Trial(model, each=freeze)


def by_hand(by_hand: bool) -> Trial:
    """Gradients that no backward pass has made."""
    model = Cut(False)

    def backward(loss: torch.Tensor) -> None:
        if not by_hand:
            loss.backward()
        for p in model.parameters() if by_hand else ():
            p.grad = torch.ones_like(p)

    return Trial(model, backward=backward)


def compiled() -> Trial:
    torch.compiler.reset()
    model = Stack(lambda: Attention(False))
    return Trial(model, call=torch.compile(model, backend="aot_eager"))


def twin(called: bool) -> Trial:
    """called: another module with the same parameters is what the loop calls."""
    model, other = Cut(False), Cut(False)
    other.first, other.second = (nn.Linear(WIDTH, WIDTH) for _ in range(2))
    for mine, theirs in zip(model.children(), other.children(), strict=True):
        theirs.weight, theirs.bias = mine.weight, mine.bias
    return Trial(model, call=other if called else model)


def scripted(how: Callable[[nn.Module], nn.Module]) -> Trial:
    return Trial(how(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))))


def partly_scripted() -> Trial:
    """A scripted layer in a model that is not."""
    return Trial(nn.Sequential(nn.Linear(WIDTH, WIDTH), torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH)))))


def growing(changes: int) -> Trial:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    left = iter(range(changes))

    def grow() -> None:
        if next(left, None) is not None:
            model.append(nn.Linear(WIDTH, WIDTH))

    return Trial(model, steps=AT_ONCE + 6, each=grow)


def classes(cross_entropy: bool) -> Trial:
    def loss(out: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros(out[..., 0].numel(), dtype=torch.long)
        return F.cross_entropy(out.flatten(0, 1), labels) if cross_entropy else out.square().mean()

    return Trial(Cut(False), loss=loss)


def tracked(synchronised: bool) -> Trial:
    """A batch is tracked; synchronised: a norm of the model waits for other ranks."""
    model = residual()
    model.norm = nn.SyncBatchNorm(WIDTH) if synchronised else nn.BatchNorm1d(WIDTH)
    return Trial(model, tracked=torch.randn(TOKENS))


class Weighing(nn.Module):
    """Called attention. how: what its weights are: products, a projection, their softmax in a function, or none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.offsets = nn.Linear(WIDTH, 6)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.how == "other tokens":
            return x + F.scaled_dot_product_attention(q, k[:, :3], v[:, :3])
        if self.how == "products":
            return x + (q @ k.mT).softmax(-1) @ v
        if self.how == "projection":
            return x + self.offsets(q).softmax(-1) @ v
        return x + (q @ k.mT).sigmoid() @ v


class WeighingAttention(Weighing):
    pass


def weighing(how: str) -> Trial:
    return Trial(Stack(lambda: WeighingAttention(how)), settings={"every_step": True})


class Inside(nn.Module):
    """Of what its layers return, or how they are called: numbers, None, or by a transform; complex: of its weight."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.enter, self.layer = how, nn.Linear(WIDTH, WIDTH), Returning(how)

    def forward(self, x):
        x = self.enter(x)
        if self.how == "vmap":
            return torch.vmap(self.layer)(x)
        kept = [x]
        out = self.layer(x, kept)
        return kept[-1] if out is None else out.x if isinstance(out, Held) else out


@dataclass
class Held:
    x: torch.Tensor


class Returning(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        kind = torch.complex64 if how == "complex" else torch.float32
        self.how, self.inner = how, nn.Linear(WIDTH, WIDTH, dtype=kind)

    def forward(self, x, kept=None):
        if self.how == "complex":
            return torch.view_as_real(self.inner(torch.fft.fft(x)))[..., 0]
        if self.how == "none":
            return kept.append(self.inner(x))
        return Held(self.inner(x)) if self.how == "dataclass" else self.inner(x)


def inside(how: str) -> Trial:
    return Trial(Inside(how), settings={"every_step": True})


class OwnGELU(nn.GELU):
    """An activation of the model's own."""


class Loop(nn.Module):
    """Layers that are each called many times."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            for _ in range(loops.FEWEST + 1):
                x = layer(x)
        return x


def looped(layers: int) -> Trial:
    return Trial(Loop(layers), steps=4, settings={"every_step": True})


def taylor(cross_entropy: bool) -> Trial:
    trial = classes(cross_entropy)
    trial.settings = {"taylor": True, "every_step": True}
    return trial


def exported() -> Trial:
    return Trial(torch.export.export(Cut(False), (torch.randn(TOKENS),)).module())


def taken(kept: bool) -> Trial:
    """Gradients that the program asks for, and steps of its own; kept: where `backward` puts them."""
    model = Cut(False)
    parameters = list(model.parameters())

    def step(loss: torch.Tensor) -> None:
        found = torch.autograd.grad(loss, parameters)
        for p, gradient in zip(parameters, found, strict=True):
            p.grad = gradient if kept else None
            if not kept:
                with torch.no_grad():
                    p.sub_(gradient, alpha=1e-3)

    return Trial(model, backward=step, stepped=kept)


TOO_LARGE = "its parameters do not fit into `update_bytes`"
CASES: dict[str, tuple[str, Callable[[], Trial], Callable[[], Trial]]] = {
    "no capacity": (NO_CAPACITY, lambda: mixture(capacity=None), lambda: mixture(capacity=1.25)),
    "many experts": (MANY, lambda: mixture(experts=65), lambda: mixture(experts=64)),
    "a call of experts": (CALL, lambda: mixture(stacked=True, plain=False), lambda: mixture(stacked=True)),
    "in place": (
        IN_PLACE, lambda: Trial(residual(lambda: nn.SiLU(inplace=True))), lambda: Trial(residual(nn.SiLU)),
    ),
    "no saturation": (NO_SATURATION, lambda: Trial(residual(nn.ReLU)), lambda: Trial(residual(nn.Tanh))),
    "no tokens": (NO_TOKENS, lambda: Trial(residual(), shape=(4, WIDTH)), lambda: Trial(residual())),
    "no trunk": (NO_TRUNK, lambda: Trial(residual(named=True)), lambda: Trial(residual())),
    "multi-head": (MHA, lambda: Trial(Stack(lambda: Attention(True))), lambda: Trial(Stack(lambda: Attention(False)))),
    "not called": (NOT_CALLED, lambda: Trial(Spare()), lambda: Trial(Spare(False))),
    "no gradient": (NO_GRADIENT, lambda: Trial(Cut(True)), lambda: Trial(Cut(False))),
    "no gradient is not frozen": (FROZEN, frozen, lambda: Trial(Cut(True))),
    "frozen is not no gradient": (NO_GRADIENT, lambda: Trial(Cut(True)), frozen),
    "no elements": (EMPTY, lambda: Trial(Narrow(0)), lambda: Trial(Narrow(1))),
    "no elements, not without a step": (NO_GRADIENT, lambda: Trial(Cut(True)), lambda: Trial(Narrow(0))),
    "an output without elements": (NO_ELEMENTS, lambda: Trial(Narrow(0)), lambda: Trial(Narrow(1))),
    "an output without elements is a call": (NOT_CALLED, lambda: Trial(Spare()), lambda: Trial(Narrow(0))),
    "a call alone would hang": (COLLECTIVE, lambda: tracked(True), lambda: tracked(False)),
    "no loss": (NO_LOSS, lambda: by_hand(True), lambda: by_hand(False)),
    "no classes": (NO_CLASSES, lambda: classes(False), lambda: classes(True)),
    "another module is called": (COMPILED, lambda: twin(True), lambda: twin(False)),
    "nothing saved in a graph": (
        f"{NO_SAVED}; the exact value is on cadence", compiled, lambda: Trial(Stack(lambda: Attention(False))),
    ),
    "traced": (
        SCRIPTED, lambda: scripted(lambda m: torch.jit.trace(m, torch.randn(TOKENS))), lambda: scripted(lambda m: m),
    ),
    "scripted": (SCRIPTED, lambda: scripted(torch.jit.script), lambda: scripted(lambda m: m)),
    "scripted layer": (SCRIPTED, partly_scripted, lambda: Trial(Cut(False))),
    "scripted is not another": (COMPILED, lambda: twin(True), lambda: scripted(torch.jit.script)),
    "scripted layer is called": (NOT_CALLED, lambda: Trial(Spare()), partly_scripted),
    "another softmax": (OTHER_SOFTMAX, lambda: weighing("projection"), lambda: weighing("products")),
    "another softmax is no product": (OTHER_SOFTMAX, lambda: weighing("projection"), lambda: weighing("sigmoid")),
    "no softmax at all": (NO_ATTENTION, lambda: weighing("sigmoid"), lambda: weighing("projection")),
    "attention is seen": (NO_ATTENTION, lambda: weighing("sigmoid"), lambda: weighing("products")),
    "other tokens": (OTHER_TOKENS, lambda: weighing("other tokens"), lambda: Trial(Stack(lambda: Attention(False)))),
    "nothing returned": (NO_TENSOR, lambda: inside("none"), lambda: inside("plain")),
    "a dataclass is returned": (NO_TENSOR, lambda: inside("complex"), lambda: inside("dataclass")),
    "nothing returned is a call": (NOT_CALLED, lambda: Trial(Spare()), lambda: inside("none")),
    "in a transform": (TRANSFORMED, lambda: inside("vmap"), lambda: inside("plain")),
    "a transform calls": (NOT_CALLED, lambda: Trial(Spare()), lambda: inside("vmap")),
    "complex ones are updated": (NO_GRADIENT, lambda: Trial(Cut(True)), lambda: inside("complex")),
    "parts are called": (HOLDER, lambda: Trial(Around("parts")), lambda: Trial(Around("whole"))),
    "only the model is called": (ONLY_ROOT, lambda: Trial(Around("forward")), lambda: Trial(Around("whole"))),
    "only the model is called, not another": (COMPILED, lambda: twin(True), lambda: Trial(Around("forward"))),
    "called by its forward": (DIRECT, lambda: Trial(Around("forward")), lambda: Trial(Around("whole"))),
    "not trained": (IDLE, lambda: frozen_spare(False), lambda: frozen_spare(True)),
    "not trained is no fault": (NOT_CALLED, lambda: frozen_spare(True), lambda: frozen_spare(False)),
    "called outside": (OUTSIDE, lambda: wrapped(True), lambda: wrapped(False)),
    "called outside is called": (NOT_CALLED, lambda: wrapped(False), lambda: wrapped(True)),
    "attention in a transform": (IN_TRANSFORM, lambda: mapped(True), lambda: mapped(False)),
    "attention in a transform is a call": (NO_ATTENTION, lambda: weighing("sigmoid"), lambda: mapped(True)),
    "used directly": (DIRECT, lambda: Trial(Spare(direct=True)), lambda: Trial(Spare())),
    "not used directly": (NOT_CALLED, lambda: Trial(Spare()), lambda: Trial(Spare(direct=True))),
    "a graph": (GRAPH, exported, lambda: Trial(torch.fx.symbolic_trace(Cut(False)))),
    "a graph is not another model": (COMPILED, lambda: twin(True), exported),
    "gradients that are taken": (NOT_KEPT, lambda: taken(False), lambda: taken(True)),
    "gradients that are taken are of a step": (NO_GRADIENT, lambda: Trial(Cut(True)), lambda: taken(False)),
    "own activation": (OWN_CLASS, lambda: Trial(residual(OwnGELU)), lambda: Trial(residual(nn.GELU))),
    "a closure": (
        CLOSURE, lambda: Trial(Cut(False), closure=True, settings={"every_step": True}),
        lambda: Trial(Cut(False), settings={"every_step": True}),
    ),
    "no logits": (NO_LOGITS, lambda: by_hand(True), lambda: classes(True)),
    "many loops": (loops.TOO_MANY, lambda: looped(loops.MOST + 1), lambda: looped(loops.MOST)),
    "no softmax to have a radius": (NO_SOFTMAX, lambda: taylor(False), lambda: taylor(True)),
    "too many changes": (TOO_OFTEN, lambda: growing(AT_ONCE + 3), lambda: growing(2)),
    "too large": (TOO_LARGE, lambda: Trial(Cut(False), settings={"update_bytes": 16}), lambda: Trial(Cut(False))),
}  # fmt: skip


@pytest.mark.parametrize("case", sample(CASES, every=2))
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_reason_is_given_where_it_is_true_and_nowhere_else(case, attach):
    reason, true_of, false_of = CASES[case]
    torch.manual_seed(0)
    assert reason in true_of().reasons(attach)
    assert reason not in false_of().reasons(attach)


def test_layers_without_elements_are_no_fault_of_the_set_up(attach, caplog):
    Trial(Narrow(0)).reasons(attach)
    assert not attach.watches[-1].coverage()["missing"] and "nothing is measured" not in caplog.text


def test_the_warning_names_the_folder_that_the_doctor_needs(attach, caplog):
    Trial(Spare()).reasons(attach)
    assert f"`stabwatch doctor {attach.watches[-1].run_dir}`" in caplog.text


def test_stages_of_the_same_rank_that_are_not_of_the_model_are_said_to_be_elsewhere(attach, monkeypatch):
    monkeypatch.setattr(Ranks, "staged", lambda self, stage, name: None)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    for model, said in ((first, True), (nn.ModuleList([first, second]), False)):
        watch = attach(model)
        called = [SimpleNamespace(submod=module) for module in (first, second)]
        for stage in called:
            LISTENERS[0].events.stage_called(stage, [])
        assert (STAGES_APART in [note["reason"] for note in watch.coverage()["notes"]]) == said
        watch.detach()


@pytest.mark.parametrize("world", [1, 2])
def test_a_process_group_that_is_made_after_the_first_step_is_told(world, attach, monkeypatch):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = attach(model, optimizer)
    for _ in range(3):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: world - 1)
    assert (FORMED_LATER in [note["reason"] for note in watch.coverage()["notes"]]) == (world == 2)
    watch.detach()
    assert len(read_run(watch.run_dir).steps) == 3


def test_a_rank_of_a_launcher_whose_group_is_never_made_has_a_run_of_its_own(attach, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = attach(model, optimizer)
    assert not watch.run
    for _ in range(3):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
    watch.detach()
    assert len(read_run(watch.run_dir).steps) == 3

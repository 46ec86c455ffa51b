"""The optimizers of torch and of others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compat.program import Case, NotTried, Program

Make = Callable[[nn.Module], Any]


class Classifier(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8)."""
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))  # type: ignore[no-any-return]


def of_torch(name: str, **options: Any) -> Make:
    """A class of torch.optim."""
    return lambda model: getattr(torch.optim, name)(model.parameters(), **options)


def of_others(module: str, name: str, **options: Any) -> Make:
    """A class of another package."""

    def make(model: nn.Module) -> Any:
        try:
            kind = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise NotTried(f"{module} cannot be imported: {type(error).__name__}") from error
        return kind(model.parameters(), **options)

    return make


OF_TORCH: dict[str, Make] = {
    "SGD": of_torch("SGD", lr=0.1),
    "SGD with momentum": of_torch("SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": of_torch("Adam"),
    "Adam, foreach": of_torch("Adam", foreach=True),
    "Adam, fused": of_torch("Adam", fused=True),
    "Adam, rate is a tensor": of_torch("Adam", lr=torch.tensor(1e-3)),
    "Adam, amsgrad": of_torch("Adam", amsgrad=True),
    "AdamW": of_torch("AdamW"),
    "AdamW, fused": of_torch("AdamW", fused=True),
    **{name: of_torch(name) for name in (
        "Adamax", "Adadelta", "Adafactor", "Adagrad", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop",
    )},
}  # fmt: skip
OF_OTHERS: dict[str, Make] = {
    "transformers.Adafactor": of_others("transformers.optimization", "Adafactor"),
    "schedulefree.AdamWScheduleFree": of_others("schedulefree", "AdamWScheduleFree"),
    "schedulefree.SGDScheduleFree": of_others("schedulefree", "SGDScheduleFree", lr=0.1),
    "schedulefree.RAdamScheduleFree": of_others("schedulefree", "RAdamScheduleFree"),
    "lion_pytorch.Lion": of_others("lion_pytorch", "Lion"),
    "prodigyopt.Prodigy": of_others("prodigyopt", "Prodigy"),
    "came_pytorch.CAME": of_others("came_pytorch", "CAME", lr=1e-3),
    "adabelief_pytorch.AdaBelief": of_others("adabelief_pytorch", "AdaBelief", print_change_log=False),
    "bitsandbytes.optim.AdamW8bit": of_others("bitsandbytes.optim", "AdamW8bit", min_8bit_size=16),
    "bitsandbytes.optim.Lion8bit": of_others("bitsandbytes.optim", "Lion8bit", min_8bit_size=16),
    **{f"pytorch_optimizer.{name}": of_others("pytorch_optimizer", name) for name in (
        "AdEMAMix", "Adan", "ADOPT", "DAdaptAdam", "Grams", "LaProp", "LAMB", "LARS", "MADGRAD", "Muon", "Ranger21",
        "SOAP", "ScheduleFreeAdamW", "Shampoo", "ScalableShampoo", "Sophia", "StableAdamW", "Tiger", "Yogi",
    )},
}  # fmt: skip


def _task(make: Make) -> tuple[Classifier, Any, Callable[[], Tensor]]:
    model = Classifier()
    x, y = torch.randn(16, 8), torch.randint(0, 8, (16,))
    return model, make(model), lambda: F.cross_entropy(model(x), y)


def plain(make: Make) -> Program:
    """zero_grad, backward, step; optimizers that have modes are set to train."""
    model, optimizer, loss = _task(make)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return Program(model, loss, optimizer)


def with_closure(make: Make) -> Program:
    """`optimizer.step(closure)`."""
    model, optimizer, loss = _task(make)

    def step() -> float:
        first: list[float] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            first.append(value.item())
            return value

        optimizer.step(closure)
        return first[0]

    return Program(model, loss, optimizer, step)


def accumulated() -> Program:
    """Four micro-batches a step."""
    model, optimizer, loss = _task(of_torch("AdamW"))

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for _ in range(4):
            part = loss() / 4
            part.backward()
            total += part.item()
        optimizer.step()
        return total

    return Program(model, loss, optimizer, step)


def clipped() -> Program:
    """Gradients are clipped."""
    model, optimizer, loss = _task(of_torch("SGD", lr=0.1))

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return value.item()

    return Program(model, loss, optimizer, step)


def scaled() -> Program:
    """float16 with a gradient scaler."""
    model, optimizer, loss = _task(of_torch("SGD", lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return value.item()

    return Program(model, loss, optimizer, step)


def scheduled() -> Program:
    """The rate changes at every step."""
    model, optimizer, loss = _task(of_torch("AdamW"))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
        return value.item()

    return Program(model, loss, optimizer, step)


def several() -> Program:
    """One optimizer for matrices, another for the rest."""
    model = Classifier()
    x, y = torch.randn(16, 8), torch.randint(0, 8, (16,))
    pair = [torch.optim.Muon([model.first.weight, model.second.weight]), torch.optim.AdamW([model.last.weight])]

    def step() -> float:
        value = F.cross_entropy(model(x), y)
        value.backward()
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
        return value.item()

    return Program(model, lambda: F.cross_entropy(model(x), y), pair, step)


def sparse() -> Program:
    """An embedding with sparse gradients."""
    model = nn.Sequential(nn.Embedding(32, 8, sparse=True))
    x = torch.randint(0, 32, (16,))
    return Program(model, lambda: model(x).square().mean(), torch.optim.SparseAdam(model.parameters()))


def in_backward() -> Program:
    """Each parameter is stepped as soon as its gradient is there."""
    model, _, loss = _task(of_torch("SGD", lr=0.1))
    each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def ready(p: Tensor) -> None:
        each[p].step()  # type: ignore[index]
        each[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(ready)

    def step() -> float:
        value = loss()
        value.backward()
        return value.item()

    return Program(model, loss, list(each.values()), step)


LOOPS: dict[str, Callable[[], Program]] = {
    "LBFGS": partial(with_closure, of_torch("LBFGS", max_iter=4)),
    "Adam with a closure": partial(with_closure, of_torch("Adam")),
    "four micro-batches": accumulated,
    "clipped gradients": clipped,
    "gradient scaler": scaled,
    "scheduled rate": scheduled,
    "two optimizers": several,
    "SparseAdam": sparse,
    "a step for each parameter in the backward pass": in_backward,
}


def cases() -> Iterator[Case]:
    """One case for each optimizer and loop."""
    for name, make in (OF_TORCH | OF_OTHERS).items():
        yield Case("optimizers", name, partial(plain, make), " ")
    for name, program in LOOPS.items():
        yield Case("optimizers", name, program, " ")

"""Training loops with optimizers of every kind, each with what really happened in its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 6
LAYERS = ("0", "2")


@dataclass
class Truth:
    """What happened: one number of each kind per step; `before` the norms before clipping, where it clips."""

    model: nn.Module
    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    update: dict[str, list[float]] = field(default_factory=lambda: {layer: [] for layer in LAYERS})

    def gradient_norm(self) -> float:
        """Of the gradients that are there now."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack([g.double().norm() for g in grads]).norm().item()

    @contextmanager
    def step(self, rate: float = math.nan) -> Iterator[None]:
        """Around everything that may move the parameters in one step."""
        old = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        yield
        self.rate.append(rate)
        for layer in LAYERS:
            mine = [(p.detach() - old[n], old[n]) for n, p in self.model.named_parameters() if n.startswith(layer)]
            change, weight = (torch.stack([t[i].double().norm() for t in mine]).norm() for i in (0, 1))
            self.update[layer].append((change / weight).item())

    def clip(self, limit: float = 0.05) -> None:
        """Clip the gradients of the model."""
        self.before.append(nn.utils.clip_grad_norm_(self.model.parameters(), limit).item())
        self.norm.append(self.gradient_norm())


Loop = Callable[[nn.Module, Truth, Callable[..., Any]], None]
Attach = Callable[..., Any]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def objective(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
    return (net(x) - x[:, :3]).square().mean()


def plain(make: Callable[[nn.Module], Any], *, given: bool = True, scheduled: bool = False) -> Loop:
    """zero_grad, backward, clip, step."""

    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        optimizer = make(net)
        attach(optimizer if given else None)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = objective(net, step)
            loss.backward()
            truth.loss.append(loss.item())
            truth.clip()
            with truth.step(optimizer.param_groups[0]["lr"]):
                optimizer.step()
            if scheduled:
                optimizer.param_groups[0]["lr"] *= 0.5

    return loop


class Lookahead(torch.optim.Optimizer):
    """Goes back a part of the way every second step."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.fast, self.param_groups, self.count = inner, inner.param_groups, 0
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.fast.step()
        self.count += 1
        if self.count % 2 == 0:
            for p, slow in zip((p for g in self.param_groups for p in g["params"]), self.slow, strict=True):
                p.lerp_(slow, 0.5)
                slow.copy_(p)


class CallsSuper(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wrapper:
    """No optimizer itself, like those of training libraries."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = inner, inner.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class Packed(torch.optim.Optimizer):
    """Momentum in eight bits."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(p, {"momentum": torch.zeros_like(p, dtype=torch.uint8), "scale": 1.0})
                old = (state["momentum"].float() - 128) * state["scale"] if "step" in state else torch.zeros_like(p)
                new = 0.9 * old + p.grad
                state["step"], state["scale"] = 1, new.abs().max() / 127
                state["momentum"] = (new / state["scale"]).round().add(128).to(torch.uint8)
                p.sub_(group["lr"] * new)


class ScheduleFree(torch.optim.Optimizer):
    """Gradients are taken at y, between the iterate z and the average x."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 / self.count)
                z.sub_(group["lr"] * p.grad)


class Relative(torch.optim.Optimizer):
    """Chooses its rate itself: `lr` is None."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": None})
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        for p in (p for g in self.param_groups for p in g["params"]):
            p.sub_(p.grad / (10 + self.count))


def closure(make: Callable[[nn.Module], Any], zero: str, evaluations: int = 1) -> Loop:
    """A closure that sets the gradients to zero first, last (outside), or not at all."""

    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        optimizer = make(net)
        attach(optimizer)
        for step in range(STEPS):
            losses: list[float] = []

            def evaluate(step: int = step, losses: list[float] = losses) -> Tensor:
                if zero == "first":
                    optimizer.zero_grad()
                loss = objective(net, step)
                loss.backward()
                losses.append(loss.item())
                return loss

            with truth.step(optimizer.param_groups[0]["lr"]):
                optimizer.step(evaluate)
            assert len(losses) >= evaluations
            truth.loss.append(losses[0])
            truth.norm.append(truth.gradient_norm())
            if zero == "after":
                optimizer.zero_grad()

    return loop


class SAM(torch.optim.Optimizer):
    """Two backward passes: the second at weights that the first moved."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for p in (p for g in self.param_groups for p in g["params"]):
            self.state[p]["old"] = p.clone()
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        for p in (p for g in self.param_groups for p in g["params"]):
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> None:
        self.climb()
        with torch.enable_grad():
            closure()
        self.descend()


def sharpness(inside: bool) -> Loop:
    """SAM with two calls, or with a closure. The loss is the one at the weights that the step began with."""

    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        optimizer = SAM(net.parameters(), lr=0.1)
        attach(optimizer)
        for step in range(STEPS):
            with truth.step(0.1):
                loss = objective(net, step)
                loss.backward()
                truth.loss.append(loss.item())
                if inside:
                    optimizer.step(lambda step=step: objective(net, step).backward())
                else:
                    optimizer.climb()
                    objective(net, step).backward()
                    optimizer.descend()
            truth.norm.append(truth.gradient_norm())
            optimizer.zero_grad()

    return loop


def in_backward(given: bool, passes: int = 1) -> Loop:
    """One optimizer per parameter, each stepped as soon as its gradient is there."""

    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        each = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}
        squares: list[float] = []

        def ready(p: nn.Parameter) -> None:
            squares.append(p.grad.double().square().sum().item())
            each[p].step()
            each[p].zero_grad()

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(ready)
        attach(list(each.values()) if given else None)
        for step in range(STEPS):
            squares.clear()
            with truth.step(0.1):
                loss = objective(net, step)
                loss.backward()
            truth.loss.append(loss.item())
            truth.norm.append(math.sqrt(sum(squares)))

    return loop


def by_hand(move: str, zero: str) -> Loop:
    """No optimizer at all. move: how the parameters are written. zero: how and when the gradients are dropped."""

    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        attach(None)
        for step in range(STEPS):
            loss = objective(net, step)
            if zero == "before backward":
                net.zero_grad()
            loss.backward()
            truth.loss.append(loss.item())
            truth.clip()
            with truth.step(), torch.no_grad():
                for p in net.parameters():
                    if move == "data":
                        p.data -= 0.1 * p.grad
                    else:
                        p -= 0.1 * p.grad
            for p in net.parameters():
                if zero == "none":
                    p.grad = None
                elif zero == "in place":
                    p.grad.zero_()

    return loop


class Foreign:
    """An optimizer that knows nothing of torch's class."""

    def __init__(self, params: Any) -> None:
        self.params = list(params)

    def step(self) -> None:
        for p in self.params:
            p.data.add_(p.grad.data, alpha=-0.1)

    def zero_grad(self) -> None:
        for p in self.params:
            if p.grad is not None:
                p.grad.detach_()
                p.grad.zero_()


def foreign(given: bool) -> Loop:
    def loop(net: nn.Module, truth: Truth, attach: Attach) -> None:
        optimizer = Foreign(net.parameters())
        attach(optimizer if given else None)
        for step in range(STEPS):
            loss = objective(net, step)
            loss.backward()
            truth.loss.append(loss.item())
            truth.norm.append(truth.gradient_norm())
            with truth.step():
                optimizer.step()
            optimizer.zero_grad()

    return loop


def replaced(net: nn.Module, truth: Truth, attach: Attach) -> None:
    """Another optimizer takes over in the middle of the run."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer)
    for step in range(STEPS):
        if step == 2:
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        optimizer.zero_grad()
        loss = objective(net, step)
        loss.backward()
        truth.loss.append(loss.item())
        truth.clip()
        with truth.step(optimizer.param_groups[0]["lr"]):
            optimizer.step()


def accumulated(net: nn.Module, truth: Truth, attach: Attach) -> None:
    """Three micro-batches a step, no optimizer of torch."""
    attach(None)
    for step in range(STEPS):
        parts = [objective(net, 3 * step + i) / 3 for i in range(3)]
        for part in parts:
            part.backward()
        truth.loss.append(sum(p.item() for p in parts))
        truth.clip()
        with truth.step(), torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        net.zero_grad()


KINDS: dict[str, Loop] = {
    "sgd": plain(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)),
    "scheduled": plain(lambda m: torch.optim.AdamW(m.parameters(), lr=0.1), scheduled=True),
    "not given": plain(lambda m: torch.optim.SGD(m.parameters(), lr=0.1), given=False),
    "tensor rate": plain(lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.1))),
    "nested": plain(lambda m: Lookahead(torch.optim.SGD(m.parameters(), lr=0.1))),
    "nested, not given": plain(lambda m: Lookahead(torch.optim.SGD(m.parameters(), lr=0.1)), given=False),
    "calls super": plain(lambda m: (torch.optim.Adam(m.parameters()), CallsSuper(m.parameters(), lr=0.01))[1]),
    "wrapped twice": plain(lambda m: Wrapper(Wrapper(torch.optim.SGD(m.parameters(), lr=0.1)))),
    "eight bits": plain(lambda m: Packed(m.parameters(), lr=0.1)),
    "schedule-free": plain(lambda m: ScheduleFree(m.parameters(), lr=0.1)),
    "no rate": plain(lambda m: Relative(m.parameters())),
    "closure": closure(lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "first"),
    "closure, zeroed after": closure(lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "after"),
    "lbfgs": closure(lambda m: torch.optim.LBFGS(m.parameters(), lr=0.3, max_iter=4), "first", 2),
    "sam": sharpness(False),
    "sam, closure": sharpness(True),
    "in backward": in_backward(True),
    "in backward, not given": in_backward(False),
    "by hand": by_hand("in place", "none"),
    "by hand, data": by_hand("data", "in place"),
    "by hand, zeroed late": by_hand("data", "before backward"),
    "by hand, accumulated": accumulated,
    "foreign": foreign(True),
    "foreign, not given": foreign(False),
    "replaced": replaced,
}

"""Does the gradient grow over depth as mean-field theory says, and is a NaN placed where the backward makes it?"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.runlog import read_run

TITLE = "Growth of the gradient over depth (edge of chaos)"
CLAIM = """Schoenholz et al. 2017, arXiv:1611.01232 [abstract, formulas]: in wide random networks the squared gradient changes by a factor of
chi = sigma_w^2 E[phi'(z)^2] per layer on its way back, z being the fixed point of the forward; chi = 1 is the edge of chaos, and only
networks near it can be trained at depth. So `backward_growth` should be ln(chi) / 2; for ReLU chi = sigma_w^2 / 2 exactly."""
SETUP = """30 layers of width 256 without residual connections, 256 random inputs, ten classes drawn by another network; `backward_growth` and
`residual_growth` of the first step as stabwatch measures them, and the loss of 60 steps of Adam at 1e-3 (a guess has 2.30). Theory for tanh by
numerical integration. Then ten runs: in one backward a NaN is put into the gradient between two layers, and the layer that the run
log has it first at, in the order of the backward, is compared with that place."""
DEPTH, WIDTH, STEPS = 30, 256, 60
BIAS = 0.05


class Layer(nn.Module):
    """A linear map with weights of variance s / width, and an activation function; it may break its gradient."""

    def __init__(self, variance: float, function: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.linear.weight, std=math.sqrt(variance / WIDTH))
        nn.init.normal_(self.linear.bias, std=BIAS if function is torch.tanh else 0.0)
        self.function, self.breaks = function, False

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        if self.breaks and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), math.nan))
        return self.function(self.linear(x))


def chi(variance: float, function: Any) -> float:
    """Of mean-field theory."""
    if function is torch.relu:
        return variance / 2
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    weight /= weight.sum()
    q = 1.0
    for _ in range(2000):
        q = variance * (weight * torch.tanh(math.sqrt(q) * z).square()).sum().item() + BIAS**2
    slope = 1 - torch.tanh(math.sqrt(q) * z).square()
    return variance * (weight * slope.square()).sum().item()


def train(variance: float, function: Any, breaks: int | None = None) -> tuple[Any, list[float]]:
    """The run log, and the losses. breaks: the layer whose input gets a broken gradient at the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Sequential(*(Layer(variance, function) for _ in range(DEPTH))), nn.Linear(WIDTH, 10)
    )
    x = torch.randn(256, WIDTH)
    y = (torch.tanh(x @ torch.randn(WIDTH, 32)) @ torch.randn(32, 10)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            for _ in range(STEPS if breaks is None else 1):
                model[1][breaks or 0].breaks = breaks is not None
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return read_run(path), losses


def placed(places: range) -> int:
    """At how many of these layers a NaN of the backward is found where it was made."""
    right = 0
    for place in places:
        log, _ = train(2.0, torch.relu, place)
        counts = [log.series("activation_gradient_nonfinite_total", f"1.{i}")[1][0] for i in range(DEPTH)]
        right += max(i for i, count in enumerate(counts) if count > 0) == place - 1
    return right


def main() -> str:
    """Table and verdict."""
    rows, gaps, learns = [], [], {}
    for name, function, variances in (
        ("ReLU", torch.relu, (1.0, 2.0, 3.0)),
        ("tanh", torch.tanh, (0.5, 1.0, 2.0, 4.0)),
    ):
        for variance in variances:
            theory = math.log(chi(variance, function)) / 2
            log, losses = train(variance, function)
            growth = log.series("backward_growth", "1")[1][0]
            gaps.append(abs(growth - theory))
            learns[name, variance] = (theory, losses[-1])
            forward = log.series("residual_growth", "1")[1][0]
            rows.append((f"{name}, sigma_w^2 = {variance:g}", theory, growth, forward, losses[0], losses[-1]))
    places = range(1, DEPTH, 3)[:10]
    right = placed(places)
    head = ("", "ln(chi) / 2", "backward_growth", "residual_growth", "loss, first", "loss, last")
    near = [loss for theory, loss in learns.values() if abs(theory) < 0.06]
    far = [loss for theory, loss in learns.values() if theory < -0.3]
    return f"""{table(head, rows)}

**Verdict.** The growth is that of the theory to {max(gaps):.2g} per layer at most (width {WIDTH}; the theory is for infinite width). Near the edge
(|ln(chi) / 2| below 0.06) the loss goes to {min(near):.2f} to {max(near):.2f}, where the gradient vanishes (below -0.3) it stays at {min(far):.2f} or more. A NaN that
the backward made is first seen at the layer before the place where it was made in {right} of {len(places)} runs."""

"""The ways to watch a training that `overhead.py` compares. Each is a class that is built on a model and an optimizer.

`kind()` is asked before a step and names what the variant will do in it (a sampling variant has dear and cheap
steps); `wake()` is called after a pause; `elements` counts the numbers that the measured steps read, attention apart.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabwatch.demo import GPT
from stabwatch.hooks.base.probe import PROBES
from stabwatch.hooks.base.sites import select_modules
from stabwatch.runlog import read_run
from stabwatch.runtime.governor import KEPT


class Bare:
    """Nothing watches."""

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, folder
        self.elements = 0

    def forward(self, tokens: Tensor, following: Tensor) -> Tensor:
        """The loss of one batch."""
        return F.cross_entropy(self.model(tokens).flatten(0, 1), following.flatten())

    def before_step(self) -> None:
        """Gradients are there."""

    def after_step(self) -> None:
        """The optimizer has stepped."""

    def kind(self) -> str:
        """What the coming step does."""
        return ""

    def wake(self) -> None:
        """The process was paused until now."""

    def close(self) -> dict[str, Any]:
        """Facts for the report."""
        return {}


class Stabwatch(Bare):
    """stabwatch with some settings."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        import stabwatch

        super().__init__(model, optimizer, folder)
        self.watch = stabwatch.attach(
            model, optimizer, run_dir=folder / "run", verbose=False, **{"agent": False, **self.settings}
        )

    def kind(self) -> str:
        flags = self.watch._session.flags
        dear = "+".join(tier for tier, on in (("sampled", flags.sampled), ("deep", flags.deep)) if on)
        return dear or ("always" if flags.open else "basics")

    def wake(self) -> None:
        self.watch._session._began = (
            time.perf_counter()
        )  # the pause is no part of a step: the governor must not count it
        self.watch._session._pace.restart()

    def close(self) -> dict[str, Any]:
        facts = {"interval": dict(self.watch._session._pace.governor.interval)}
        steps = self.watch.step
        self.watch.detach()
        self.elements = _elements(self.folder / "run")
        return {**facts, **_said(self.folder / "run", steps)}


class StabwatchWithAgent(Stabwatch):
    """The default configuration, agent and all."""

    settings: ClassVar[dict[str, Any]] = {"agent": True, "linger": 0.0, "port": 0}

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        self.watch.wait_for_agent(60)


class StabwatchEveryStep(Stabwatch):
    """Everything on every step."""

    settings: ClassVar[dict[str, Any]] = {"every_step": True}


class StabwatchAsNaive(StabwatchEveryStep):
    """At every step what `Naive` measures, and what is measured in any step; all other probes are off."""

    KEPT: ClassVar[frozenset[str]] = frozenset(
        ("activation", "attention_call", "attention_exact", "gradient", "weight", "update", "loss", "logit_form")
    )

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        dearer = {probe.name for probe in PROBES if probe.tier != "always"}
        self.watch._session.isolation.disabled |= dearer - self.KEPT


class Naive(Bare):
    """Statistics that stabwatch takes of the same tensors, the way they are usually written: `.item()` each."""

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        self.values: dict[str, float] = {}
        self.log = open(folder / "naive.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        watched = {item.name for item in select_modules(model) if item.activation}
        for name, module in model.named_modules():
            if name in watched:
                module.register_forward_hook(self._hook(name))
            if name.endswith(".attn"):
                module.qkv.register_forward_hook(self._attention(name, module.heads))

    def _moments(self, name: str, x: Tensor) -> None:
        self.elements += x.numel()
        self.values[f"{name}/rms"] = x.pow(2).mean().sqrt().item()
        self.values[f"{name}/abs_max"] = x.abs().max().item()
        self.values[f"{name}/nonfinite"] = (~torch.isfinite(x)).sum().item()

    def _hook(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            self._moments(f"activation/{name}", out)

        return hook

    def _attention(self, name: str, heads: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            b, t, _ = out.shape
            q, k, _ = (y.view(b, t, heads, -1).transpose(1, 2) for y in out.chunk(3, dim=-1))
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
            peaks = scores.amax(dim=(0, 2, 3))
            self.values[f"attention/{name}/max"] = peaks.max().item()
            self.values[f"attention/{name}/head"] = peaks.argmax().item()

        return hook

    def forward(self, tokens: Tensor, following: Tensor) -> Tensor:
        logits = self.model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        with torch.no_grad():
            lse = torch.logsumexp(logits, dim=-1)
            self.values["logits/lse"] = lse.mean().item()
            self.values["logits/z"] = lse.pow(2).mean().item()
            self.values["logits/nonfinite"] = (~torch.isfinite(lse)).sum().item()
            self.values["loss"] = loss.item()
        return loss

    @torch.no_grad()
    def before_step(self) -> None:
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                self._moments(f"gradient/{name}", p.grad)
            self._moments(f"weight/{name}", p)
        self.held = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def after_step(self) -> None:
        for name, p in self.model.named_parameters():
            before = self.held[name]
            self.elements += before.numel()
            self.values[f"update/{name}/ratio"] = ((p - before).norm() / before.norm()).item()
        del self.held
        print(json.dumps(self.values), file=self.log, flush=True)


class Wandb(Bare):
    """`wandb.watch(model, log="all", log_freq=1)`, offline: histograms of parameters and gradients."""

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
        import wandb

        self.run = wandb.init(project="overhead", dir=str(folder))
        self.run.watch(model, log="all", log_freq=1)

    def forward(self, tokens: Tensor, following: Tensor) -> Tensor:
        self.loss = super().forward(tokens, following)
        return self.loss

    def after_step(self) -> None:
        self.run.log({"loss": self.loss.item()})
        self.elements += sum(2 * p.numel() for p in self.model.parameters())

    def close(self) -> dict[str, Any]:
        self.run.finish()
        return {}


class ComposerActivations(Bare):
    """As Composer's ActivationMonitor describes itself: inputs and outputs of every module, four numbers of each.

    Mean L2 norm, mean, mean kurtosis and mean maximum over the last dimension, one `.item()` each; written anew
    from that description.
    """

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        self.values: dict[str, float] = {}
        self.log = open(folder / "composer.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            for side, values in (("input", args), ("output", out)):
                for i, x in enumerate(values if isinstance(values, tuple) else (values,)):
                    if isinstance(x, Tensor) and x.is_floating_point():
                        self._measure(f"{side}.{i}/{name}", x)

        return hook

    def _measure(self, name: str, x: Tensor) -> None:
        self.elements += x.numel()
        self.values[f"l2_norm/{name}"] = torch.linalg.vector_norm(x, dim=-1).mean().item()
        self.values[f"mean/{name}"] = x.mean(dim=-1).mean().item()
        self.values[f"max/{name}"] = x.amax(dim=-1).mean().item()
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1)
        self.values[f"kurtosis/{name}"] = (centred.pow(4).mean(dim=-1) / variance.square()).mean().item()

    def after_step(self) -> None:
        print(json.dumps(self.values), file=self.log, flush=True)


class Composer(ComposerActivations):
    """Those and, as its OptimizerMonitor describes itself, norms of gradient, parameter, moments and update."""

    @torch.no_grad()
    def before_step(self) -> None:
        self.held = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                self._norm("grad", name, p.grad)

    @torch.no_grad()
    def after_step(self) -> None:
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            self._norm("param", name, p)
            self._norm("moment", name, state["exp_avg"])
            self._norm("second_moment_sqrt", name, state["exp_avg_sq"].sqrt())
            self._norm("update", name, p - self.held[name])
        del self.held
        super().after_step()

    def _norm(self, what: str, name: str, x: Tensor) -> None:
        self.elements += x.numel()
        self.values[f"l2_norm/{what}/{name}"] = torch.linalg.vector_norm(x).item()


VARIANTS: dict[str, type[Bare]] = {
    "bare": Bare,
    "bare again": Bare,
    "stabwatch": Stabwatch,
    "stabwatch, with agent": StabwatchWithAgent,
    "stabwatch, every step": StabwatchEveryStep,
    "stabwatch, the naive hooks' numbers": StabwatchAsNaive,
    "naive hooks": Naive,
    "wandb.watch": Wandb,
    "composer-style activations": ComposerActivations,
    "composer-style, with norms": Composer,
}


def _said(folder: Path, steps: int) -> dict[str, float]:
    """What a run log says of its own cost in the second half of the run, and the share of the steps that are in it.

    What it tells at a step is a mean over the steps before, in which dear first steps stay when they are long over.
    From two such means follows what it says of the step between them.
    """
    run = read_run(folder)
    _, told = run.series("overhead_ratio")
    before = np.arange(len(told) - len(told) // 2, len(told))
    weights = (1 - KEPT**before) / (1 - KEPT)
    sums = weights * told[-len(before) :]
    return {"told": float(np.mean(sums[1:] - KEPT * sums[:-1])), "recorded": len(run.steps) / max(1, steps)}


def _elements(run: Path) -> int:
    """Sum of the counts of all moments and updates in a run log."""
    total = 0.0
    for block in read_run(run).blocks:
        cells = zip(block.layout.accumulators, block.layout.starts, strict=True)
        slots = [at for cell, at in cells if cell.reduction in ("moments", "update")]
        total += np.nansum(block.rows[:, slots])
    return int(total)

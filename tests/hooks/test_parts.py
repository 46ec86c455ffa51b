"""Models that are never called themselves, while the training loop calls their parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.base.parts import has_forward

STEPS = 12
SIGNALS = (
    "loss", "output_rms", "activation_abs_max", "attention_logit_max", "residual_growth", "forward_passes", "input_rms",
    "activation_gradient_rms", "output_logit_logsumexp",
)  # fmt: skip


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.factor = nn.Linear(8, 24), nn.Linear(8, 8), 1.0

    def forward(self, x):
        q, k, v = (y[:, None] for y in self.qkv(x).chunk(3, dim=-1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v)[:, 0]) * self.factor


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 5)

    def scores(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Model(Methods):
    def forward(self, x):
        return self.scores(x)


def train(attach, model, call, steps=STEPS):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer, every_step=True)
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, target = torch.randn(3, 6, 8, generator=g), torch.randint(5, (3, 6), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(call(model, x).flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    return attach.finish()


def made(kind):
    torch.manual_seed(0)
    return kind()


def by_hand(model, x):
    return model.head(model.blocks[2](model.blocks[1](model.blocks[0](x))))


@pytest.mark.parametrize(
    ("kind", "call", "first"),
    [
        (Methods, Methods.scores, 0),
        (Model, Model.scores, 1),  # that the model itself is never called shows at the first backward pass
        (Model, by_hand, 1),
    ],
    ids=["no forward", "another method", "a loop of the user's"],
)
def test_parts_show_what_the_model_would(kind, call, first, attach):
    whole = train(attach, made(Model), Model.__call__)
    parts = train(attach, made(kind), call)
    seen = set()
    for key in whole.keys:
        if key.signal in SIGNALS:
            steps, values = whole.series(key.signal, key.layer)
            later, others = parts.series(key.signal, key.layer)
            known = steps >= (0 if key.signal == "loss" else first)
            seen.add(key.signal)
            np.testing.assert_array_equal(later, steps[known], err_msg=str(key))
            np.testing.assert_array_equal(others, values[known], err_msg=str(key))
    assert seen == set(SIGNALS)


def test_a_part_that_is_called_again_begins_another_forward(attach):
    """An actor that acts three times before it learns: three forwards, no module that is called in a loop."""

    def three(model, x):
        return torch.stack([model.head(model.blocks[0](x)) for _ in range(3)]).mean(0)

    log = train(attach, made(Methods), three)
    assert set(log.series("forward_passes")[1]) == {3.0}
    assert not any(key.signal.startswith("loop_") for key in log.keys)


def test_an_exception_in_a_part_ends_with_the_next_backward_pass(attach):
    calls = []

    def fails_at_times(model, x):
        calls.append(x)
        if len(calls) % 4 == 2:
            with pytest.raises(RuntimeError):
                model.blocks[0](x[..., :3])
        return model.scores(x)

    steps, rms = train(attach, made(Methods), fails_at_times).series("output_rms", "blocks.1")
    assert len(steps) == STEPS and np.isfinite(rms).all()


def test_a_model_that_is_called_after_all_is_not_followed_by_its_parts(attach):
    calls = []

    def sometimes(model, x):
        calls.append(x)
        return model.scores(x) if len(calls) < 4 else model(x)

    log = train(attach, made(Model), sometimes)
    assert set(log.series("forward_passes")[1]) == {1.0}
    assert len(log.series("output_rms", "blocks.1")[0]) == STEPS - 1


def test_where_a_nan_is_born_is_found_in_parts(attach):
    calls = []

    def poisoned(model, x):
        calls.append(x)
        model.blocks[1].factor = float("nan") if len(calls) == 6 else 1.0
        return model.scores(x)

    log = train(attach, made(Methods), poisoned, steps=8)
    origin = next(e for e in log.events if e.kind == "nonfinite")
    assert origin.data["place"] == "forward" and origin.data["layers"] == ["blocks.1"]


def test_parts_with_an_optimizer_each_share_a_step(attach):
    """A generator and a judge, each with its pass and its step: one record shows both."""
    torch.manual_seed(0)
    parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in parts]
    attach(parts, optimizers, every_step=True)
    for _ in range(STEPS):
        for part, optimizer in zip(parts, optimizers, strict=True):
            optimizer.zero_grad()
            part(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    log = attach.finish()
    assert len(log.steps) == STEPS
    assert all(len(log.series("output_rms", name)[0]) == STEPS for name in ("0", "1"))


@pytest.mark.parametrize(("kind", "known"), [(nn.ModuleList, False), (nn.Identity, True), (Methods, False)])
def test_a_class_without_a_forward_is_known(kind, known):
    assert has_forward(kind()) is known

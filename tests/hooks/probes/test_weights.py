"""Where steps and gradients point, in real trainings: against what the training did, computed apart in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.probes.loss import scaling
from stabwatch.kernels.direction import naive


def train(model, optimizer, loss, steps):
    """Parameters before each step and after the last, and the gradients of each step."""
    before, gradients = [], []
    named = dict(model.named_parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        before.append({n: p.detach().double().clone() for n, p in named.items()})
        gradients.append({n: p.grad.double().clone() for n, p in named.items()})
        optimizer.step()
    before.append({n: p.detach().double().clone() for n, p in named.items()})
    return before, gradients


def classifier(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    x, y = torch.randn(64, 12), torch.randint(0, 4, (64,))
    return model, lambda: F.cross_entropy(model(x), y)


def cosine(a, b):
    a, b = (torch.cat([x.flatten() for x in part]) for part in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def row_cosine(a, z):
    """Mean cosine of rows with the logits less their mean; rows without a direction are left out."""
    found = F.cosine_similarity(a, z - z.mean(1, keepdim=True), dim=1, eps=0.0)
    return found[~found.isnan()].mean().item()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_cosine_with_the_last_update_is_that_of_two_steps_in_a_row(kind, attach):
    model, loss = classifier(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = kind(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    states, _ = train(model, optimizer, loss, 2 * PHASES + 1)
    log = attach.finish()
    for layer in ("0", "2"):
        steps, found = log.series("update_successive_cosine", layer)
        assert len(steps) >= 2
        for step, value in zip(steps, found, strict=True):
            now, last = (
                [states[s + 1][n] - states[s][n] for n in states[0] if n.startswith(layer)] for s in (step, step - 1)
            )
            assert value == pytest.approx(cosine(now, last), abs=1e-4)


def test_large_parameters_are_compared_by_a_sample_of_their_numbers(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 400), nn.Linear(400, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    states, _ = train(model, optimizer, lambda: model(torch.randn(8, 500)).square().mean(), 2 * PHASES)
    steps, found = attach.finish().series("update_successive_cosine", "0")
    step = steps[-1]
    now, last = ([states[s + 1][n] - states[s][n] for n in states[0] if n[0] == "0"] for s in (step, step - 1))
    assert found[-1] == pytest.approx(
        cosine(now, last), abs=0.02
    )  # 65,536 of 200,000 numbers: 1 / sqrt(65,536) = 0.004


def test_a_deep_step_whose_last_step_was_not_foreseen_measures_no_cosine(attach):
    model, loss = classifier(nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    watch._session.flags.next_phase = None
    train(model, optimizer, loss, 1)
    watch._session.flags.deep, watch._session.flags.phase, watch._session.flags.next_phase = True, 0, None
    train(model, optimizer, loss, 1)
    assert not len(attach.finish().series("update_successive_cosine", "0")[0])


def test_weights_before_a_norm_are_found_and_the_turn_of_their_vectors_is_measured(attach):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    attach(model, optimizer)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 4, (32,))
    states, gradients = train(model, optimizer, lambda: F.cross_entropy(model(x), y), 3 * PHASES)
    log = attach.finish()
    steps, found = log.series("scale_invariant_ratio", "0")
    assert len(steps) == 3 and (found == 1).all(), "a convolution before a batch norm"
    assert not log.series("scale_invariant_ratio", "4")[1].any(), "the head"
    assert not len(log.series("radial_update_ratio", "4")[0])
    for step, share, angle in zip(
        steps, log.series("radial_update_ratio", "0")[1], log.series("effective_step_size", "0")[1], strict=True
    ):
        weight = states[step]["0.weight"]
        assert naive.invariance(weight, gradients[step]["0.weight"])[0]
        vectors, update, along, angles = naive.radial(
            states[step + 1]["0.weight"] - weight, weight, True, True
        ).tolist()
        assert share == pytest.approx(along / update, rel=1e-3, abs=1e-6)
        assert angle == pytest.approx(math.sqrt(angles / vectors), rel=1e-4)


def test_each_parameter_group_has_its_gradient_norm(attach):
    model, loss = classifier(nn.Linear(12, 16), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(
        [{"params": [m.weight for m in model], "weight_decay": 0.1}, {"params": [m.bias for m in model]}], lr=0.1
    )
    other = nn.Parameter(torch.ones(3))
    model.register_parameter("other", other)
    second = torch.optim.SGD([other], lr=0.1)
    attach(model, [optimizer, second])
    gradients = []
    for _ in range(2):
        (loss() + (other**2).sum()).backward()
        gradients.append(
            [[p.grad.double().clone() for p in g["params"]] for o in (optimizer, second) for g in o.param_groups]
        )
        optimizer.step()
        second.step()
        optimizer.zero_grad()
        second.zero_grad()
    log = attach.finish()
    for i in range(3):
        truth = [math.sqrt(sum(float(p.square().sum()) for p in step[i])) for step in gradients]
        assert log.series("group_gradient_norm", f"group{i}")[1].tolist() == pytest.approx(truth, rel=1e-5)
    whole = [math.sqrt(sum(float(p.square().sum()) for group in step for p in group)) for step in gradients]
    assert log.series("gradient_norm")[1].tolist() == pytest.approx(whole, rel=1e-5)
    assert not any(key.layer == "group3" for key in log.keys)


def test_the_gradient_of_a_head_scales_the_logits_as_the_logits_say(attach):
    """<dL/dW, W> = <dL/dz, z> for z = W h: what is behind the two cosines agrees with each other and with autograd."""
    model, _ = classifier(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    seen = []
    model.register_forward_hook(lambda m, args, out: seen.append(out.detach().double()))
    y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(1))
    x = torch.randn(64, 12)
    attach(model, optimizer)
    states, gradients = train(model, optimizer, lambda: F.cross_entropy(model(x), y), 3 * PHASES)
    log = attach.finish()
    steps, found = log.series("gradient_weight_cosine", "2")
    for step, value in zip(steps, found, strict=True):
        g, w = gradients[step]["2.weight"], states[step]["2.weight"]
        assert value == pytest.approx(-cosine([g], [w]), abs=1e-5)
        z = seen[step]
        dz = (z.softmax(1) - F.one_hot(y, 4)) / len(y)
        assert float((g * w).sum()) == pytest.approx(float((dz * z).sum()), rel=1e-4, abs=1e-7)
    steps, found = log.series("descent_weight_cosine")
    assert len(steps) == 3 * PHASES, "at every deep step"
    for step, value in zip(steps, found, strict=True):
        named = states[step].keys()
        assert value == pytest.approx(
            -cosine([gradients[step][n] for n in named], [states[step][n] for n in named]), abs=1e-5
        )
    for step, value in zip(*log.series("logit_scaling_cosine"), strict=True):
        z = seen[step]
        dz = z.softmax(1) - F.one_hot(y, 4)
        assert value == pytest.approx(row_cosine(-dz, z), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"weight": torch.tensor([1.0, 2.0, 0.5])}, {"ignore_index": 1}, "soft"]
)
def test_logit_scaling_is_that_of_the_loss_as_it_was_called(options, attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3))
    x, target = torch.randn(20, 5), torch.randint(0, 3, (20,))
    if options == "soft":
        target, options = torch.rand(20, 3).softmax(1), {}
    attach(model)
    logits = model(x)
    logits.retain_grad()
    F.cross_entropy(logits, target, **options).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    z = logits.detach().double()
    ((_, *_), (value, *_)) = attach.finish().series("logit_scaling_cosine")
    assert value == pytest.approx(row_cosine(-logits.grad.double(), z), abs=1e-5)


@pytest.mark.parametrize("size", [1.0, 5.0, 12.0])
def test_logit_scaling_of_certain_rows_is_not_that_of_rounding(size):
    """Where 1 - p of most labels is zero in float32, what is left of the gradient points elsewhere."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 10, (80,), generator=generator)
    z = torch.randn(80, 10, generator=generator) + F.one_hot(target, 10)
    z = size * z.float()
    exact = z.double().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(exact, target, reduction="sum"), exact)
    rows, cosines = scaling(z, target).tolist()
    assert rows == 80 and cosines / 80 == pytest.approx(row_cosine(-gradient, exact.detach()), abs=1e-5)


def test_certain_and_right_is_all_scaling():
    z = 40.0 * torch.eye(10)
    rows, cosines = scaling(z, torch.arange(10)).tolist()
    assert cosines / rows == pytest.approx(1.0)
    assert F.cross_entropy(z, torch.arange(10)) == 0, "as float32 sees it, there is nothing left to learn"

"""The Taylor radius: rates against float64 differences, the radius against the complex zeros that define it."""

from __future__ import annotations

import cmath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import root
from torch import nn
from torch.func import functional_call

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.kernels.taylor import radii, ratios, taylor
from stabwatch.kernels.taylor.naive import rates_by_difference, ratio
from stabwatch.signals.formulas import evaluate
from stabwatch.signals.reductions import EDGES


@given(st.integers(0, 2**16), st.integers(2, 6))
def test_ratios_are_the_definition(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    rates, logits = (torch.randn(3, 4, classes, generator=generator) for _ in range(2))
    truth = [ratio(a, z) for a, z in zip(rates.flatten(0, 1), logits.flatten(0, 1), strict=True)]
    np.testing.assert_allclose(ratios(rates, logits), truth, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_class_that_cannot_be_has_no_part(classes):
    """Also by a difference, where -inf less -inf is no number: as if the model did not have the class."""
    generator = torch.Generator().manual_seed(0)
    rates, logits = (torch.randn(4, classes, generator=generator) for _ in range(2))
    masked = torch.cat((logits, torch.full((4, 2), -torch.inf)), dim=1)
    wider = torch.cat((rates, torch.tensor([99.0, torch.nan]).expand(4, 2)), dim=1)
    found = ratios(wider, masked).tolist()
    assert found == [pytest.approx(ratio(a, z), rel=1e-6) for a, z in zip(wider, masked, strict=True)]
    if classes > 2:  # two classes that are left are held to the bound of many
        assert found == ratios(rates, logits).tolist()


@pytest.mark.parametrize(("gap", "spread"), [(0.0, 1.0), (2.0, 0.5), (-5.0, 3.0)])
def test_the_radius_of_two_classes_is_the_distance_of_the_nearest_zero(gap, spread):
    """exp(z1 + t a1) + exp(z2 + t a2) = 0, found by Newton from the formula's neighbourhood."""
    z, a = torch.tensor([0.0, gap]), torch.tensor([0.3, 0.3 + spread])
    radius = 1 / ratio(a, z)

    def f(t):
        value = sum(cmath.exp(float(z[k]) + complex(*t) * float(a[k])) for k in (0, 1))
        return [value.real, value.imag]

    found = root(f, [-gap / spread + 0.1, 2.5 / spread], tol=1e-12)
    assert found.success and abs(complex(*found.x)) == pytest.approx(radius, rel=1e-6)


@given(st.integers(0, 2**16))
def test_the_radius_of_many_classes_is_a_lower_bound(seed):
    """No zero of sum exp(z + t a) lies nearer: the winding number around the disc is zero."""
    generator = torch.Generator().manual_seed(seed)
    z, a = (torch.randn(4, generator=generator, dtype=torch.float64).numpy() for _ in range(2))
    radius = 0.999 / ratio(torch.tensor(a), torch.tensor(z))
    t = radius * np.exp(2j * np.pi * np.linspace(0, 1, 4001))
    values = np.exp(z[:, None] + t * a[:, None]).sum(axis=0)
    turns = np.diff(np.unwrap(np.angle(values))).sum() / (2 * np.pi)
    assert round(turns) == 0


def test_aggregates_merge_as_sums_and_maxima():
    found = torch.tensor([0.5, 1.5, 2.0])
    assert taylor(found, torch.tensor(3.0)).tolist() == [3.0, 4.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
def test_the_distribution_gives_its_quantiles(scale):
    """Measured: within 3 % of numpy's between the outermost edges."""
    found = scale * torch.randn(4000, generator=torch.Generator().manual_seed(0)).exp()
    parts = radii(found)
    assert parts[0] == 4000 and parts[1:-1].tolist() == [(found >= edge).sum().item() for edge in EDGES]
    for name, above in (("median", 0.5), ("percentile99", 0.01)):
        true = np.clip(np.quantile(found.numpy(), 1 - above), EDGES[0], EDGES[-1])
        assert evaluate(name, parts.numpy()) == pytest.approx(true, rel=0.05)
    halves = torch.stack([radii(part) for part in found.split(1500)])
    assert torch.cat((halves[:, :-1].sum(0), halves[:, -1:].amax(0))).equal(parts)


@pytest.mark.parametrize(
    ("found", "middle"), [([0.0] * 3, EDGES[0]), ([1e9] * 3, EDGES[-1]), ([0.1], 0.1), ([1.0], 1.0)]
)
def test_a_quantile_beyond_the_edges_is_the_outermost(found, middle):
    parts = radii(torch.tensor(found)).numpy()
    assert evaluate("median", parts) == evaluate("percentile99", parts) == pytest.approx(middle, rel=1e-6)


def test_what_is_no_number_is_far_out():
    parts = radii(torch.tensor([0.1, torch.nan, torch.nan]))
    assert evaluate("median", parts.numpy()) == EDGES[-1]


def small_gpt():
    torch.manual_seed(0)
    return GPT(DemoConfig(width=16, layers=2, heads=2, context=8)), (torch.randint(256, (3, 8)),)


def small_cnn():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    return model, (torch.randn(6, 1, 8, 8),)


@pytest.mark.parametrize("make", [small_gpt, small_cnn])
@pytest.mark.parametrize("forward_mode", [True, False])
def test_rates_against_differences_in_float64(make, forward_mode):
    """Measured: 2e-6 of the largest rate in forward mode; 3e-3 by the float32 difference over an eighth of the step."""
    model, args = make()
    model.train()
    probe = DirectionalDerivative(model, samples=2)
    model(*args)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = {name: 1e-2 * torch.randn_like(p) for name, p in before.items()}
    after = {name: p + step[name] for name, p in before.items()}
    state, buffers = torch.get_rng_state(), {name: b.clone() for name, b in model.named_buffers()}
    probe._forward_mode = forward_mode
    rates, logits = probe.rates(before, after)
    assert probe._forward_mode == forward_mode, "no operation of these models lacks forward mode"
    assert torch.get_rng_state().equal(state), "random numbers"
    assert all(b.equal(buffers[name]) for name, b in model.named_buffers()), "running statistics"
    assert all(p.grad is None for p in model.parameters())
    assert len(rates) == len(logits) == 2

    def function(parameters):
        torch.set_rng_state(state)
        given = {name: b.clone().double() if b.is_floating_point() else b.clone() for name, b in buffers.items()}
        cut = [x[:2].double() if x.is_floating_point() else x[:2] for x in args]
        return functional_call(model, {**given, **parameters}, tuple(cut))

    with torch.no_grad():
        exact = {name: after[name].double() - before[name].double() for name in before}
        truth = rates_by_difference(function, before, exact)
    assert (rates - truth).abs().max() <= (2e-5 if forward_mode else 2e-2) * truth.abs().max()
    probe.remove()


def test_the_slice_follows_the_batch_through_keywords_and_structures():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, pair, *, scale, extra):
            return {"logits": self.layer(pair[0] + pair[1]) * scale, "n": extra["n"]}

    model = Model()
    probe = DirectionalDerivative(model, samples=3)
    model([torch.randn(9, 4), torch.randn(9, 4)], scale=torch.tensor(2.0), extra={"n": 5, "x": torch.randn(9)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates, _ = probe.rates(before, {name: 2 * p for name, p in before.items()})
    assert rates.shape == (9, 3), "no tensor among the arguments themselves gives the batch: nothing is cut"


def test_a_model_without_logits_says_so():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).sum()

    model = Model()
    probe = DirectionalDerivative(model, samples=3)
    model(torch.randn(5, 4))
    parameters = dict(model.named_parameters())
    with pytest.raises(ValueError, match="gives no logits"):
        probe.rates(parameters, parameters)


def test_a_step_of_the_radius_is_where_the_series_stops_to_converge():
    """Softmax regression: the Taylor series of the loss along the step converges at 0.8 of the radius, not at 1.4."""
    z, a = torch.tensor([0.4, -0.2], dtype=torch.float64), torch.tensor([1.0, -1.5], dtype=torch.float64)
    radius = 1 / ratio(a, z)
    order = 60
    t = 0.9 * radius * np.exp(2j * np.pi * np.arange(512) / 512)
    values = np.log(np.exp(z[0].item() + t * a[0].item()) + np.exp(z[1].item() + t * a[1].item()))
    series = np.fft.fft(values).real[:order] / 512 / (0.9 * radius) ** np.arange(order)

    def error(share):
        x = share * radius
        truth = float(torch.logsumexp(z + x * a, 0))
        return abs(sum(c * x**k for k, c in enumerate(series)) - truth)

    assert error(0.8) < 1e-4 < 1.0 < error(1.4)


def test_cross_entropy_is_what_the_radius_is_of():
    z, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert F.cross_entropy(z, target) == pytest.approx(
        float((torch.logsumexp(z, 1) - z.gather(1, target[:, None])[:, 0]).mean()), rel=1e-6
    )

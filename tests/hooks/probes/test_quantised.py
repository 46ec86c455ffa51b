"""Quantised weights of torch.ao, torchao and other authors: against the published definition, step by step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.intrinsic.qat as fused
import torch.ao.nn.qat as qat
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import FakeQuantize, QConfig
from torch.ao.quantization import observer as observers
from torch.nn.utils import parametrize

from stabwatch.hooks.probes.last_update import NUMBERS, stride
from stabwatch.hooks.probes.quantised import NO_FIT, NO_GRID, NORMALISED, OFF
from stabwatch.kernels.quantised import quantised
from stabwatch.kernels.quantised.naive import history

SIGNALS = ("quantised_flip_ratio", "quantised_oscillation_ratio", "quantised_boundary_ratio")
CHANNELS = FakeQuantize.with_args(
    observer=observers.MovingAveragePerChannelMinMaxObserver, quant_min=-4, quant_max=3, dtype=torch.qint8,
    qscheme=torch.per_channel_symmetric, ch_axis=0,
)  # fmt: skip
AFFINE = FakeQuantize.with_args(
    observer=observers.MovingAverageMinMaxObserver, quant_min=0, quant_max=7, dtype=torch.quint8,
    qscheme=torch.per_tensor_affine,
)  # fmt: skip


def config(weight):
    return QConfig(activation=FakeQuantize.with_args(observer=observers.MovingAverageMinMaxObserver), weight=weight)


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class LsqQuan(nn.Module):
    """With the names of lsq-net."""

    def __init__(self, step):
        super().__init__()
        self.thd_neg, self.thd_pos, self.s = -4, 3, nn.Parameter(torch.tensor(step))

    def forward(self, x):
        return Round.apply((x / self.s).clamp(self.thd_neg, self.thd_pos)) * self.s


class LsqLinear(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.quan_w_fn = LsqQuan(0.1)

    def forward(self, x):
        return nn.functional.linear(x, self.quan_w_fn(self.weight), self.bias)


def parametrised():
    layer = nn.Linear(12, 16)
    parametrize.register_parametrization(layer, "weight", AFFINE())
    return layer


def torchao_linear(**granularity):
    torchao_qat = pytest.importorskip("torchao.quantization.qat", reason="torchao is not installed")
    wanted = torchao_qat.IntxFakeQuantizeConfig(torch.int4, **granularity)
    return torchao_qat.linear.FakeQuantizedLinear(12, 16, True, None, wanted)


LAYERS = {
    "torch.ao, channels": lambda: qat.Linear(12, 16, qconfig=config(CHANNELS)),
    "torch.ao, affine": lambda: qat.Linear(12, 16, qconfig=config(AFFINE)),
    "lsq": lambda: LsqLinear(12, 16),
    "parametrised": parametrised,
    "torchao, channels": lambda: torchao_linear(granularity="per_channel"),
    "torchao, groups": lambda: torchao_linear(group_size=4),
}


def in_levels(layer):
    """w / scale + zero point, as this step's forward had them, rounded as torch.ao does: (numbers,)."""
    if hasattr(layer, "parametrizations"):
        weight, quantiser = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    else:
        names = ("weight_fake_quant", "weight_fake_quantizer", "quan_w_fn")
        weight, quantiser = layer.weight, next(getattr(layer, n) for n in names if hasattr(layer, n))
    scale = quantiser.s if hasattr(quantiser, "s") else quantiser.scale
    zero = getattr(quantiser, "zero_point", torch.zeros(()))
    rows = weight.detach().unflatten(1, (scale.shape[-1] if scale.dim() == 2 else 1, -1))
    if scale.numel() > 1:
        scale, zero = (x.reshape(len(weight), -1, 1) for x in (scale, zero))
    return ((rows * (1 / scale.detach())).double() + zero.double()).flatten().tolist()


def train(model, steps, seen=lambda: None, rate=0.3):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(1)
    yield optimizer
    for _ in range(steps):
        x = torch.randn(16, 12, generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        seen()
        optimizer.step()
    yield optimizer


def run(model, attach, steps, seen=lambda: None, **settings):
    loop = train(model, steps, seen, **settings)
    watch = attach(model, next(loop))
    next(loop)
    assert not watch._session.isolation.errors
    return watch, attach.finish()


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_what_the_papers_define(kind, attach):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    model, visits = nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 5)), []
    _, log = run(model, attach, 40, lambda: visits.append(in_levels(layer)))
    low, high = (-8, 7) if "torchao" in kind else (0, 7) if kind in ("torch.ao, affine", "parametrised") else (-4, 3)
    steps, near = log.series(SIGNALS[2], "0")
    visited = [visits[int(s)] for s in steps]
    assert len(visited) > 30
    levels, flips = history(visited, low, high)
    size = len(visited[0])
    assert near == pytest.approx([n / count for count, n in levels])
    for signal, field in zip(SIGNALS[:2], (1, 2), strict=True):
        later, found = log.series(signal, "0")
        assert later.tolist() == steps.tolist()[1:]
        assert found == pytest.approx([f[field] / size for f in flips])
    assert max(f[1] for f in flips) > 0 and max(n for _, n in levels) > 0


@given(st.integers(0, 2**16), st.sampled_from([(-4, 3), (0, 15), (-128, 127)]), st.floats(0.01, 2.0))
def test_of_any_path_of_weights(seed, limits, size):
    draw = torch.Generator().manual_seed(seed)
    # multiples of 1/64 are exact in both, and none is 0.005 of a level from a boundary
    visits = (torch.randn(12, 40, generator=draw) * size * limits[1] * 64).round() / 64
    one, zero, memory = torch.ones(40), torch.zeros(40), None
    levels, flips = history(visits.tolist(), *limits)
    for i, visit in enumerate(visits):
        mine, moved, memory = quantised(visit, one, zero, *limits, memory)
        assert mine.tolist() == pytest.approx(levels[i])
        assert moved is None if i == 0 else tuple(moved.tolist()) == flips[i - 1]


@pytest.mark.parametrize("zero", [0, 3])
def test_the_integers_are_those_of_torch(zero):
    weights = torch.cat((torch.randn(4000), torch.arange(-80, 80) / 16))
    scale, zero_point = torch.tensor(0.125), torch.tensor(zero)
    _, _, memory = quantised(weights, scale, zero_point, -4, 3, None)
    truth = torch.fake_quantize_per_tensor_affine(weights, scale, zero_point.int(), -4, 3) / scale + zero
    assert torch.equal(memory.integers.float(), truth)


def test_spread_evenly_is_one_and_what_is_not_finite_is_left_out():
    x = torch.linspace(-6, 6, 100_001)
    x[::10] = torch.nan
    levels, _, memory = quantised(x, torch.ones(()), torch.zeros(()), -4, 3, None)
    assert levels[1] / levels[0] == pytest.approx(1.0, rel=0.02)
    x[1::10] = torch.nan
    _, flips, _ = quantised(x, torch.ones(()), torch.zeros(()), -4, 3, memory)
    assert flips.tolist() == [x.isfinite().sum(), 0, 0], "a number that becomes NaN is no flip"


def test_a_weight_that_goes_back_and_forth_oscillates_and_one_that_moves_on_does_not():
    back, on, memory = torch.zeros(4), torch.zeros(4), None
    for i in range(8):
        back[:] = i % 2
        on[:] = i
        _, found, memory = quantised(torch.cat((back, on)), torch.ones(()), torch.zeros(()), -8, 7, memory)
    assert found.tolist() == [8, 8, 4]


def test_a_large_weight_is_sampled(attach):
    model = nn.Sequential(nn.Flatten(), qat.Linear(12, 9000, qconfig=config(CHANNELS)), nn.Linear(9000, 5))
    loop = train(model, 3, rate=0.01)
    watch = attach(model, next(loop))
    next(loop)
    (mine,) = watch._session._taps.now.steps.quantised._weights
    assert mine.memory.integers.numel() == 12 * 9000 / stride(12 * 9000) <= NUMBERS
    assert mine.memory.integers.dtype == torch.int16


@pytest.mark.parametrize("kind", ["torch.ao, channels", "lsq", "parametrised"])
def test_training_is_the_same(kind, attach):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(LAYERS[kind](), nn.Tanh(), nn.Linear(16, 5))
        loop = train(model, 20)
        optimizer = next(loop)
        if watched:
            attach(model, optimizer)
        next(loop)
        ends.append(copy.deepcopy(dict(model.state_dict())))
    attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


class Own(nn.Linear):
    """Rounds its weight by code of its own: ternary as BitNet's, or with a scale for each input or for each four."""

    def __init__(self, scale, low, high):
        super().__init__(12, 16)
        self.of, self.low, self.high = scale, low, high

    def forward(self, x):
        scale = self.of(self.weight.detach())
        scale = scale.repeat_interleave(4, 1) if scale.dim() == 2 else scale
        return nn.functional.linear(x, Round.apply((self.weight / scale).clamp(self.low, self.high)) * scale, self.bias)


SCALES = {
    "ternary": (lambda w: w.abs().mean().clamp(min=1e-5), -1, 1, 0),
    "inputs": (lambda w: w.abs().amax(0) / 3, -4, 3, 1),
    "groups": (lambda w: w.unflatten(1, (-1, 4)).abs().amax(2) / 7, -8, 7, 0),
}


@pytest.mark.parametrize("kind", SCALES)
def test_a_quantiser_of_ones_own_is_described(kind, attach):
    scale, low, high, axis = SCALES[kind]
    visits = []

    def look():
        weight = layer.weight.detach()
        unit = scale(weight)
        unit = unit.repeat_interleave(4, 1) if unit.dim() == 2 else unit
        visits.append((weight * (1 / unit)).double().flatten().tolist())

    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        layer = Own(scale, low, high)
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 5))
        loop = train(model, 30, look if watched else lambda: None)
        optimizer = next(loop)
        if watched:
            watch = attach(model, optimizer)
            watch.quantised(layer.weight, scale, low, high, axis=axis)
        next(loop)
        ends.append(copy.deepcopy(dict(model.state_dict())))
    assert not watch._session.isolation.errors
    log = attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))
    steps, near = log.series(SIGNALS[2], "0")
    visited = [visits[int(s)] for s in steps]
    assert len(visited) == 30
    levels, flips = history(visited, low, high)
    assert near == pytest.approx([n / count for count, n in levels])
    for signal, field in zip(SIGNALS[:2], (1, 2), strict=True):
        assert log.series(signal, "0")[1] == pytest.approx([f[field] / len(visited[0]) for f in flips])
    assert max(f[1] for f in flips) > 0


def test_what_is_described_comes_before_what_is_found_and_stays_when_the_model_changes(attach):
    layer = LsqLinear(12, 16)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 5))
    loop = train(model, 6)
    watch = attach(model, next(loop))
    watch.quantised(layer.weight, layer.quan_w_fn.s, -4, 3)
    watch.quantised(layer.weight, layer.quan_w_fn.s, -2, 1)
    model[2].extra = nn.Linear(3, 3)
    next(loop)
    (mine,) = watch._session._taps.now.steps.quantised._weights
    assert (mine.quantiser.low, mine.quantiser.high) == (-2, 1) and mine.memory.integers.max() <= 1
    assert len(attach.finish().series(SIGNALS[0], "0")[0]) == 5


def test_what_is_described_wrongly_is_an_error_of_no_training(attach):
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
    loop = train(model, 3)
    watch = attach(model, next(loop))
    watch.quantised(nn.Parameter(torch.ones(3)), 0.1, -4, 3)
    watch.quantised(model[0].weight, 0.1, 3, -4)
    watch.quantised(model[2].weight, torch.ones(3), -4, 3)
    next(loop)
    assert watch._session.isolation.errors == {"quantised": 2}
    assert {e["site"]: e["reason"] for e in watch.coverage()["unmeasured"] if e["tap"] == "quantised"} == {"2": NO_FIT}
    attach.finish()


def unmeasured(layer, attach):
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(16, 12))
    watch, _ = run(model, attach, 4)
    return {e["site"]: e["reason"] for e in watch.coverage()["unmeasured"] if e["tap"] == "quantised"}


def test_what_cannot_be_measured_says_why(attach):
    class FloatQuantizer(nn.Module):
        def forward(self, x):
            return x

    class Odd(LsqLinear):
        def __init__(self):
            super().__init__(12, 16)
            self.quan_w_fn.s = nn.Parameter(torch.full((3,), 0.1))

        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    hidden, off = nn.Linear(12, 16), qat.Linear(12, 16, qconfig=config(CHANNELS))
    hidden.weight_quantizer = FloatQuantizer()
    off.weight_fake_quant.disable_fake_quant()
    assert unmeasured(hidden, attach) == {"0": NO_GRID}
    assert unmeasured(off, attach) == {"0": OFF}
    assert unmeasured(Odd(), attach) == {"0": NO_FIT}
    normalised = fused.ConvBn1d(3, 8, 3, qconfig=config(CHANNELS))
    assert unmeasured(nn.Sequential(nn.Unflatten(1, (3, 4)), normalised), attach) == {"0.1": NORMALISED}


def test_a_model_without_quantisers_has_no_such_signals_and_no_reasons(attach):
    class Scaled(nn.Linear):
        """A learned factor is no quantiser."""

        def __init__(self):
            super().__init__(12, 16)
            self.scale, self.alpha = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
            self.weight_scale = nn.Identity()

    watch, log = run(nn.Sequential(Scaled(), nn.Tanh(), nn.Linear(16, 5)), attach, 4)
    assert not any(k.signal in SIGNALS for k in log.keys)
    assert not any(e["tap"] == "quantised" for e in watch.coverage()["unmeasured"])

"""The reductions of the deep tier against their float64 definitions. Measured errors stand beside the tolerances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabwatch.kernels.classes import classes
from stabwatch.kernels.classes.naive import classes as naive_classes
from stabwatch.kernels.mean_mode import dead_units, mean_mode
from stabwatch.kernels.mean_mode.naive import mean_mode as naive_mean_mode
from stabwatch.kernels.precision import precision, precisions, rounding, roundings
from stabwatch.kernels.precision.naive import precision as naive_precision
from stabwatch.kernels.precision.naive import rounding as naive_rounding
from stabwatch.kernels.router import router
from stabwatch.kernels.router.naive import router as naive_router
from stabwatch.kernels.shape import shape
from stabwatch.kernels.shape.naive import shape as naive_shape
from stabwatch.kernels.tokens import tokens
from stabwatch.kernels.tokens.eager import MOST
from stabwatch.kernels.tokens.naive import tokens as naive_tokens
from stabwatch.signals.reductions import ROUNDING

SEEDS = st.integers(0, 2**16)
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def randn(*size: int, seed: int = 0, mean: float = 0.0, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) + mean).to(kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mean", [0.0, 1.0, 300.0])
def test_mean_mode(mean, kind):
    """Measured: 2e-7 without a mean; 4e-5 of the centred part where the mean is 300 times the spread."""
    y, d = randn(3, 17, 20, mean=mean, kind=kind), randn(3, 17, 11, seed=1, mean=mean, kind=kind)
    torch.testing.assert_close(mean_mode(y, d).double(), naive_mean_mode(y, d), rtol=2e-4, atol=1e-4)


def test_the_gradient_of_a_wide_layer_whose_elements_are_alike():
    """Measured: 2e-7; by one norm over 16 million equal numbers 1.9e-2."""
    y, d = torch.full((1, 2, 4096), 0.3), torch.full((1, 2, 4096), 0.5)
    whole = (2 * y[0, 0, 0].double().item() * 0.5) ** 2 * 4096**2
    samples, mean, centred, total, _ = mean_mode(y, d).tolist()
    assert samples == 1 and mean == pytest.approx(whole, rel=2e-5) and total == pytest.approx(whole, rel=2e-5)
    assert centred < 1e-9 * whole


def test_the_parts_of_the_gradient_add_up_to_the_gradient_that_autograd_finds():
    layer = torch.nn.Linear(7, 5)
    y = randn(4, 9, 7, mean=1.0).requires_grad_()
    out = layer(y)
    out.retain_grad()
    (out.square().sum() + out.sum()).backward()
    samples, mean, centred, whole, outer = mean_mode(y, out.grad).tolist()
    assert samples == 4
    assert whole == pytest.approx(layer.weight.grad.square().sum().item(), rel=1e-5)
    assert outer > 0 and mean > 0 and centred > 0


def test_one_token_direction_is_all_mean_mode_and_centred_tokens_have_none():
    y, d = randn(2, 1, 6).expand(2, 8, 6), randn(2, 1, 4, seed=1).expand(2, 8, 4)
    _, mean, centred, whole, _ = mean_mode(y, d).tolist()
    assert centred < 1e-10 * mean and whole == pytest.approx(mean)
    y = randn(2, 8, 6)
    _, mean, centred, _, _ = mean_mode(y - y.mean(1, keepdim=True), randn(2, 8, 4, seed=1)).tolist()
    assert mean < 1e-10 * centred


def groups_of(batch, count):
    """Two kinds of tokens, padding at the end, one sample without the second kind, one with a single token of it."""
    first = torch.zeros(batch, count, dtype=torch.bool)
    second = torch.zeros(batch, count, dtype=torch.bool)
    for b in range(batch):
        first[b, : 5 + b] = True
    second[1, 9:10] = True
    second[2:, 9:14] = True
    return torch.stack((first, second))


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_tokens_of_different_kinds_are_averaged_apart(mean):
    """Measured: 2e-7."""
    y, d, groups = randn(4, 17, 20, mean=mean), randn(4, 17, 11, seed=1, mean=mean), groups_of(4, 17)
    torch.testing.assert_close(mean_mode(y, d, groups).double(), naive_mean_mode(y, d, groups), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mean_mode(y, d, groups)[3:], mean_mode(y, d)[3:])  # the whole is the whole
    torch.testing.assert_close(tokens(y, groups).double(), naive_tokens(y, groups), rtol=1e-5, atol=1e-4)


def test_one_group_of_all_is_no_group():
    y, d, all_of_them = randn(3, 8, 6), randn(3, 8, 4, seed=1), torch.ones(1, 3, 8, dtype=torch.bool)
    torch.testing.assert_close(mean_mode(y, d, all_of_them), mean_mode(y, d))
    torch.testing.assert_close(tokens(y, all_of_them), tokens(y))
    none = torch.zeros(1, 3, 8, dtype=torch.bool)
    assert tokens(y, none).tolist() == [0.0] * 4


def test_padding_may_hold_anything():
    x, groups = randn(2, 9, 6), torch.ones(1, 2, 9, dtype=torch.bool)
    groups[..., 5:] = False
    x[:, 5:] = torch.nan
    torch.testing.assert_close(tokens(x, groups), tokens(x[:, :5]))


def test_dead_units():
    y = randn(2, 5, 6)
    y[..., 1], y[..., 4] = 0.0, 0.0
    y[0, 0, 4] = 1e-30
    assert dead_units(y).tolist() == [6.0, 1.0]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mean", [0.0, 5.0, 1000.0])
def test_tokens(mean, kind):
    """Measured: 3e-7 relative, and for bfloat16 inputs the same, as both read the same numbers."""
    x = randn(3, 40, 24, mean=mean, kind=kind)
    torch.testing.assert_close(tokens(x).double(), naive_tokens(x), rtol=1e-5, atol=1e-4)


def test_no_more_tokens_are_compared_than_are_said():
    x = randn(2, 2 * MOST - 1, 8)
    torch.testing.assert_close(tokens(x).double(), naive_tokens(x[:, ::2]), rtol=1e-5, atol=1e-4)


def test_equal_tokens_are_alike_and_a_zero_token_is_no_nan():
    x = randn(2, 1, 8).expand(2, 6, 8)
    count, cosine, _, centred = tokens(x).tolist()
    assert cosine / count == pytest.approx(1.0) and centred < 1e-9
    assert tokens(torch.zeros(1, 4, 8)).isfinite().all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_shape(mean, kind):
    """Measured: 4e-7 relative."""
    x = randn(50, 200, mean=mean, kind=kind)
    x[3, 7] = x[9, 100] = 30.0
    torch.testing.assert_close(shape(x).double(), naive_shape(x), rtol=5e-6, atol=0)
    assert shape(x)[3] >= 2


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, decades=st.floats(0.0, 12.0), scale=st.floats(-12.0, 6.0))
def test_precision_is_what_casting_there_and_back_loses(seed, decades, scale):
    """Exact up to two elements that lie on a boundary (measured: none in 2,000 draws)."""
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** (scale + decades * (torch.rand(5, 75, generator=generator) - 0.5))
    x = size * torch.randn(5, 75, generator=generator)
    x[torch.rand(5, 75, generator=generator) < 0.1] = 0.0
    assert (precision(x).double() - naive_precision(x)).abs().max() <= 2


@pytest.mark.parametrize("kind", ["normal", "heavy", "outliers", "tiny", "ties"])
def test_rounding_is_the_error_of_a_round_trip(kind):
    x = randn(12, 70)
    if kind == "heavy":
        x = x / randn(12, 70, seed=1).abs().clamp(min=0.05)
    if kind == "outliers":
        x[:, 3] *= 50
    if kind == "tiny":
        x = x * 1e-7
    if kind == "ties":
        x = (x * 4).round() / 4
    torch.testing.assert_close(rounding(x).double(), naive_rounding(x), rtol=2e-3, atol=0.0)


def test_errors_of_known_formats_and_of_adverse_tensors():
    """Normal numbers: about 2.6, 5.3, 11.5 and 9.5 % (of MXFP4 and NVFP4 the figures of published comparisons)."""
    _, squares, *errors = rounding(randn(400, 256)).tolist()
    found = [(e / squares) ** 0.5 for e in errors]
    assert [found[i] for i in (0, 1, 3, 4)] == pytest.approx([0.026, 0.053, 0.115, 0.095], rel=0.05)
    assert found[2] == pytest.approx(randn(400, 256).abs().max().item() / 127 / 12**0.5, rel=0.02)
    assert found[5:9] == pytest.approx([0.083, 0.095, 0.115, 0.095], rel=0.05), "HiF4, UE5M3, rotated normal numbers"
    assert found[10] / found[3] == pytest.approx(2**0.5, rel=0.1), "stochastic rounding doubles the squared error"
    assert rounding(torch.zeros(3, 5)).tolist() == [15.0, *[0.0] * 13]
    broken = torch.tensor([[1.0, float("nan"), float("inf"), 2.0]])
    assert rounding(broken)[:2].tolist() == [2.0, 5.0] and torch.isfinite(rounding(broken)).all()


def test_formats_of_several_tensors_are_those_of_each():
    """Also where some have blocks that are not full, and where they do not all fit in together."""
    tensors = [randn(1, 7), torch.zeros(2, 3), randn(40, 65, seed=1) * 1e-6, randn(300, 500), randn(3, 64).half()]
    tensors[2][3, 5], tensors[0][0, 2] = float("inf"), float("nan")
    samples = [x[:9] for x in tensors]
    for x, found in zip(tensors, precisions(tensors), strict=True):
        assert found.tolist() == precision(x).tolist()
    for x, whole, found in zip(samples, tensors, roundings(samples, tensors), strict=True):
        torch.testing.assert_close(found, rounding(x, whole), rtol=1e-6, atol=0.0)
    assert precisions([]) == roundings([], []) == []


def test_what_a_scale_of_the_tensor_and_a_rotation_do():
    """Small gradients are nothing to e4m3 scales alone; a rotation spreads outliers, which NVFP4 does not need."""

    def errors(x):
        names = [field.name for field in ROUNDING.fields[2:]]
        return dict(zip(names, ((rounding(x)[2:] / rounding(x)[1]) ** 0.5).tolist(), strict=True))

    x = randn(400, 256)
    small = errors(x * 1e-7)
    assert small["nvfp4_unscaled"] == 1.0 and small["nvfp4"] < 0.1 and small["fp4_ue5m3"] == 1.0
    assert errors(x * 1e-3)["fp4_ue5m3"] < 0.1 < errors(x * 1e-3)["nvfp4_unscaled"]
    x[:, ::100] *= 50
    outliers = errors(x)
    assert outliers["mxfp4_rotated"] < 0.9 * outliers["mxfp4"]
    assert outliers["nvfp4_rotated"] > outliers["nvfp4"]


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_stochastic_rounding_has_the_expected_error(seed):
    """Drawn, with the same scales, many times."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 32, generator=draw)
    scale = torch.exp2(torch.floor(torch.log2(x.abs().amax(dim=1, keepdim=True))) - 2)
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    size = (x.abs() / scale).clamp(max=6)
    low = torch.searchsorted(grid, size, right=True).sub(1).clamp(max=6)
    share = (size - grid[low]) / (grid[low + 1] - grid[low])
    up = torch.rand(4000, 4, 32, generator=draw) < share
    rounded = torch.where(up, grid[low + 1], grid[low]) * scale
    found = (rounded - x.abs()).square().sum(dim=(1, 2)).mean().item()
    assert rounding(x)[12].item() == pytest.approx(found, rel=0.02)


def test_precision_of_adverse_tensors():
    assert precision(torch.zeros(3, 5)).tolist() == [15.0, 15.0, 0, 0, 0, 0, 0, 0]
    broken = torch.tensor([[1.0, torch.nan, torch.inf, 1e-9]])
    assert precision(broken)[:4].tolist() == [4.0, 0.0, 1.0, 2.0]


@given(seed=SEEDS, top_k=st.integers(1, 4))
def test_router(seed, top_k):
    logits = 3 * randn(30, 6, seed=seed)
    torch.testing.assert_close(router(logits, top_k).double(), naive_router(logits, top_k), rtol=1e-5, atol=1e-5)


def test_a_router_that_sends_all_to_one_expert():
    logits = torch.zeros(10, 4)
    logits[:, 2] = 100.0
    tokens_, entropy, _, violation = router(logits, 1).tolist()
    assert (tokens_, violation) == (10.0, 3.0) and entropy == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_classes(kind):
    logits = 10 * randn(40, 300, kind=kind)
    torch.testing.assert_close(classes(logits).double(), naive_classes(logits), rtol=1e-5, atol=1e-5)


@given(seed=SEEDS, cut=st.integers(1, 5))
def test_any_split_over_samples_merges_to_the_whole(seed, cut):
    """All of these are sums over samples or rows (the router's violation apart, which is a maximum of parts)."""
    x, d = randn(6, 8, 10, seed=seed), randn(6, 8, 4, seed=seed + 1)
    for f in (tokens, lambda part: shape(part.flatten(0, 1))):
        torch.testing.assert_close(f(x[:cut]) + f(x[cut:]), f(x), rtol=1e-4, atol=1e-4)
    whole = mean_mode(x[:cut], d[:cut])[4] + mean_mode(x[cut:], d[cut:])[4]
    torch.testing.assert_close(whole, mean_mode(x, d)[4], rtol=1e-4, atol=1e-4)


def test_rounding_is_the_same_inside_autocast():
    """The rotation is a product, which autocast would compute in bfloat16."""
    x = torch.randn(6, 40)
    plain = rounding(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rounding(x), plain)

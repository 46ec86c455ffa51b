"""The Triton kernels against their float64 definitions; outputs and aggregates begin full of NaN.

Measured in the interpreter: sums 2.3e-7 of the sum of magnitudes at worst, counts and maxima exact.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from stabwatch.kernels import constants
from stabwatch.kernels.column_moments import eager as eager_columns
from stabwatch.kernels.column_moments import fused as fused_columns
from stabwatch.kernels.column_moments import naive as naive_columns
from stabwatch.kernels.exponent_histogram import BINS
from stabwatch.kernels.exponent_histogram import eager as eager_histogram
from stabwatch.kernels.exponent_histogram import fused as fused_histogram
from stabwatch.kernels.exponent_histogram import naive as naive_histogram
from stabwatch.kernels.launch import INTERPRETED, update
from stabwatch.kernels.moments import eager, fused, naive
from stabwatch.kernels.moments.fused import BLOCK
from stabwatch.kernels.multi_tensor import fused as fused_lists
from tests.sampling import sample

pytestmark = [
    pytest.mark.usefixtures("poison"),
    # Numpy, which the interpreter stands on, reports what float32 overflows to.
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = torch.finfo(torch.float32).tiny
G = torch.Generator().manual_seed(0)
few = settings(max_examples=10)


def _cases():
    x = torch.randn(7, 129, generator=G)
    yield "normal", x
    yield "one element", torch.tensor([-3.0])
    yield "no dimension", torch.tensor(2.5)
    yield "empty", torch.empty(0)
    yield "zero size", torch.empty(3, 0, 2)
    yield "large mean, small spread", 1e4 + 1e-2 * x
    yield "tiny", x * 1e-18
    yield "huge", x * 1e17
    yield "transposed", x.t()
    yield "permuted", torch.randn(3, 5, 7, generator=G).permute(2, 0, 1)
    yield "not dense", x.t()[::3]
    yield "expanded", torch.randn(1, 9, generator=G).expand(5, 9)
    yield "begins off any alignment", torch.randn(4000, generator=G)[3:]
    for n in (BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 5):
        yield f"{n} elements", torch.randn(n, generator=G)
    yield "bfloat16", x.bfloat16()
    yield "float16", x.half()
    yield "float64", x.double()
    yield "zeros", torch.tensor([0.0, -0.0, 1.0, 0.0])
    bad = x.clone()
    bad[0, 0], bad[1, 1], bad[2, 2], bad[3, 3] = math.nan, math.inf, -math.inf, 0.0
    yield "some not finite", bad
    yield "some not finite, bfloat16", bad.bfloat16()
    yield "all NaN", torch.full((4,), math.nan)


CASES = dict(_cases())
LONG = f"{9 * BLOCK + 5} elements"


def assert_moments(found, x):
    """The four or seven fields of `found` are those of x."""
    truth = naive.moments_full(x).tolist()
    finite = x.double()[torch.isfinite(x)]
    slack = [0, 1e-6 * finite.abs().sum().item(), TINY, TINY, 0, 0, 0]
    rounded = torch.tensor(truth).float().tolist()  # beyond its largest number float32 says infinity
    kept = range(7) if len(found) == 7 else (0, 2, 5, 6)
    for value, i in zip(found.tolist(), kept, strict=True):
        assert value == pytest.approx(rounded[i], rel=1e-6, abs=slack[i]), f"field {i}"


@pytest.mark.parametrize("name", CASES)
def test_moments(name):
    x = CASES[name].to(DEVICE)
    assert_moments(fused.moments(x), CASES[name])
    assert_moments(fused.moments_full(x), CASES[name])
    assert_moments(eager.moments_full(x), CASES[name])


@pytest.mark.parametrize("name", sample([n for n in CASES if n != "float64"], every=4))
def test_moments_full_traced(name):
    torch._dynamo.reset()
    found = torch.compile(eager.moments_full, fullgraph=True, backend="eager")(CASES[name])
    assert_moments(found, CASES[name])


def test_the_last_bits_of_a_long_sum():
    """Equal numbers, whose rounding errors all point the same way. Measured: 3.2e-7; see below for a running sum."""
    x = torch.full((300_001,), 0.37, device=DEVICE)
    found = fused.moments_full(x)[2].item()
    assert found == pytest.approx(x.double().square().sum().item(), rel=1e-6)
    running = np.cumsum(np.full(len(x), 0.37, np.float32) ** 2, dtype=np.float32)[-1]
    assert abs(running / found - 1) > 1e-4, "the case is adversarial"


def test_equal_inputs_give_equal_bits():
    x = torch.randn(50_001, generator=G).to(DEVICE)
    assert torch.equal(fused.moments_full(x), fused.moments_full(x.clone()))


@few
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=60), st.data())
def test_moments_of_any_split_merge_to_those_of_the_whole(numbers, data):
    """Whole numbers: their sums are exact in any order."""
    x = torch.tensor(numbers, dtype=torch.float32, device=DEVICE)
    cut = data.draw(st.integers(0, len(numbers)))
    a, b = fused.moments_full(x[:cut]), fused.moments_full(x[cut:])
    merged = torch.cat((a[:6] + b[:6], torch.maximum(a[6:], b[6:])))
    assert torch.equal(merged, fused.moments_full(x))


@pytest.mark.parametrize("fields", [4, 7])
@pytest.mark.parametrize("name", ["normal", "huge", "not dense", "begins off any alignment", "float64", "float16", LONG,
                                  "some not finite", "all NaN"])  # fmt: skip
def test_grouped_moments(name, fields):
    tensors = [CASES[name], CASES["normal"], CASES["bfloat16"], CASES["empty"], CASES[name] * 2]
    out = torch.zeros(4, fields, device=DEVICE)
    out[:, -1] = -math.inf
    fused_lists.grouped_moments([x.to(DEVICE) for x in tensors], [2, 0, 0, 2, 2], out)
    for row, mine in ((0, tensors[1:3]), (2, [tensors[0], tensors[4]])):
        assert_moments(out[row], torch.cat([x.double().flatten() for x in mine]))
    unit = [0.0] * (fields - 1) + [-math.inf]
    assert out[1].tolist() == out[3].tolist() == unit, "rows without an element stay as they were"


def test_grouped_moments_merge_into_what_is_there():
    tensors = [CASES["normal"].to(DEVICE), CASES["transposed"].to(DEVICE)]
    once = torch.zeros(1, 4, device=DEVICE)
    fused_lists.grouped_moments(tensors, [0, 0], once)
    twice = torch.zeros(1, 4, device=DEVICE)
    for x in tensors:
        fused_lists.grouped_moments([x], [0], twice)
    assert twice[0].tolist() == pytest.approx(once[0].tolist(), rel=1e-6)


def test_tables_are_built_once_and_follow_tensors_that_move():
    fused_lists._plan.cache_clear()
    constants._kept.cache_clear()
    x = [torch.randn(5, generator=G).to(DEVICE), torch.randn(7, generator=G).to(DEVICE)]
    moved = [y.clone() for y in x]
    found = []
    for tensors in (x, x, moved):
        out = torch.zeros(2, 4, device=DEVICE)
        fused_lists.grouped_moments(tensors, [1, 0], out)
        found.append(out)
    assert fused_lists._plan.cache_info().misses == 1
    assert constants._kept.cache_info().misses == 2
    assert found[0].equal(found[1]) and found[0].equal(found[2])


def test_grouped_change():
    before = [CASES["normal"], CASES["bfloat16"], CASES["transposed"], CASES[f"{BLOCK + 1} elements"], CASES["empty"]]
    after = [(x * 1.5).contiguous() for x in before]
    copies = [x.clone().to(DEVICE) for x in before]
    out = torch.zeros(3, 3, device=DEVICE)
    group = [1, 0, 1, 0, 0]
    fused_lists.grouped_change(copies, [x.to(DEVICE) for x in after], group, out)
    for copy, old, new in zip(copies, before, after, strict=True):
        assert copy.cpu().equal(old - new)
    for row in (0, 1):
        old, new = (torch.cat([x.double().flatten() for x, g in zip(xs, group, strict=True) if g == row])
                    for xs in (before, after))  # fmt: skip
        truth = [len(old), (old - new).square().sum().item(), old.square().sum().item()]
        assert out[row].tolist() == pytest.approx(truth, rel=1e-6)
    assert out[2].tolist() == [0, 0, 0]


def test_changes_that_the_kernel_leaves_to_plain_torch():
    wide = CASES["float64"].to(DEVICE)
    out = torch.zeros(1, 3, device=DEVICE)
    assert not fused_lists.takes_change([wide], [wide], out)
    assert not fused_lists.takes_change([CASES["not dense"].to(DEVICE)], [CASES["not dense"].to(DEVICE)], out)
    assert fused_lists.takes_change([CASES["transposed"].to(DEVICE)], [CASES["not dense"].to(DEVICE)], out)
    assert not fused_lists.takes_moments([torch.zeros(3, dtype=torch.float8_e5m2, device=DEVICE)], out)


COLUMNS = {
    "one": (1, 1, 1),
    "odd": (3, 37, 70),
    "many tokens": (1, 1200, 3),
    "many features": (1, 3, 300),
    "no tokens": (2, 0, 5),
    "no features": (2, 5, 0),
    "no samples": (0, 5, 2),
}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", COLUMNS)
def test_column_sums(shape, kind):
    """Measured: 2e-7 of the sum of magnitudes."""
    x = (torch.randn(COLUMNS[shape], generator=G) + 3).to(kind)
    truth = naive_columns.column_sums(x)
    for layout in (x, x.mT.contiguous().mT, x.repeat(1, 1, 2)[..., : x.shape[2]]):
        found = fused_columns.column_sums(layout.to(DEVICE)).cpu().double()
        assert ((found - truth).abs() <= 1e-6 * x.double().abs().sum(dim=1)).all()
        assert found.shape == truth.shape
        assert torch.allclose(eager_columns.column_sums(layout).double(), truth, rtol=1e-5, atol=1e-5)


def test_column_sums_keep_what_is_not_finite_in_its_column():
    x = torch.randn(2, 40, 70, generator=G)
    x[0, 3, 5], x[1, 39, 69], x[1, 0, 0] = math.nan, math.inf, -math.inf
    found = fused_columns.column_sums(x.to(DEVICE)).cpu()
    assert torch.isfinite(found).equal(torch.isfinite(x).all(dim=1))
    assert found[1, 69] == math.inf and found[1, 0] == -math.inf


@few
@given(st.integers(0, 90))
def test_column_sums_of_any_split_add_up(cut):
    x = torch.randint(-9, 9, (2, 90, 5), generator=torch.Generator().manual_seed(cut)).float().to(DEVICE)
    parts = fused_columns.column_sums(x[:, :cut]) + fused_columns.column_sums(x[:, cut:])
    assert torch.equal(parts, fused_columns.column_sums(x))


HISTOGRAMS = {
    **CASES,
    "every exponent": torch.randn(3000, generator=G).mul(60).exp2(),
    "the ends": torch.tensor([2.0**-40, 2.0**-41, 2.0**-39, 2.0**40, 2.0**41, 2.0**39, -(2.0**127), 1e-45, 3e-39]),
    "next to powers of two": torch.nextafter(torch.tensor([1.0, 1.0, 2.0, 0.5]), torch.tensor([0.0, 2.0, 0.0, 1.0])),
}


@pytest.mark.parametrize("name", sample(HISTOGRAMS, every=3))
def test_exponent_histogram(name):
    x = HISTOGRAMS[name]
    truth = naive_histogram.exponent_histogram(x)
    assert fused_histogram.exponent_histogram(x.to(DEVICE)).cpu().double().equal(truth)
    assert eager_histogram.exponent_histogram(x).double().equal(truth)
    assert truth.sum() == x.numel() and len(truth) == BINS


@pytest.mark.parametrize("name", ["normal", "some not finite, bfloat16", "the ends"])
def test_exponent_histogram_traced(name):
    torch._dynamo.reset()
    found = torch.compile(eager_histogram.exponent_histogram, fullgraph=True, backend="eager")(HISTOGRAMS[name])
    assert found.double().equal(naive_histogram.exponent_histogram(HISTOGRAMS[name]))


@pytest.mark.parametrize("cut", [0, 1, 400, 903])
def test_histograms_of_any_split_add_up(cut):
    x = CASES["some not finite"].flatten().to(DEVICE)
    parts = fused_histogram.exponent_histogram(x[:cut]) + fused_histogram.exponent_histogram(x[cut:])
    assert torch.equal(parts, fused_histogram.exponent_histogram(x))


def test_the_update_of_no_programs_is_the_unit():
    out = torch.full((1, 3), math.nan, device=DEVICE)
    update(torch.empty(3, 0, device=DEVICE), out, sums=2)
    assert out.tolist() == [[0, 0, -math.inf]]


def test_poison_shows(monkeypatch):
    """Meta-test: without its first stage a reduction gives NaN, so the tests above see elements that nobody wrote."""
    monkeypatch.setattr(fused, "_aggregates", type("", (), {"__getitem__": lambda *_: lambda *_, **__: None})())
    assert fused.moments(CASES["normal"].to(DEVICE)).isnan().any()


def test_the_kernels_run_where_they_should():
    assert (DEVICE == "cpu") == INTERPRETED, "triton was imported before TRITON_INTERPRET was set"

"""Depth, saturation, exponents and experts against their float64 definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.kernels.depth import growth
from stabwatch.kernels.depth.naive import slope
from stabwatch.kernels.exponent_histogram import exponents
from stabwatch.kernels.exponent_histogram.naive import exponents as naive_exponents
from stabwatch.kernels.moments import moments
from stabwatch.kernels.router import beyond, expert_moments, grouped, loads, router
from stabwatch.kernels.router import naive as naive_router
from stabwatch.kernels.saturation import saturation
from stabwatch.kernels.saturation.naive import saturation as naive_saturation

SEEDS = st.integers(0, 2**16)


def randn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3, 10.0])
def test_growth_is_the_slope_that_numpy_fits(factor):
    """Measured: 2e-7."""
    outputs = [randn(40, 8, seed=i) * factor**i for i in range(6)]
    count, rise, spread = growth(torch.tensor([moments(x) for x in outputs])).tolist()
    assert count == 6 and rise / spread == pytest.approx(slope([x.numpy() for x in outputs]), abs=1e-5)


def test_growth_leaves_out_blocks_that_were_not_measured_and_needs_two():
    outputs = [randn(40, 8, seed=i) * 2.0**i for i in range(4)]
    rows = torch.tensor([moments(x) for x in outputs])
    rows[1] = 0.0
    count, rise, spread = growth(rows).tolist()
    kept = np.polyfit([0, 2, 3], [np.log(outputs[i].double().square().mean().sqrt().item()) for i in (0, 2, 3)], 1)[0]
    assert count == 3 and rise / spread == pytest.approx(kept, abs=1e-5)
    rows[2:] = 0.0
    assert growth(rows).tolist() == [0.0, 0.0, 0.0]


def test_growth_of_ranks_merges_to_the_slope_of_all():
    parts = [growth(torch.tensor([moments(randn(50, 4, seed=10 * r + i) * 1.5**i) for i in range(5)])) for r in (1, 2)]
    whole = sum(parts)
    each = [p[1] / p[2] for p in parts]
    assert whole[1] / whole[2] == pytest.approx(float(sum(each) / 2), abs=1e-6)


FUNCTIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "elu": F.elu,
}


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_saturation(name, size):
    """Measured: equal for smooth functions; up to 0.4 % of the elements are too near to a kink of the others."""
    x = size * randn(60, 30)
    x[:, 3] = -100.0
    found, truth = saturation(FUNCTIONS[name], x).double(), naive_saturation(FUNCTIONS[name], x)
    assert (found - truth).abs().max() <= (0.01 * x.numel() if name in ("hardtanh", "elu") else 1)
    assert found[3] >= 1, "the pinned unit"


def test_saturation_of_tanh_is_where_its_output_is_pinned():
    x = 3 * randn(50, 20)
    assert saturation(torch.tanh, x)[1] == (1 - torch.tanh(x.double()) ** 2 < 0.01).sum()
    assert saturation(torch.tanh, torch.full((4, 2), torch.nan)).tolist() == [8, 0, 2, 0]


@given(seed=SEEDS, decades=st.floats(0.0, 20.0))
def test_exponents(seed, decades):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, generator=generator) * 10.0 ** (decades * (torch.rand(200, generator=generator) - 0.7))
    x[::17] = 0.0
    x[5], x[6] = torch.inf, torch.nan
    assert exponents(x).double().equal(naive_exponents(x))


def test_subnormal_numbers_are_those_of_float16():
    x = 2.0 ** torch.arange(-30.0, 5.0) * 1.25
    half = x.half()
    held = (half != 0) & (half.abs() < torch.finfo(torch.float16).smallest_normal)
    assert exponents(x)[3] == held.sum()


@given(seed=SEEDS, cut=st.integers(1, 29))
def test_parts_merge_to_the_whole(seed, cut):
    x = randn(30, 5, seed=seed)
    assert (exponents(x[:cut]) + exponents(x[cut:])).equal(exponents(x))
    assert (loads(x[:cut], 2) + loads(x[cut:], 2)).equal(loads(x, 2))
    whole = saturation(torch.tanh, 3 * x)
    parts = saturation(torch.tanh, 3 * x[:cut]) + saturation(torch.tanh, 3 * x[cut:])
    assert parts[:2].equal(whole[:2])


@given(seed=SEEDS, top_k=st.integers(1, 4), capacity=st.sampled_from([1.0, 1.25, 2.0]))
def test_loads_and_what_is_beyond_a_capacity(seed, top_k, capacity):
    logits = randn(37, 6, seed=seed) + torch.arange(6) / 3
    found = loads(logits, top_k)
    assert found.tolist() == naive_router.loads(logits, top_k)
    assert beyond(found, capacity).tolist() == pytest.approx(naive_router.beyond(found.tolist(), capacity), abs=1e-4)


@given(SEEDS, st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 3), (8, 3), (4, 4)]))
def test_experts_are_chosen_from_the_best_groups(seed, parts):
    """Equal."""
    scores = randn(20, 8, seed=seed)
    assert grouped(scores, *parts).tolist() == naive_router.grouped(scores, *parts).tolist()


@given(SEEDS)
def test_a_router_that_does_not_choose_by_its_logits(seed):
    """Measured: 2e-7."""
    logits, wanted = randn(30, 8, seed=seed), randn(30, 8, seed=seed + 1)
    torch.testing.assert_close(
        router(logits, 2, wanted).double(), naive_router.router(logits, 2, wanted), rtol=1e-5, atol=1e-6
    )


def test_a_capacity_that_holds_all_drops_nothing_and_one_expert_for_all_drops_most():
    even, one = torch.full((4,), 10.0), torch.tensor([40.0, 0, 0, 0])
    assert beyond(even, 1.0).tolist() == [40.0, 0.0]
    assert beyond(one, 1.25).tolist() == [40.0, 27.5]


def test_expert_moments():
    """Measured: 2e-7."""
    x, experts, kept = randn(40, 7), torch.arange(40) % 5, randn(40, seed=1) > 0
    x[3, 2] = torch.nan
    found = expert_moments(x, experts, kept, 5)
    torch.testing.assert_close(found.double(), naive_router.expert_moments(x, experts, kept, 5), rtol=1e-5, atol=0)

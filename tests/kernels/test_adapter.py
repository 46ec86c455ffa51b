"""Adapters by their small matrices, against the dense product in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.kernels.adapter import adapter
from stabwatch.kernels.adapter.naive import adapter as naive


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(2, 30), st.integers(2, 30), st.sampled_from([0.25, 2.0]))
def test_it_is_that_of_the_dense_product(seed, rank, inside, outside, scaling):
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inside, generator=draw), torch.randn(outside, rank, generator=draw)
    change = 1e-4
    old = a - change * torch.randn(a.shape, generator=draw), b - change * torch.randn(b.shape, generator=draw)
    found, truth = adapter(a, b, *old, scaling).double(), naive(a, b, *old, scaling)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_zero_and_a_high_rank_is_no_matter(kind):
    a = torch.randn(128, 300).to(kind)
    none = torch.zeros(200, 128).to(kind)
    assert adapter(a, none, a, none, 2.0).tolist() == [0.0, 0.0, 0.0]
    b = torch.randn(200, 128).to(kind)
    torch.testing.assert_close(adapter(a, b, a, b, 2.0).double(), naive(a, b, a, b, 2.0), rtol=2e-3, atol=1e-6)

"""Where updates and gradients point, against float64. Measured errors stand beside the tolerances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.kernels.direction import direction, invariance, radial, row_cosines, together
from stabwatch.kernels.direction import naive as truth

SEEDS = st.integers(0, 2**16)
SHAPES = ((7, 5), (16, 3, 3, 3), (1, 40), (64, 256))


def pair(shape, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def orthogonal(gradient, weight, by_row):
    """The gradient without its part along each row, or along the whole."""
    g, w = gradient.flatten(1), weight.flatten(1)
    if not by_row:
        g, w = g.flatten()[None], w.flatten()[None]
    return (g - (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w).view_as(gradient)


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("kind", ["row", "whole", "none"])
def test_scale_invariance_is_found_and_told_apart(kind, shape):
    g, w = pair(shape)
    g = g + 3 * w if kind == "none" else orthogonal(g + 3 * w, w, kind == "row")
    found = invariance(w, g).tolist()
    assert found == truth.invariance(w, g)
    # a gradient that is orthogonal to each row is orthogonal to the whole
    assert found == {"row": [True, True], "whole": [False, True], "none": [False, False]}[kind]


def test_sums_of_millions_of_equal_numbers():
    """Measured: 2e-5; in one dot product, or by one norm, 1.4e-2 and 1.9e-2."""
    x = torch.full((4096, 4096), 0.1)
    expected = x.numel() * x[0, 0].double().item() ** 2
    for found in (direction(x, x), together([x], [x])):
        assert found[1:].tolist() == pytest.approx([expected] * 3, rel=5e-5)


def test_matrices_without_a_gradient_or_of_zeros_are_not_scale_invariant():
    g, w = pair((4, 6))
    for weight, gradient in ((w, 0 * g), (0 * w, g)):
        assert invariance(weight, gradient).tolist() == truth.invariance(weight, gradient) == [False, False]
    g = orthogonal(g, w, True)
    w[2] = 0.0  # a row that is zero has no direction, and says nothing of the others
    assert invariance(w, g).tolist() == [True, True]


def test_chance_finds_few():
    """Gradients and weights of random directions: rows 0 of 400, whole matrices 0.8 % expected."""
    found = torch.stack([invariance(*pair((8, 50), seed)) for seed in range(400)]).float().mean(0)
    assert found[0] == 0 and found[1] < 0.03


@pytest.mark.parametrize("flags", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("size", [1e-4, 0.3, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_radial(shape, size, flags):
    """Measured: 3e-7; the angle of a step of 1e-4 by 2e-7."""
    u, w = pair(shape, size=size)
    u -= 0.2 * size * w
    torch.testing.assert_close(
        radial(u, w, torch.tensor(flags)).double(), truth.radial(u, w, *flags), rtol=2e-5, atol=1e-12
    )


def test_a_step_along_the_weights_turns_nothing_and_one_across_only_turns():
    _, w = pair((5, 8))
    rows = torch.tensor((True, True))
    vectors, update, along, angles = radial(-0.1 * w, w, rows).tolist()
    assert vectors == 5 and along == pytest.approx(update) and angles == pytest.approx(0.0, abs=1e-8)
    across = orthogonal(pair((5, 8), 1)[0], w, True)
    _, update, along, angles = radial(across, w, rows).tolist()
    assert along < 1e-10 * update
    truth_angles = torch.atan(across.norm(dim=1) / w.norm(dim=1)).square().sum()
    assert angles == pytest.approx(truth_angles.item(), rel=1e-5)


@given(seed=SEEDS, cut=st.integers(1, 6))
def test_parts_merge_to_the_whole(seed, cut):
    u, w = pair((7, 5), seed)
    rows = torch.tensor((True, True))
    for f in (direction, lambda a, b: radial(a, b, rows)):
        torch.testing.assert_close(f(u[:cut], w[:cut]) + f(u[cut:], w[cut:]), f(u, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_row_cosines(size):
    """Measured: 2e-7 of the sum, whatever the length of the rows."""
    a, b = pair((40, 9), size=size)
    a[3], b[5] = 0.0, 0.0
    assert row_cosines(a, b).tolist() == pytest.approx(truth.row_cosines(a, b), abs=1e-5)
    parts = row_cosines(a[:7], b[:7]) + row_cosines(a[7:], b[7:])
    torch.testing.assert_close(parts, row_cosines(a, b))


def test_many_tensors_have_the_direction_of_one():
    """Measured: 3e-7."""
    parts = [pair(shape, seed) for seed, shape in enumerate(SHAPES)]
    whole = [torch.cat([p[i].flatten() for p in parts]) for i in (0, 1)]
    found = together(*zip(*parts, strict=True)).double()
    torch.testing.assert_close(found, truth.direction(*whole), rtol=1e-5, atol=1e-4)

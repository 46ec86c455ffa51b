"""Singular values by power iteration against the decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.hooks.probes.spectra import Spectra, of_weights
from stabwatch.kernels.direction import adam, direction
from stabwatch.kernels.direction.naive import adam as naive_adam
from stabwatch.kernels.direction.naive import direction as naive_direction
from stabwatch.kernels.power_iteration import iterate, matrices, start
from stabwatch.kernels.power_iteration.naive import singular_values


def settle(matrix: torch.Tensor, rounds: int, k: int = 4):
    basis = start(matrix, k)
    for _ in range(rounds):
        values, basis, residual = iterate(matrix, basis)
    return values, basis, residual


def spectrum(values: list[float], rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((rows, len(values))))[0]
    v = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return torch.tensor(u * values @ v.T, dtype=torch.float32)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (64, 8), (8, 64), (2, 2), (3, 2), (300, 5)])
def test_random_matrices(shape):
    """Measured: after 60 rounds 2e-6 at most, the second 2e-4 (it may be close to the third)."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    truth = torch.tensor(scipy.linalg.svdvals(matrix.double().numpy()))
    values, _, residual = settle(matrix, 60)
    assert values[0].item() == pytest.approx(truth[0].item(), rel=1e-4)
    assert values[1].item() == pytest.approx(truth[1].item(), rel=1e-2)
    assert residual < 0.05


@pytest.mark.parametrize(
    "values", [[5.0], [5.0, 5.0, 5.0], [5.0, 4.99, 1.0], [9.0, 1.0, 0.1, 0.01, 0.001], [1.0] * 6, [1.0, 1e-6]]
)
def test_known_spectra(values):
    matrix = spectrum(values, 30, 20)
    found, basis, _ = settle(matrix, 40)
    assert found[0].item() == pytest.approx(values[0], rel=1e-4)
    assert found[1].item() == pytest.approx(values[1] if len(values) > 1 else 0.0, rel=5e-3, abs=1e-5)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(4), atol=1e-5, rtol=0)


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(2, 30), st.integers(2, 30))
def test_it_never_overestimates_and_its_residual_bounds_the_error(seed, rounds, rows, columns):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    truth = singular_values(matrix, 2)
    values, _, residual = settle(matrix, rounds)
    assert values[0] <= truth[0] * (1 + 1e-5) and values[1] <= truth[1] * (1 + 1e-5)
    squares = torch.linalg.eigvalsh(matrix.double().mT @ matrix.double())  # zeros among them where it is wide
    near = (squares - values[0].double().square()).abs().min()
    assert near <= (residual.double() + 1e-4) * values[0].double().square(), "a true value lies within the residual"


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_extreme_scales(scale):
    matrix = spectrum([3.0, 1.0], 12, 10) * scale
    assert settle(matrix, 10)[0][0].item() == pytest.approx(3 * scale, rel=1e-4)


def test_adverse_matrices():
    values, basis, residual = settle(torch.zeros(5, 6), 3)
    assert values.tolist() == [0.0, 0.0] and residual == 0.0 and basis.isfinite().all()
    for bad in (torch.nan, torch.inf):
        matrix = torch.ones(5, 6)
        good = start(matrix, 4)
        matrix[2, 3] = bad
        values, basis, _ = iterate(matrix, good)
        assert values.isnan().all(), "it must not look healthy"
        assert basis.equal(good), "and must find back afterwards"


def test_a_warm_start_follows_a_matrix_in_training():
    """A step of 1e-3 of the weights between visits, one iteration each. Measured: 2e-3 after ten visits."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(96, 64, generator=generator)
    basis, worst = start(matrix, 4), 0.0
    for visit in range(60):
        matrix += 1e-3 * torch.randn(matrix.shape, generator=generator) + 2e-3 * torch.outer(matrix[:, 0], matrix[0])
        values, basis, _ = iterate(matrix, basis)
        truth = singular_values(matrix, 1)[0]
        worst = max(worst, float(1 - values[0] / truth)) if visit >= 10 else 0.0
    assert worst < 0.005


def test_matrices_of_one_shape_go_together_as_they_go_alone():
    """A stack that holds a zero matrix, a bad one and two of very different scale; measured: no difference."""
    stack = torch.randn(4, 12, 9, generator=torch.Generator().manual_seed(2))
    stack[1] = 0.0
    stack[2] *= 1e20
    stack[3, 5, 5] = torch.nan
    values, basis, residual = settle(stack, 8)
    assert values.shape == (4, 2) and basis.shape == (4, 9, 4) and residual.shape == (4,)
    for i, matrix in enumerate(stack):
        alone = settle(matrix, 8)
        torch.testing.assert_close(values[i], alone[0], rtol=1e-4, atol=0, equal_nan=True)
        torch.testing.assert_close(residual[i], alone[2], rtol=1e-2, atol=1e-5, equal_nan=True)


def test_bfloat16_is_multiplied_in_float32():
    """So the only error is that of the weights themselves; measured: 1e-7 after 60 rounds."""
    matrix = spectrum([4.0, 2.0, 1.0], 40, 30).bfloat16()
    truth = scipy.linalg.svdvals(matrix.double().numpy())
    assert settle(matrix, 60)[0].tolist() == pytest.approx(truth[:2].tolist(), rel=1e-5)


def test_nothing_is_read_on_the_host():
    """Tensors without data refuse to be read, as a synchronisation with a device would have to."""
    for shape in ((8, 6), (3, 8, 6)):
        matrix, basis = torch.empty(shape, device="meta"), torch.empty(*shape[:-2], 6, 4, device="meta")
        values, following, _ = iterate(matrix, basis)
        assert values.shape == (*shape[:-2], 2) and following.shape == basis.shape
    moment, step = torch.empty(8, device="meta"), torch.empty((), device="meta")
    assert adam(moment, moment, 1e-8, step, (0.9, 0.999)).shape == direction(moment, moment)[:3].shape


class TestMatrices:
    """What a parameter holds is told from its name, its shape and its module."""

    @pytest.mark.parametrize(
        ("name", "shape", "module", "names", "parts"),
        [
            ("fc.weight", (6, 4), None, ("",), (1, 6, 4)),
            ("embedding.weight", (100, 4), torch.nn.Embedding(2, 2), ("",), (1, 100, 4)),
            ("conv.weight", (6, 4, 3, 3), torch.nn.Conv2d(1, 1, 1), ("",), (1, 6, 36)),
            ("conv.weight", (6, 4, 3), torch.nn.Conv1d(1, 1, 1), ("",), (1, 6, 12)),
            ("experts.up", (5, 6, 4), None, tuple("01234"), (5, 6, 4)),
            ("position", (1, 6, 4), None, ("",), (1, 6, 4)),
            ("attention.qkv.weight", (12, 4), None, ("q", "k", "v"), (3, 4, 4)),
            ("attention.in_proj_weight", (12, 4), None, ("q", "k", "v"), (3, 4, 4)),
            ("h.0.attn.c_attn.weight", (4, 12), None, ("q", "k", "v"), (3, 4, 4)),
            ("attention.qkv.weight", (9, 4), None, ("",), (1, 9, 4)),
            ("attention.query_key_value.weight", (12, 4), None, ("",), (1, 12, 4)),
            ("fc.weight", (12, 4), None, ("",), (1, 12, 4)),
        ],
    )
    def test_parts(self, name, shape, module, names, parts):
        found, view = matrices(name, torch.zeros(shape), module)
        assert found == names and view.shape == parts

    @pytest.mark.parametrize("shape", [(), (5,), (1, 5), (5, 1), (1, 1, 5), (5, 1, 3)])
    def test_vectors_are_none(self, shape):
        names, view = matrices("bias", torch.zeros(shape))
        assert names == () and len(view) == 0

    def test_thirds_are_those_of_the_layer_and_no_copy(self):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(4, 4, generator=generator) for _ in range(3))
        for fused, parts in ((torch.cat((q, k, v)), (q, k, v)), (torch.cat((q, k, v), 1), (q, k, v))):
            view = matrices("c_attn", fused)[1]
            assert view.equal(torch.stack(parts)) and view.data_ptr() == fused.data_ptr()

    def test_a_stack_of_experts_has_the_spectra_of_its_experts(self):
        """As one matrix (E, R * C) it would have one, of no expert: 24.7 here, where the largest is 10.1."""
        experts = torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(0))
        view = matrices("experts.up", experts)[1]
        truth = torch.linalg.svdvals(experts.double())[:, 0].float()
        torch.testing.assert_close(settle(view, 60)[0][:, 0], truth, rtol=1e-3, atol=0)


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    settle(torch.ones(4, 4), 2)
    assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_direction(kind):
    """Measured: 3e-7 relative to the product of the norms."""
    generator = torch.Generator().manual_seed(0)
    u, w = (torch.randn(7, 50, generator=generator).to(kind) for _ in range(2))
    torch.testing.assert_close(direction(u, w).double(), naive_direction(u, w), rtol=1e-5, atol=1e-4)


def test_the_error_of_direction_grows_with_length():
    """Of a float32 dot product of ten million elements: 2.6e-4 measured, a thousand times that of a thousand."""
    w = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction(w, w + 1).double(), naive_direction(w, w + 1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("step", [1, 10, torch.tensor(10.0), torch.tensor(10)])
def test_adam_health_is_that_of_the_step_that_adam_takes(step):
    generator = torch.Generator().manual_seed(0)
    m, v = torch.randn(30, generator=generator), torch.rand(30, generator=generator)
    v[:7] = 1e-20
    found = adam(m, v, 1e-8, step, (0.9, 0.999))
    torch.testing.assert_close(found.double(), naive_adam(m, v, 1e-8, int(step), (0.9, 0.999)), rtol=1e-4, atol=0)
    assert found[2] == 7


def test_the_update_of_adam_is_the_learning_rate_times_that_size():
    weight = torch.nn.Parameter(torch.randn(20, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for step in range(1, 4):
        before = weight.detach().clone()
        weight.grad = torch.sin(torch.arange(20.0) * step)
        optimizer.step()
        state = optimizer.state[weight]
        size = adam(state["exp_avg"], state["exp_avg_sq"], 1e-8, state["step"], (0.9, 0.999))
        change = (weight.detach() - before).square().sum().item()
        assert change == pytest.approx(0.01 * size[1].item(), rel=1e-4)


def test_the_length_of_a_large_matrix_whose_elements_are_alike():
    """Measured: 4e-6; by one norm over 16 million equal numbers 1.9e-2."""
    weight = torch.full((4096, 4096), 0.1)
    ((_, aggregates),) = of_weights([(Spectra("weight", weight.shape, None), weight)])
    expected = weight.numel() * weight[0, 0].double().item() ** 2
    assert aggregates[0, 1].item() == pytest.approx(expected, rel=2e-5)

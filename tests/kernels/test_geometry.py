"""Geometric stability against scipy and against the authors' package."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from stabwatch.kernels.geometry import centred_cosine, drift, rank_among, shift_coherence, split_scores, stability
from stabwatch.kernels.geometry.eager import _ranks
from stabwatch.kernels.geometry.naive import centred_cosine as naive_centred_cosine
from stabwatch.kernels.geometry.naive import drift as naive_drift
from stabwatch.kernels.geometry.naive import split_scores as naive_scores

shesha = pytest.importorskip("shesha")


def points(n: int, d: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(n, d, generator=generator)
    return torch.randn(n, rank, generator=generator) @ torch.randn(rank, d, generator=generator)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(4, 40), d=st.integers(4, 33), mean=st.sampled_from([0.0, 3.0]))
def test_each_half_split_is_that_of_scipy(seed, n, d, mean):
    """Measured: 3e-4 at most (float32 distances may swap neighbours in rank), 1e-6 as a rule."""
    x = points(n, d, seed=seed) + mean
    rng = np.random.default_rng(seed)
    permutations = [rng.permutation(d).tolist() for _ in range(3)]
    found, used = split_scores(x, torch.tensor(permutations))
    assert used.all()
    np.testing.assert_allclose(found, naive_scores(x.numpy(), permutations), atol=2e-3)


def in_the_package(x: torch.Tensor, seed: int = 4) -> tuple[list[list[int]], list[float]]:
    """Eight halves as the package draws them from a seed, and its score for each."""
    scores = shesha.feature_split(x.numpy(), n_splits=8, seed=seed, return_all_splits=True, nan_policy="omit")
    rng = np.random.default_rng(seed)
    return [rng.permutation(x.shape[1]).tolist() for _ in range(8)], scores["split_scores"]


@pytest.mark.filterwarnings("ignore:Omitted")
@pytest.mark.parametrize("zeros", [0, 20])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_given_the_same_halves_each_score_is_that_of_the_authors_package(mean, zeros):
    """Measured: the definition to the last bit, float32 to 1e-6. Points of length zero are left out by all."""
    x = torch.cat([points(60, 33, rank=6) + mean, torch.zeros(zeros, 33)])
    permutations, theirs = in_the_package(x)
    np.testing.assert_allclose(naive_scores(x.numpy(), permutations), theirs, atol=1e-12)
    np.testing.assert_allclose(split_scores(x, torch.tensor(permutations))[0], theirs, atol=1e-5)


def test_the_average_is_that_of_the_authors_package():
    """Both average over random halves of their own, so they agree within the Monte-Carlo error of both."""
    for rank in (3, 10, None):
        x = points(100, 48, rank)
        theirs = shesha.feature_split(x.numpy(), n_splits=200, seed=1)
        n, total, squares = stability(x, 200, torch.Generator().manual_seed(0)).tolist()
        error = np.sqrt((squares / n - (total / n) ** 2) / n)
        assert n == 200
        assert abs(total / n - theirs) < 6 * error + 1e-4, rank


def test_drift_is_that_of_the_authors_package():
    x = points(60, 30)
    for size in (0.0, 0.1, 1.0, 30.0):
        y = x + size * points(60, 30, seed=5)
        theirs = shesha.rdm_drift(x.numpy(), y.numpy())
        assert drift(y, x).item() == pytest.approx(theirs, abs=1e-3)
        assert naive_drift(y.numpy(), x.numpy()) == pytest.approx(theirs, abs=1e-9)


def test_drift_of_nearly_collapsed_points():
    """Their cosines differ from 1 by 1e-6 and less. Measured: 1.3e-6, at a spread of 1e-5 of the mean."""
    x, noise = points(60, 33), points(60, 33, seed=1)
    for spread in (1.0, 0.1, 0.01, 0.001):
        y, reference = 100 + spread * (x + 0.5 * noise), 100 + spread * x
        found, expected = drift(y, reference), naive_drift(y.numpy(), reference.numpy())
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected, abs=1e-5), spread


def test_points_of_one_direction_tell_nothing_apart_however_long():
    x = points(1, 33) * torch.rand(60, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    assert drift(x, points(60, 33)).isnan()


def test_shift_coherence():
    x = points(50, 20)
    assert shift_coherence(x + 1.0, x).item() == pytest.approx(1.0, abs=1e-6)
    assert abs(shift_coherence(x + points(50, 20, seed=3), x).item()) < 0.3


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_centred_cosine_against_float64(mean):
    """A mean that all points share is no likeness."""
    x, y = points(50, 20) + mean, points(50, 20, seed=3) + mean
    for other in (y, x + 0.1 * (y - mean), -x):
        expected = naive_centred_cosine(other.double().numpy(), x.double().numpy())
        assert centred_cosine(other, x).item() == pytest.approx(expected, abs=1e-6)
    assert abs(centred_cosine(x, y).item()) < 0.1
    assert centred_cosine(torch.ones(5, 3), points(5, 3)).isnan()


def test_rank_is_the_percentile_and_nan_is_no_number():
    values = torch.tensor([0.1, 0.5, 0.5, 0.9, torch.nan])
    for value in values[:4]:
        expected = scipy.stats.percentileofscore(values[:4], value, "mean") / 100
        assert rank_among(value, values).item() == pytest.approx(expected)
    assert rank_among(values[4], values).isnan()


def test_low_rank_is_stable_and_noise_is_not():
    own = torch.Generator().manual_seed(0)

    def mean(x: torch.Tensor) -> float:
        n, total, _ = stability(x, 16, own).tolist()
        return total / n

    assert mean(points(128, 256, rank=2)) > 0.9
    assert abs(mean(points(128, 256))) < 0.1


def test_it_does_not_see_the_length_or_the_order_of_points():
    x = points(40, 24)
    scores = [
        stability(y, 8, torch.Generator().manual_seed(0))[1] for y in (x, x * torch.rand(40, 1).add(0.1), x.flip(0))
    ]
    torch.testing.assert_close(scores[1:], [scores[0]] * 2, atol=1e-3, rtol=0)


def test_halves_that_say_nothing_are_left_out():
    assert stability(torch.ones(20, 8), 4, torch.Generator()).tolist() == [0.0, 0.0, 0.0]
    assert stability(torch.zeros(20, 8), 4, torch.Generator()).tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ties_get_their_mean_rank(values):
    np.testing.assert_array_equal(_ranks(torch.tensor(values).float()), scipy.stats.rankdata(values) - 1)


def test_padding_does_not_look_stable():
    """Kept, the equal distances of a third of the points would raise the score of noise about a mean."""
    x = points(40, 24) + 3
    padded = torch.cat([x, torch.zeros(20, 24)])[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    scores = [stability(y, 8, torch.Generator().manual_seed(0)) for y in (x, padded)]
    torch.testing.assert_close(*scores, atol=1e-3, rtol=0)


def test_a_half_of_length_zero_is_left_out():
    x = points(12, 8)
    x[0, :4] = 0
    permutations = [list(range(8)), [0, 4, 1, 5, 2, 6, 3, 7]]
    found, _ = split_scores(x, torch.tensor(permutations))
    np.testing.assert_allclose(found, naive_scores(x.numpy(), permutations), atol=1e-5)


def test_non_finite_points_do_not_look_stable():
    x = points(20, 8)
    x[3, 2] = torch.nan
    n, total, _ = stability(x, 4, torch.Generator()).tolist()
    assert n == 0 or np.isnan(total)


def test_drift_between_points_that_tell_nothing_apart_is_not_a_number():
    assert drift(torch.ones(10, 4), points(10, 4)).isnan()
    assert drift(points(10, 4), torch.zeros(10, 4)).isnan()


def test_only_the_own_generator_is_used_and_it_moves_on():
    before, own = torch.get_rng_state(), torch.Generator().manual_seed(0)
    first, second = (stability(points(10, 8), 4, own) for _ in range(2))
    assert before.equal(torch.get_rng_state())
    assert not first.equal(second)
    assert first.equal(stability(points(10, 8), 4, torch.Generator().manual_seed(0)))


def test_nothing_asks_the_device_for_a_value():
    """Fake tensors have none to give, and raise when asked."""
    with FakeTensorMode():
        x, permutations = torch.empty(20, 8), torch.empty(4, 8, dtype=torch.long)
        assert split_scores(x, permutations)[0].shape == (4,)
        assert drift(x, torch.empty(20, 6)).shape == shift_coherence(x, x).shape == centred_cosine(x, x).shape == ()
        assert rank_among(x[0, 0], x[0]).shape == ()
        with pytest.raises(DataDependentOutputException):
            x.sum().item()  # that is how it shows

"""Where two curves diverge: found within a few points where it is known, and silent where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.compare.divergence_point import divergence_point


def curves(n: int, seed: int, noise: float = 0.05, alike: float = 0.0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Steps and two noisy copies of one falling curve; neighbours of the noise are `alike`."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(2):
        e = rng.standard_normal(n)
        for i in range(1, n):
            e[i] = alike * e[i - 1] + np.sqrt(1 - alike**2) * e[i]
        out.append((2 + 2 * np.exp(-np.arange(n) / (n / 5))) * np.exp(noise * e))
    return np.arange(n), out


@pytest.mark.parametrize("alike", [0.0, 0.7])
@pytest.mark.parametrize("n", [200, 1000])
def test_noise_alone_never_parts(n, alike):
    found = [divergence_point(*((s, y) for y in ys)) for s, ys in (curves(n, seed, alike=alike) for seed in range(40))]
    assert sum(p.step is not None for p in found) == 0
    assert all(p.differ == 0 and p.points == n for p in found)


def test_a_jump_is_found_where_it_is():
    late = []
    for seed in range(40):
        steps, (a, b) = curves(1000, seed)
        b[500:] *= 1.2
        found = divergence_point((steps, a), (steps, b))
        late.append(found.step - 500)
        assert found.before == found.step - 1 and found.until is None
        assert found.end == pytest.approx(1.2, abs=0.08)
    assert min(late) >= -5 and max(late) <= 8


def test_equal_runs_are_equal_until_they_are_not():
    """Same seed: the noise is the same too, and the first difference of any size is exact."""
    steps, (a, _) = curves(400, 0)
    assert divergence_point((steps, a), (steps, a.copy())).differ is None
    b = a.copy()
    b[200:] *= 1.001
    found = divergence_point((steps, a), (steps, b))
    assert (found.differ, found.step) == (200, None), "a tenth of a percent is a difference, but no divergence"
    b[300:] = np.nan
    found = divergence_point((steps, a), (steps, b))
    assert found.step == 300, "from there on only one of them is a number"


def test_a_detour_has_an_end():
    steps, (a, b) = curves(1000, 3)
    b[300:500] *= 2
    found = divergence_point((steps, a), (steps, b))
    assert abs(found.step - 300) < 8 and 460 <= found.until <= 540
    assert found.end == pytest.approx(1, abs=0.1)


def test_curves_that_are_not_positive_are_compared_by_their_size():
    rng = np.random.default_rng(0)
    steps, a, b = np.arange(400), *rng.normal(0, 1, (2, 400))
    b[200:] += 4
    found = divergence_point((steps, a), (steps, b))
    assert not found.relative and abs(found.step - 200) <= 8
    assert found.end > 2


def test_other_steps_repeated_steps_and_too_few():
    steps, (a, b) = curves(600, 5)
    again = np.concatenate([steps[:400], steps[350:]]), np.concatenate([b[:400] * 9, b[350:]])
    found = divergence_point((steps[::2], a[::2]), (again[0], again[1]))
    assert (found.points, found.resolution) == (300, 2)
    assert found.step == 0 and 330 < found.until < 370, "of a step that was repeated, the last counts"
    assert divergence_point((steps[::2], a[::2]), (steps[1::2], b[1::2])) is None
    assert divergence_point((steps[:5], a[:5]), (steps, b)) is None
    assert divergence_point((steps, np.full(600, np.nan)), (steps, b)) is None


@pytest.mark.filterwarnings("error")
def test_numbers_that_differ_by_all_that_a_float_can_are_no_warning():
    steps = np.arange(200)
    few = np.where(steps % 50 == 0, 1e30, 0.0)
    assert divergence_point((steps, few), (steps, few)).step is None
    assert divergence_point((steps, np.zeros(200)), (steps, few)) is not None

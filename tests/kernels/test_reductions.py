"""Each reduction against its float64 definition, and against the merge law, on the shapes and values that hurt.

Tolerances are measured: over all cases below the largest relative error of a sum of squares was 4e-7, of a
logsumexp statistic 3e-6 (large opposite terms cancel in its sum), of an attention logit 8e-7.
"""

from __future__ import annotations

import math

import pytest
import torch

from stabwatch.kernels.attention_bracket import brackets
from stabwatch.kernels.attention_scores import largest_logit
from stabwatch.kernels.attention_scores.eager import CHUNK_ELEMENTS, largest_score
from stabwatch.kernels.attention_scores.naive import largest_logit as naive_logit
from stabwatch.kernels.attention_scores.naive import scores as naive_scores
from stabwatch.kernels.logsumexp import row_statistics
from stabwatch.kernels.logsumexp.naive import row_statistics as naive_rows
from stabwatch.kernels.merge import empty_accumulator, merge_
from stabwatch.kernels.moments import moments
from stabwatch.kernels.moments.eager import host_sumsq
from stabwatch.kernels.moments.naive import moments as naive_moments
from stabwatch.kernels.multi_tensor import grouped_change, grouped_moments
from stabwatch.signals.reductions import ATTENTION_BRACKET, ATTENTION_EXACT, MOMENTS
from tests.sampling import sample

G = torch.Generator().manual_seed(0)


def _cases():
    x = torch.randn(7, 129, generator=G)
    yield "normal", x
    yield "one element", torch.tensor([-3.0])
    yield "large mean, small spread", 1e4 + 1e-2 * x
    yield "tiny", x * 1e-18
    yield "huge", x * 1e17
    yield "not contiguous", x.t()[::3]
    yield "odd size", torch.randn(2049, generator=G)
    yield "bfloat16", x.bfloat16()
    yield "float16", x.half()
    yield "float64", x.double()
    yield "zeros", torch.zeros(5, 3)
    bad = x.clone()
    bad[0, 0], bad[1, 1], bad[2, 2] = math.nan, math.inf, -math.inf
    yield "some not finite", bad
    yield "all NaN", torch.full((4,), math.nan)


CASES = dict(_cases())


def _list(aggregates):
    return aggregates.tolist() if isinstance(aggregates, torch.Tensor) else list(aggregates)


@pytest.mark.parametrize("name", CASES)
def test_moments(name):
    x = CASES[name]
    assert _list(moments(x)) == pytest.approx(naive_moments(x).tolist(), rel=1e-6, abs=0)


@pytest.mark.parametrize("name", [n for n in CASES if n != "float64"])
def test_moments_traced(name):
    """The form that runs inside compiled graphs (and on accelerators) says the same."""
    torch._dynamo.reset()
    found = torch.compile(lambda x: moments(x) + 0, fullgraph=True, backend="eager")(CASES[name])
    assert found.tolist() == pytest.approx(naive_moments(CASES[name]).tolist(), rel=1e-6, abs=0)


def test_the_adversarial_case_is_adversarial():
    """Meta-test: a float32 running sum of squares loses the digits that the test asks for."""
    x = CASES["large mean, small spread"].flatten()
    running = torch.zeros(())
    for value in x:
        running = running + value * value
    truth = naive_moments(x)[1].item()
    assert abs(running.item() - truth) / truth > 1e-6


@pytest.mark.parametrize("name", CASES)
def test_grouped_moments(name):
    tensors = [CASES[name], CASES["normal"], CASES[name] * 2]
    out = empty_accumulator(MOMENTS, torch.device("cpu")).repeat(2, 1)
    grouped_moments(tensors, [0, 1, 0], out)
    both = torch.cat([tensors[0].flatten(), tensors[2].flatten()])
    assert out[0].tolist() == pytest.approx(naive_moments(both).tolist(), rel=1e-6)
    assert out[1].tolist() == pytest.approx(naive_moments(tensors[1]).tolist(), rel=1e-6)


def test_grouped_change():
    before = [CASES["normal"], CASES["bfloat16"], CASES["not contiguous"]]
    after = [x * 1.5 for x in before]
    out = torch.zeros(2, 3)
    grouped_change([x.clone() for x in before], after, [1, 0, 1], out)
    old = [x.double().square().sum().item() for x in before]
    change = [(a - b).double().square().sum().item() for a, b in zip(after, before, strict=True)]
    size = [x.numel() for x in before]
    assert out[0].tolist() == pytest.approx([size[1], change[1], old[1]], rel=1e-6)
    assert out[1].tolist() == pytest.approx([size[0] + size[2], change[0] + change[2], old[0] + old[2]], rel=1e-6)


LONG = {
    "normal": torch.randn(3_000_001, generator=G),
    "all alike": torch.full((3_000_001,), 0.37),
    "one outlier": torch.randn(3_000_001, generator=G).index_fill_(0, torch.tensor([5]), 1e4),
}


@pytest.mark.parametrize("name", LONG)
def test_the_sum_of_squares_of_a_long_tensor(name):
    assert host_sumsq(LONG[name]) == pytest.approx(LONG[name].double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["all alike", "one outlier"])
def test_the_long_cases_are_adversarial(name):
    """Meta-test: the norm over all of it is not good enough."""
    truth = LONG[name].double().square().sum().item()
    assert abs(torch.linalg.vector_norm(LONG[name]).item() ** 2 - truth) / truth > 1e-5


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("bad", [False, True])
def test_row_statistics(scale, bad):
    logits = torch.randn(33, 70, generator=G) * scale
    if bad:
        logits[3] = math.nan
        logits[5, 1] = math.inf
    lse = torch.logsumexp(logits, dim=-1)
    assert _list(row_statistics(lse)) == pytest.approx(naive_rows(logits).tolist(), rel=1e-5)


SHAPES = {
    "square": (2, 4, 33, 33, 8),
    "cross": (1, 2, 7, 40, 16),
    "one query": (3, 2, 1, 9, 8),
    "long": (1, 2, 2500, 2500, 8),
}


@pytest.mark.parametrize("masking", ["none", "causal", "bool", "float", "bool per head"])
@pytest.mark.parametrize("groups", sample([1, 2], 2))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_attention_logit(shape, groups, masking):
    b, h, t, s, d = SHAPES[shape]
    q, k = torch.randn(b, h, t, d, generator=G), torch.randn(b, h // groups, s, d, generator=G)
    mask = {
        "bool": torch.rand(b, 1, t, s, generator=G) > 0.5,
        "float": torch.randn(1, 1, t, s, generator=G),
        "bool per head": torch.rand(1, h, 1, s, generator=G) > 0.3,
    }.get(masking)
    call = (q, k, mask, masking == "causal", 0.5 if masking == "float" else None)
    assert _list(largest_logit(*call)) == pytest.approx(naive_logit(*call).tolist(), rel=2e-6)


def test_the_long_case_needs_several_chunks():
    b, h, t, s, _ = SHAPES["long"]
    assert b * h * t * s > 2 * CHUNK_ELEMENTS


def test_attention_logits_that_are_not_finite_are_counted_apart():
    q, k = torch.randn(1, 2, 5, 4, generator=G), torch.randn(1, 2, 5, 4, generator=G)
    q[0, 1, 3] = math.nan
    rows, bad, best, head = _list(largest_logit(q, k, None, False, None))
    truth = naive_scores(q, k, None, False, None)
    assert (rows, bad, head) == (10, 1, naive_logit(q, k, None, False, None)[3])
    assert best == pytest.approx(truth[torch.isfinite(truth)].max().item(), rel=1e-6)


def test_scores_that_the_model_computed_itself():
    scores = torch.randn(2, 3, 5, 7, generator=G)
    scores[1, 2, 4, 6] = 9.0
    assert _list(largest_score(scores, 3)) == [30, 0, 9, 2]
    assert _list(largest_score(scores.flatten(0, 1), 3)) == [30, 0, 9, 2]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_bracket_holds_the_largest_logit_and_closes_as_attention_saturates(causal, scale):
    q, k = torch.randn(3, 4, 20, 8, generator=G) * scale, torch.randn(3, 4, 20, 8, generator=G)
    s = naive_scores(q, k, None, causal, None)
    lse = torch.logsumexp(s, dim=-1).float()
    log_keys = torch.arange(1, 21).float().log() if causal else math.log(20)
    rows, sumsq, bad, upper, head, lower = brackets(lse[None], log_keys)[0].tolist()
    truth = s.max().item()
    assert (rows, bad) == (240, 0)
    assert sumsq == pytest.approx(lse.double().square().sum().item(), rel=1e-6)
    assert lower - 1e-5 <= truth <= upper + 1e-5
    assert upper - lower <= math.log(20) + 1e-5
    assert head == lse.amax(dim=(0, 2)).argmax().item()
    if scale == 30.0:
        assert upper - truth < 0.1


def test_a_bracket_with_rows_that_see_nothing_or_are_broken():
    lse = torch.randn(2, 1, 2, 4, generator=G)
    lse[0, 0, 0, 0] = -math.inf
    lse[1, 0, 1, 2] = math.nan
    lse[1, 0, 0, 1] = math.inf
    found = brackets(lse, 0.0)
    assert found[:, 0].tolist() == [7, 8]
    assert found[:, 2].tolist() == [0, 2]
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("reduction", [MOMENTS, ATTENTION_EXACT, ATTENTION_BRACKET], ids=lambda r: r.name)
def test_tensors_and_numbers_merge_alike(reduction):
    parts = [torch.randn(len(reduction.fields), generator=G).round() for _ in range(20)]
    a, b = empty_accumulator(reduction, torch.device("cpu")), empty_accumulator(reduction, torch.device("cpu"))
    for part in parts:
        merge_(reduction, a, part)
        merge_(reduction, b, tuple(part.tolist()))
    assert torch.equal(a, b)

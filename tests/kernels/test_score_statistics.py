"""Statistics of attention logits, fused and in plain torch, against the dense float64 definition.

Measured: 2e-7 of what the rows may add up to, in the interpreter and in plain torch.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from stabwatch.kernels.attention_scores import eager, naive
from stabwatch.kernels.attention_scores.eager import CHUNK_ELEMENTS
from tests.sampling import sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
G = torch.Generator().manual_seed(0)


def _fused(*call):
    pytest.importorskip("triton")
    from stabwatch.kernels.attention_scores import fused

    moved = (x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in call)
    return fused.score_statistics(*moved).cpu()


def _fused_largest(*call):
    pytest.importorskip("triton")
    from stabwatch.kernels.attention_scores import fused

    moved = (x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in call)
    return fused.largest_logit(*moved).cpu()


FORMS = {"eager": eager.score_statistics, "fused": _fused}
LARGEST = {"eager": lambda *call: torch.as_tensor(eager.largest_logit(*call)), "fused": _fused_largest}
pytestmark = [
    pytest.mark.parametrize("form", FORMS),
    pytest.mark.usefixtures("poison"),
    # numpy's, under the interpreter, of inf and NaN
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning"),
]

# B, H, G, T, S, D: off the powers of two, more queries than keys and fewer, several blocks.
SHAPES = {
    "one": (1, 1, 1, 1, 1, 1),
    "square": (2, 2, 1, 33, 33, 8),
    "cross": (1, 4, 2, 7, 70, 20),
    "tall": (1, 2, 2, 70, 9, 16),
    "blocks": (1, 1, 1, 131, 131, 24),
}


@pytest.fixture(autouse=True)
def seeded():
    """Every test has its own numbers, whichever ran before."""
    G.manual_seed(0)


def _inputs(shape, kind=torch.float32, scale=2.0):
    b, h, g, t, s, d = SHAPES[shape]
    q = torch.randn(b, t, h, d, generator=G).mul(scale).to(kind).transpose(1, 2)  # heads as models lay them out
    return q, torch.randn(b, g, s, d, generator=G).to(kind)


def _mask(kind, shape):
    b, h, _, t, s, _ = SHAPES[shape]
    return {
        "none": None,
        "bool": torch.rand(b, 1, t, s, generator=G) > 0.5,
        "bool per key": torch.rand(b, 1, 1, s, generator=G) > 0.3,
        "additive": torch.randn(1, h, t, s, generator=G),
        "additive with -inf": torch.zeros(t, s).masked_fill(torch.rand(t, s, generator=G) > 0.5, -math.inf),
        "bfloat16": torch.randn(t, s, generator=G).bfloat16(),
    }[kind]


def assert_statistics(form, *call):
    truth = naive.score_statistics(*call)
    found = FORMS[form](*call)
    assert found.dtype == torch.float32 and found.shape == truth.shape
    rows = truth[:, :1].clamp(min=1)
    size = torch.cat((rows, rows, rows * 4, rows * 16, rows * 4, torch.ones_like(rows), torch.ones_like(rows)), dim=1)
    assert found[:, :2].double().equal(truth[:, :2]), "counts are exact"
    same = found.double() == truth  # infinities
    assert (same | ((found - truth).abs() <= 1e-6 * torch.maximum(size, truth.abs()))).all(), (found, truth)


MASKS = ("none", "bool", "bool per key", "additive", "additive with -inf", "bfloat16")


@pytest.mark.parametrize(
    ("shape", "mask", "causal"),
    [
        *(("square", mask, False) for mask in MASKS),
        ("square", "none", True),
        ("square", "bool", True),
        ("cross", "bool", False),
        ("cross", "additive", True),
        ("tall", "none", True),
        ("tall", "bool per key", False),
    ],
)
def test_masks(form, shape, mask, causal):
    assert_statistics(form, *_inputs(shape), _mask(mask, shape), causal, None)


@pytest.mark.parametrize(
    "options", sample(itertools.product([False, True], [None, 5], [None, 3.0], [1, 3]), (True, 5, 3.0, 3), every=3)
)
def test_window_softcap_and_stride(form, options):
    causal, window, softcap, stride = options
    assert_statistics(form, *_inputs("square"), None, causal, 0.7, window, softcap, stride)


@pytest.mark.parametrize("shape", sample(["one", "blocks"], "blocks"))
@pytest.mark.parametrize(
    ("causal", "window", "stride"), [(True, None, 1), (True, 40, 1), (False, None, 2), (True, 3, 3)]
)
def test_several_blocks(form, shape, causal, window, stride):
    assert_statistics(form, *_inputs(shape), None, causal, None, window, None, stride)


def test_everything_at_once(form):
    assert_statistics(form, *_inputs("square"), _mask("additive with -inf", "square"), True, 1.3, 9, 4.0, 2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_data_types(form, kind):
    assert_statistics(form, *_inputs("square", kind), None, True, None)


def test_query_and_key_of_different_types(form):
    q, k = _inputs("square")
    assert_statistics(form, q.bfloat16(), k, None, False, None)


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_the_entropy_of_large_logits_is_not_a_difference_of_large_numbers(form, scale):
    """Measured: 6e-8 nats a row; 9e-5 and more as logsumexp less mean score, in float32 with logits of thousands."""
    q, k = _inputs("square", scale=1.0)
    offset = torch.full((1, 1, 1, k.shape[2]), 8192.0)  # exact in float32 with what is added to it
    q, k = (q * scale).round(), k.round()
    truth = naive.score_statistics(q, k, offset, False, 1.0)
    found = FORMS[form](q, k, offset, False, 1.0)
    assert ((found - truth)[:, 4].abs() / truth[:, 0]).max() < 5e-7
    scores = naive.scores(q, k, offset, False, 1.0).float()
    difference = torch.logsumexp(scores, -1) - (torch.softmax(scores, -1) * scores).sum(-1)
    assert (difference.sum(dim=(0, 2)) - truth[:, 4]).abs().max() / truth[0, 0] > 2e-5, "the case is adversarial"
    assert (found - truth)[:, 5].abs().max() == 0


def test_rows_that_see_nothing_are_left_out(form):
    q, k = _inputs("square")
    mask = torch.ones(33, 33, dtype=torch.bool)
    mask[4], mask[9, 1:] = False, False
    assert_statistics(form, q, k, mask, False, None)
    assert FORMS[form](q, k, mask, False, None)[:, 0].tolist() == [64.0] * 2
    nothing = FORMS[form](q, k, torch.zeros(33, 33, dtype=torch.bool), False, None)
    assert nothing.tolist() == [[0, 0, 0, 0, 0, -math.inf, -math.inf]] * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_counted_apart(form, bad, causal):
    q, k = _inputs("square")
    q[0, 1, 3, 0] = bad
    q[1, 0] = bad
    assert_statistics(form, q, k, None, causal, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_key_breaks_the_rows_that_see_it(form, bad):
    q, k = _inputs("square")
    k[1, 0, 20] = bad
    assert_statistics(form, q, k, None, True, None)
    assert FORMS[form](q, k, None, True, None)[:, 1].min() > 0


def test_masked_scores_may_be_anything(form):
    q, k = _inputs("square")
    k[:, :, 32] = math.nan
    mask = torch.ones(33, dtype=torch.bool)
    mask[32] = False
    assert_statistics(form, q, k, mask, False, None)
    assert FORMS[form](q, k, mask, False, None)[:, 1].tolist() == [0.0] * 2


@pytest.mark.parametrize("cut", [1, 16, 33])
def test_statistics_of_any_split_of_the_queries_merge_to_those_of_the_whole(form, cut):
    q, k = _inputs("square")
    call = (k, None, False, None)
    units = torch.tensor([0.0] * 5 + [-math.inf] * 2).expand(2, 7)
    parts = [FORMS[form](x, *call) if x.shape[2] else units for x in (q[:, :, :cut], q[:, :, cut:])]
    merged = torch.cat(((parts[0] + parts[1])[:, :5], torch.maximum(*parts)[:, 5:]), dim=1)
    whole = FORMS[form](q, *call)
    assert torch.allclose(merged, whole, rtol=1e-6, atol=1e-5)
    assert merged[:, :2].equal(whole[:, :2])


@pytest.mark.parametrize("bad", sample([None, math.nan, math.inf, -math.inf], None, math.inf))
@pytest.mark.parametrize(
    ("shape", "mask", "causal", "scale"),
    [
        ("square", "none", True, None),
        ("square", "none", False, -1.3),
        ("cross", "bool", False, None),
        ("square", "additive with -inf", True, 0.3),
        ("blocks", "none", True, 1e-20),
        ("tall", "bool per key", False, None),
    ],
)
def test_the_largest_logit_agrees(form, shape, mask, causal, scale, bad):
    q, k = _inputs(shape)
    if bad is not None:
        q[0, 0, -1, 0] = bad
    call = (q, k, _mask(mask, shape), causal, scale)
    rows, broken, logit, head = naive.largest_logit(*call).tolist()
    found = LARGEST[form](*call).tolist()
    assert found[:2] == [rows, broken]
    assert (found[2], found[3]) == (pytest.approx(logit, rel=2e-6, abs=1e-26), head)


def test_long_calls_go_in_chunks(form):
    if form == "fused":
        pytest.skip("the interpreter is too slow; the kernel has no chunks")
    q, k = torch.randn(1, 2, 2500, 8, generator=G), torch.randn(1, 1, 2500, 8, generator=G)
    assert q.shape[1] * 2500 * 2500 > 2 * CHUNK_ELEMENTS
    assert_statistics(form, q, k, None, True, None)


def test_traced(form):
    if form == "fused":
        pytest.skip("only plain torch is traced")
    torch._dynamo.reset()
    q, k = _inputs("square")
    found = torch.compile(FORMS[form], fullgraph=True, backend="eager")(q, k, None, True, None)
    assert found.equal(FORMS[form](q, k, None, True, None))

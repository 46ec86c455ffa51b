"""Fused or plain torch: who runs when, and what the answer says."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from stabwatch.kernels import dispatch
from stabwatch.kernels.attention_scores import eager as eager_scores
from stabwatch.kernels.attention_scores import largest_logit, score_statistics, update_largest_logit
from stabwatch.kernels.attention_scores import naive as naive_scores
from stabwatch.kernels.column_moments import column_sums
from stabwatch.kernels.dispatch import VARIABLE, Choice, choose
from stabwatch.kernels.exponent_histogram import exponent_histogram
from stabwatch.kernels.merge import empty_accumulator, merge_
from stabwatch.kernels.moments import eager, moments, moments_full, naive, update_moments
from stabwatch.kernels.multi_tensor import grouped_change, grouped_moments
from stabwatch.signals.reductions import ATTENTION_EXACT, MOMENTS

G = torch.Generator().manual_seed(0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    dispatch._decide.cache_clear()
    yield
    monkeypatch.undo()
    dispatch._decide.cache_clear()


@pytest.fixture
def fused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv(VARIABLE, "fused")


def test_a_cpu_tensor():
    assert choose(torch.ones(1)) == Choice(False, "not a CUDA tensor")
    assert isinstance(moments(torch.ones(3)), tuple), "plain numbers: nothing has to wait for them"


def test_eager_by_wish(monkeypatch):
    monkeypatch.setenv(VARIABLE, "eager")
    assert choose(torch.ones(1, device=DEVICE)) == Choice(False, "STABWATCH_KERNELS=eager")


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter is for machines without a GPU")
def test_fused_by_wish_in_the_interpreter(fused):
    assert choose(torch.ones(1)) == Choice(True, "interpreter")


def test_fused_by_wish_without_triton(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fused")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert choose(torch.ones(1)) == Choice(False, "triton is not installed")
    assert eager.moments(torch.ones(4)) == moments(torch.ones(4)) == (4.0, 4.0, 0.0, 1.0)


def test_traced(fused):
    torch._dynamo.reset()

    def f(x):
        assert not choose(x).fused
        return moments(x) + 0

    found = torch.compile(f, fullgraph=True, backend="eager")(torch.ones(5))
    assert found.tolist() == [5, 5, 0, 1]


def test_a_wish_that_is_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, "quick")
    with pytest.raises(ValueError, match="STABWATCH_KERNELS must be 'eager' or 'fused', not 'quick'"):
        choose(torch.ones(1))


def test_a_triton_that_fails_is_not_used(monkeypatch):
    pytest.importorskip("triton")
    from stabwatch.kernels.moments import fused

    def broken(x):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(fused, "moments", broken)
    expected = Choice(False, "triton does not work here: RuntimeError: Failed to find C compiler.")
    assert dispatch._tried(torch.device("cpu")) == expected


def test_every_reduction_takes_the_fused_kernel(fused):
    """With results of the same type and the same values, from the same calls."""
    x = torch.randn(3, 5, 7, generator=G).to(DEVICE)
    assert moments(x).tolist() == pytest.approx(naive.moments(x.cpu()).tolist(), rel=1e-6)
    assert moments_full(x).tolist() == pytest.approx(naive.moments_full(x.cpu()).tolist(), rel=1e-6, abs=1e-5)
    assert torch.allclose(column_sums(x), x.sum(1), atol=1e-5)
    assert exponent_histogram(x).sum() == x.numel()
    call = (x[None], x[None], None, True, None)
    assert largest_logit(*call).tolist() == pytest.approx(
        naive_scores.largest_logit(*(y.cpu() if isinstance(y, torch.Tensor) else y for y in call)).tolist(), rel=2e-6
    )
    assert torch.allclose(score_statistics(*call), eager_scores.score_statistics(*call), rtol=1e-5)


def test_aggregates_are_merged_into_a_cell_as_the_law_says(fused):
    x, y = torch.randn(300, generator=G).to(DEVICE), torch.tensor([math.nan, 3.0, -7.0], device=DEVICE)
    cell, law = empty_accumulator(MOMENTS, x.device), empty_accumulator(MOMENTS, x.device)
    for part in (x, y, x[:2]):
        update_moments(part, cell)
        merge_(MOMENTS, law, moments(part))
    assert torch.allclose(cell, law, rtol=1e-6)
    q = torch.randn(2, 5, 9, 8, generator=G).to(DEVICE)
    broken = q.clone()
    broken[0, 2] = math.nan
    cell, law = empty_accumulator(ATTENTION_EXACT, q.device), empty_accumulator(ATTENTION_EXACT, q.device)
    for query in (q * 0.5, q, broken, q.flip(1), q):
        call = (query, query, None, True, None)
        update_largest_logit(*call, cell)
        merge_(ATTENTION_EXACT, law, largest_logit(*call))
        assert torch.allclose(cell, law, rtol=1e-6)


def test_lists_of_tensors_take_the_fused_kernel_where_it_can(fused, monkeypatch):
    from stabwatch.kernels.multi_tensor import eager as eager_lists

    x = [torch.randn(5, generator=G).to(DEVICE), torch.randn(7, generator=G).to(DEVICE)]
    out = torch.tensor([[0.0, 0.0, 0.0, -math.inf]], device=DEVICE)
    change = torch.zeros(1, 3, device=DEVICE)
    monkeypatch.setattr(eager_lists, "grouped_moments", None)
    grouped_moments(x, [0, 0], out)
    assert out[0, 0] == 12
    monkeypatch.setattr(eager_lists, "grouped_change", lambda *_: change.fill_(-1))
    grouped_change([y.clone() for y in x], x, [0, 0], change)
    assert change.tolist()[0][:2] == [12, 0]
    grouped_change([y.double() for y in x], [y.double() for y in x], [0, 0], change)
    assert change.tolist() == [[-1, -1, -1]]


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    x = torch.randn(2, 3, 70, 64, device="cuda")
    out, change = torch.zeros(1, 4, device="cuda"), torch.zeros(1, 3, device="cuda")

    def everything():
        moments(x)
        moments_full(x)
        column_sums(x[0])
        exponent_histogram(x)
        largest_logit(x, x, None, True, None)
        score_statistics(x, x, None, True, None)
        grouped_moments([x.clone(), x], [0, 0], out)
        grouped_change([x.clone()], [x], [0], change)

    assert choose(x) == Choice(True, "CUDA tensor")
    everything()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_importing_the_reductions_imports_no_triton():
    import subprocess
    import sys

    code = (
        "import sys, torch; import stabwatch.watch; from stabwatch.kernels.moments import moments;"
        "moments(torch.ones(3)); print('triton.language' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

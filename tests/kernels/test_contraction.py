"""What attention does to differences between tokens, against singular values of dense weights in float64."""

from __future__ import annotations

import pytest
import torch

from stabwatch.kernels.contraction import contraction, eager
from stabwatch.kernels.contraction.naive import contraction as naive

CASES = {
    "plain": dict(),
    "causal": dict(causal=True),
    "grouped heads": dict(heads=6, groups=2, causal=True),
    "sharp": dict(size=40.0, causal=True),
    "flat": dict(size=1e-3),
    "a scale of one's own": dict(scale=0.5),
    "two tokens": dict(tokens=2),
    "bfloat16": dict(kind=torch.bfloat16, causal=True),
}


def call(heads=4, groups=4, tokens=48, width=16, size=1.0, causal=False, scale=None, kind=torch.float32, batch=2):
    draw = torch.Generator().manual_seed(0)
    q = (torch.randn(batch, heads, tokens, width, generator=draw) * size).to(kind)
    k = torch.randn(batch, groups, tokens, width, generator=draw).to(kind)
    return q, k, causal, scale


def mean_of(found):
    return (found[1] / found[0]).item()


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_largest_singular_value_between_centred_vectors(case):
    """Measured: 0.1 % below at most, up to 256 tokens and over four decades of sharpness; above by rounding only."""
    q, k, causal, scale = call(**CASES[case])
    found, true = contraction(q, k, None, causal, scale), naive(q, k, None, causal, scale)
    assert found[0] == len(true)
    assert true.mean().item() * (1 - 0.002) <= mean_of(found) <= true.mean().item() * (1 + 1e-5)


def masks(tokens):
    draw = torch.Generator().manual_seed(1)
    some = torch.rand(tokens, tokens, generator=draw) < 0.7
    padded = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    padded[..., -9:] = False
    least = torch.finfo(torch.float32).min
    return {
        "random": some,
        "padding": padded,
        "as numbers": torch.where(padded, 0.0, -torch.inf),
        "as the least numbers": torch.where(padded, 0.0, least),
        "a bias": torch.randn(1, 4, tokens, tokens, generator=draw),
        "of keys": padded[:, :, -1:].clone(),
        "blind rows": some & (torch.arange(tokens) > 4)[:, None],
    }


@pytest.mark.parametrize("name", masks(2))
def test_a_mask_is_applied_and_who_takes_no_part_is_left_out(name):
    q, k, *_ = call()
    mask = masks(q.shape[-2])[name]
    true = naive(q, k, mask, False, None).mean().item()
    assert mean_of(contraction(q, k, mask, False, None)) == pytest.approx(true, rel=0.002)


def test_hidden_keys_change_nothing():
    q, k, *_ = call()
    mask = masks(q.shape[-2])["padding"]
    k[..., -9:, :] = 1e4
    q[..., -9:, :] = q[..., :1, :]
    before = contraction(q, k, mask, False, None)
    k[..., -9:, :] = -7.0
    assert contraction(q, k, mask, False, None).equal(before)


def test_what_it_means():
    """Attention that averages makes tokens one; attention to oneself keeps them; a sink that all look at does not."""
    n = 32
    one = torch.ones(1, 1, n, 8)
    assert mean_of(contraction(one, one, None, False, None)) == pytest.approx(0.0, abs=1e-5)
    own = torch.eye(n)[None, None] * 30
    assert mean_of(contraction(own, own, None, False, 1.0)) == pytest.approx(1.0, abs=1e-5)
    key = torch.zeros(1, 1, n, 8)
    key[..., 0, :] = 30.0
    assert mean_of(contraction(one, key, None, False, 1.0)) == pytest.approx(0.0, abs=1e-5)


def test_where_all_keys_are_looked_at_alike_it_is_what_the_authors_measure():
    """They leave the output as it is, which differs where one key is looked at more than another."""
    shift = torch.stack([torch.eye(24).roll(i, 1) for i in range(24)])
    rates = torch.rand(24, generator=torch.Generator().manual_seed(2)).pow(4)
    weights = (shift * (rates / rates.sum())[:, None, None]).sum(0)
    own = eager._largest(eager._centred(weights[None])).item()
    centred = weights.double() - weights.double().mean(1, keepdim=True)
    assert own == pytest.approx(torch.linalg.matrix_norm(centred, 2).item(), rel=0.002)


def test_of_long_sequences_the_first_tokens_are_looked_at():
    """Local attention stays what it is: a head that copies the token before lets everything through."""
    q, k, _, scale = call(tokens=600, heads=2, groups=2)
    part = naive(q[:, :, :256], k[:, :, :256], None, True, scale).mean().item()
    assert mean_of(contraction(q, k, None, True, scale)) == pytest.approx(part, rel=0.002)
    angle = torch.arange(600) * 0.5
    own = 20 * torch.stack((angle.cos(), angle.sin(), (angle * 0.037).cos(), (angle * 0.037).sin()), dim=-1)[None, None]
    assert mean_of(contraction(own.roll(1, 2), own, None, False, 1.0)) > 0.9


SPECTRA = {"spread": torch.linspace(0, 1, 256), "half": torch.linspace(0.5, 1, 256), "flat": torch.ones(256)}


@pytest.mark.parametrize("name", SPECTRA)
def test_singular_values_that_lie_close_together(name):
    """Measured: 0.5 %, 1.1 % and, for one 5 % above all others, 3.5 % below."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(256, 256, generator=draw, dtype=torch.float64))[0] for _ in range(2))
    values = SPECTRA[name].double().clone()
    values[-1] *= 1.05
    found = eager._largest((left * values @ right.T).float()[None]).item()
    assert 0.96 * values[-1] <= found <= values[-1] * (1 + 1e-5)


@pytest.mark.parametrize("pads", [8, 40])
def test_padding_has_no_part(pads):
    q, k, *_ = call(tokens=8 + pads)
    real = torch.arange(8 + pads).expand(2, -1) < 8
    true = naive(q[:, :, :8], k[:, :, :8], None, True, None).mean().item()
    assert mean_of(contraction(q, k, None, True, None, real)) == pytest.approx(true, rel=0.002)
    mask = real[:, None, None, :] & torch.ones(8 + pads, 8 + pads, dtype=torch.bool).tril()
    assert mean_of(contraction(q, k, mask, False, None, real)) == pytest.approx(true, rel=0.002)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_the_least_number_of_any_type_hides(kind):
    """As transformers write their masks, for padding on the left."""
    q, k, *_ = call(tokens=20)
    shown = torch.ones(20, 20, dtype=torch.bool).tril() & (torch.arange(20) >= 6)
    mask = torch.zeros(1, 1, 20, 20, dtype=kind).masked_fill(~shown, torch.finfo(kind).min)
    true = naive(q, k, shown, False, None).mean().item()
    assert mean_of(contraction(q, k, mask, False, None)) == pytest.approx(true, rel=0.002)


def test_one_token_alone_is_nothing_to_measure():
    q, k, *_ = call(tokens=9)
    one = torch.arange(9).expand(2, -1) < 1
    assert contraction(q, k, None, True, None, one).tolist() == [0.0, 0.0]
    assert contraction(q, k, torch.zeros(9, 9, dtype=torch.bool), False, None).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_head_that_is_not_finite_is_left_out(bad):
    q, k, causal, scale = call()
    q[0, 1, 3, 0] = bad
    found, true = contraction(q, k, None, causal, scale), naive(q, k, None, causal, scale)
    assert found[0] == 3 and true.isnan().sum() == 1
    assert mean_of(found) == pytest.approx(true.nanmean().item(), rel=0.002)
    q[:] = bad
    assert contraction(q, k, None, causal, scale).tolist() == [0.0, 0.0]

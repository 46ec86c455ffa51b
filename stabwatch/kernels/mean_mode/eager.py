"""Plain torch: one matrix product over all tokens, one over the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.column_moments import column_sums
from stabwatch.kernels.moments.eager import host_sumsq
from stabwatch.kernels.where import on_host


def mean_mode(inputs: Tensor, gradients: Tensor, groups: Tensor | None = None) -> Tensor:
    """float32 (5,): samples, |G_mean|^2, |G_centred|^2, |G|^2, sum over tokens of |d|^2 |y|^2.

    inputs y (B, T, I), gradients d (B, T, O), any floating type. groups: bool (K, B, T), disjoint. Each group has a
    separate mean, and so have the tokens in no group. The centred part is computed from centred factors, not as a
    difference of large numbers.
    """
    y, d = inputs.detach().float(), gradients.detach().float()
    if groups is None:
        tokens = inputs.shape[1]
        y_mean, d_mean = (column_sums(x.detach()) / tokens for x in (inputs, gradients))
        mean = d_mean.mT @ y_mean * tokens
        y_centred, d_centred = y - y_mean[:, None], d - d_mean[:, None]
    else:
        member = torch.cat((groups, ~groups.any(dim=0, keepdim=True))).movedim(0, 1).float()
        tokens_of = member.sum(-1, keepdim=True)
        y_mean, d_mean = (member @ x / tokens_of.clamp(min=1) for x in (y, d))
        mean = (d_mean * tokens_of).flatten(0, 1).mT @ y_mean.flatten(0, 1)
        y_centred, d_centred = y - member.mT @ y_mean, d - member.mT @ d_mean
    centred = d_centred.flatten(0, 1).mT @ y_centred.flatten(0, 1)
    outer = (d.square().sum(-1) * y.square().sum(-1)).sum()
    samples = torch.full((), float(len(y)), device=y.device)
    return torch.stack((samples, _sumsq(mean), _sumsq(centred), _sumsq(mean + centred), outer))


def dead_units(inputs: Tensor) -> Tensor:
    """float32 (2,): number of features of (..., D), and number of those that are zero in every row."""
    rows = inputs.detach().flatten(0, -2)
    dead = (rows == 0).all(dim=0).sum(dtype=torch.float32)
    return torch.stack((torch.full_like(dead, float(rows.shape[-1])), dead))


def _sumsq(x: Tensor) -> Tensor:
    return torch.tensor(host_sumsq(x)) if on_host(x) else torch.linalg.vector_norm(x).square()

"""The definition: one outer product after the other, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_mode(inputs: Tensor, gradients: Tensor, groups: Tensor | None = None) -> Tensor:
    """float64 (5,): samples, |G_mean|^2, |G_centred|^2, |G|^2, sum over tokens of |d|^2 |y|^2.

    inputs y (B, T, I), gradients d (B, T, O). G = sum over b, t of d y^T;
    G_mean = sum over b of T mean(d) mean(y)^T; G_centred has the deviations from those means. With groups (K, B, T):
    the means are those of a token's group, or of the tokens in no group.
    """
    y, d = inputs.detach().double(), gradients.detach().double()
    whole, mean, centred = (torch.zeros(d.shape[-1], y.shape[-1], dtype=torch.float64) for _ in range(3))
    outer = 0.0
    for b in range(len(y)):
        for t in range(y.shape[1]):
            same_group = torch.ones(y.shape[1], dtype=torch.bool)
            if groups is not None:
                same_group = (groups[:, b] == groups[:, b, t : t + 1]).all(dim=0)
            yt, dt, y_mean, d_mean = y[b, t], d[b, t], y[b, same_group].mean(0), d[b, same_group].mean(0)
            whole += torch.outer(dt, yt)
            mean += torch.outer(d_mean, y_mean)
            centred += torch.outer(dt - d_mean, yt - y_mean)
            outer += float(dt.square().sum() * yt.square().sum())
    parts = [float(len(y)), *(float(g.square().sum()) for g in (mean, centred, whole)), outer]
    return torch.tensor(parts, dtype=torch.float64)

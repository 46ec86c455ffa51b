"""The definition: one outer product after the other, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_mode(inputs: Tensor, gradients: Tensor) -> Tensor:
    """float64 (5,): samples, |G_mean|^2, |G_centred|^2, |G|^2, sum over tokens of |d|^2 |y|^2.

    inputs y (B, T, I), gradients d (B, T, O). G = sum over b, t of d y^T;
    G_mean = sum over b of T mean(d) mean(y)^T; G_centred has the deviations from those means.
    """
    y, d = inputs.detach().double(), gradients.detach().double()
    whole, mean, centred = (torch.zeros(d.shape[-1], y.shape[-1], dtype=torch.float64) for _ in range(3))
    outer = 0.0
    for ys, ds in zip(y, d, strict=True):
        for yt, dt in zip(ys, ds, strict=True):
            whole += torch.outer(dt, yt)
            mean += torch.outer(ds.mean(0), ys.mean(0))
            centred += torch.outer(dt - ds.mean(0), yt - ys.mean(0))
            outer += float(dt.square().sum() * yt.square().sum())
    parts = [float(len(y)), *(float(g.square().sum()) for g in (mean, centred, whole)), outer]
    return torch.tensor(parts, dtype=torch.float64)

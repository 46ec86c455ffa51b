"""Which matrices a parameter holds: some layers keep several in one tensor, and each has a spectrum of its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

THIRDS = frozenset({"qkv", "qkv_proj", "c_attn", "Wqkv", "in_proj_weight"})
"""Words in a parameter's name that mean queries, keys and values one after the other. `query_key_value` (GPT-NeoX,
BLOOM) and `linear_qkv` (Megatron) interleave them by head, so that a third of their rows is no matrix of the model."""


def matrices(name: str, parameter: Tensor, module: nn.Module | None = None) -> tuple[tuple[str, ...], Tensor]:
    """Suffixes of the parts, and a view (M, R, C) of them; M is 1 and the suffix '' where there is one matrix.

    A convolution is (out, in * kernel). Fused queries, keys and values are three, whether they lie in rows (Linear) or
    in columns (Conv1D of GPT-2); not if the long side is other than thrice the short one, as with fewer heads for keys:
    then the parts are unequal, and the norm of all is no less than that of each. Three dimensions elsewhere are a stack
    of experts. What has one row or one column only, a bias or a scale, is no matrix: M is 0.
    """
    x = parameter.detach()
    if x.dim() != 3 or isinstance(module, _ConvNd):
        x = (x.flatten(1) if x.dim() > 1 else x.reshape(1, -1))[None]
    if min(x.shape[1:]) < 2:
        return (), x[:0]
    if x.shape[0] == 1 and THIRDS.intersection(name.split(".")):
        rows, columns = x.shape[1:]
        if rows == 3 * columns:
            return ("q", "k", "v"), x[0].unflatten(0, (3, columns))
        if columns == 3 * rows:
            return ("q", "k", "v"), x[0].unflatten(1, (3, rows)).movedim(1, 0)
    return ("",) if x.shape[0] == 1 else tuple(map(str, range(x.shape[0]))), x

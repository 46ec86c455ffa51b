"""The matrices of a parameter. Some layers store several in one tensor, and each has its spectrum."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

THIRDS = frozenset({"qkv", "qkv_proj", "c_attn", "Wqkv", "in_proj_weight"})
"""Words in a parameter's name for queries, keys and values one after the other. `query_key_value` (GPT-NeoX, BLOOM) and
`linear_qkv` (Megatron) are not among them: they interleave by head, so a third of their rows is not one matrix."""

INJECTIONS = frozenset({"injection", "inject", "input_injection"})
"""Words in the name of the layer by which a looped model adds its input to its state; it takes both in one row."""


def matrices(name: str, parameter: Tensor, module: nn.Module | None = None) -> tuple[tuple[str, ...], Tensor]:
    """Suffixes of the matrices, and a view (M, R, C) of them. With one matrix, M is 1 and the suffix is ''.

    A convolution is (out, in * kernel). Fused queries, keys and values are three matrices, in rows (Linear) or in
    columns (Conv1D of GPT-2), if the long side is three times the short one. With fewer heads for keys it is not: then
    the parts differ in size and count as one matrix, whose norm is at least that of each part. A linear injection of a
    looped model, from state and input in one row to the state, is two matrices. Other parameters of
    three dimensions are a stack of experts. A bias or a scale, with one row or one column, is no matrix: M is 0.
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
    if x.shape[0] == 1 and x.shape[2] == 2 * x.shape[1] and INJECTIONS.intersection(name.split(".")):
        return ("state", "input"), x[0].unflatten(1, (2, x.shape[1])).movedim(1, 0)
    return ("",) if x.shape[0] == 1 else tuple(map(str, range(x.shape[0]))), x

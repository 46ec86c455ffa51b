"""Parameters in plain lists, which the model does not know."""

from __future__ import annotations

import torch
from torch import nn

from stabwatch.hooks.probes.reach import unregistered


def test_flat_parameters_of_a_wrapper_are_none():
    """FSDP1 keeps them in a list beside the parameters that they are made of, which the model knows."""
    model = nn.Linear(2, 2)
    layer, flat = nn.Linear(2, 2), nn.Parameter(torch.zeros(6))
    flat._shard_param_infos = ()
    model.layers, model.params = [layer], [flat]
    assert [name for name, _ in unregistered(model)] == ["layers", "layers"]

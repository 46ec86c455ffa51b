"""Inputs whose numbers do not lie in one piece of memory: sparse, nested, quantized, complex."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 0]])
ADJACENCY = torch.sparse_coo_tensor(EDGES, torch.ones(5), (4, 4), check_invariants=True).coalesce()
GRAPHS = {
    "coo": ADJACENCY,
    "complex": torch.ones(4, 4, dtype=torch.complex64),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # they are beta, or deprecated
    GRAPHS["csr"] = ADJACENCY.to_sparse_csr()
    GRAPHS["quantized"] = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)
    GRAPHS["nested"] = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])


class Convolution(nn.Module):
    """A layer of a graph network."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.weight, self.first = nn.Linear(6, 6), first

    def forward(self, *given):
        x, graph = reversed(given) if self.first else given
        x = self.weight(x)
        if graph.is_quantized:
            return graph.dequantize() @ x
        if graph.is_nested:
            return x + graph.to_padded_tensor(0.0).sum()
        return graph.real @ x if graph.is_complex() else torch.sparse.mm(graph, x) if graph.is_sparse else graph @ x


class Network(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.layers = first, nn.ModuleList(Convolution(first) for _ in range(2))

    def forward(self, *given):
        x, graph = reversed(given) if self.first else given
        for layer in self.layers:
            x = layer(graph, x) if self.first else layer(x, graph)
        return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_it_is_trained_as_without_a_watch_and_nothing_fails(graph, first, attach):
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Network(first)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = attach(model, optimizer, every_step=True) if watched else None
        for _ in range(3):
            x = torch.randn(4, 6)
            model(*((GRAPHS[graph], x) if first else (x, GRAPHS[graph]))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not watch._session.isolation.errors
    log = attach.finish()
    assert len(log.steps) == 3 and not [e for e in log.events if e.kind == "error"]
    batches = watch._session._taps.batches.of(0, 2)
    assert [entry["shape"] for entry in batches] == [[4, 6]] * 3

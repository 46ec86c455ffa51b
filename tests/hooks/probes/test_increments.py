"""Changes of the query-key products: against dense matrices, on attention modules of other authors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.probes.increments import NO_HEADS
from stabwatch.kernels.increment import increment
from stabwatch.kernels.increment.naive import increment as naive


@pytest.mark.parametrize("step", [1e-1, 1e-5])
@pytest.mark.parametrize("kind", ["full", "rank one", "queries only", "nothing"])
def test_it_is_that_of_the_dense_matrix(kind, step):
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 4, 24, generator=draw) for n in (6, 2))
    changes = [step * torch.randn(x.shape, generator=draw) for x in (query, key)]
    if kind == "rank one":
        changes = [step * torch.ones(x.shape) for x in (query, key)]
    if kind in ("queries only", "nothing"):
        changes[1].zero_()
    if kind == "nothing":
        changes[0].zero_()
    moved = query + changes[0], key + changes[1]
    found, truth = increment(*moved, query, key), naive(*moved, query, key)
    entropy = 5
    assert found[entropy].item() == pytest.approx(truth[entropy].item(), rel=2e-3, abs=1e-4)
    found[entropy] = truth[entropy] = 0.0
    torch.testing.assert_close(found.double(), truth, rtol=2e-3, atol=1e-12)


def test_numbers_that_are_not_finite_are_no_error():
    query, key = torch.randn(3, 4, 24), torch.randn(3, 4, 24)
    moved = query + 0.1
    moved[1, 2, 3] = torch.nan
    found = increment(moved, key, query, key)
    assert found[0] == found[4] == 2 and torch.isfinite(found[[1, 5, 6]]).all()


def weights(module):
    """(queries, keys) in float64, by heads of 8."""
    if isinstance(module, nn.MultiheadAttention):
        q, k, _ = module.in_proj_weight.chunk(3)
    elif hasattr(module, "c_attn"):
        q, k, _ = module.c_attn.weight.T.chunk(3)
    else:
        q, k = module.q_proj.weight, module.k_proj.weight
    return [x.detach().double().unflatten(0, (-1, 8)).clone() for x in (q, k)]


class Torch(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.head = (
            nn.Embedding(64, 32),
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.Linear(32, 64),
        )

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(self.attn(x, x, x)[0])


_LLAMA = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
)
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64)
    ),
    "torch": Torch,
}


@pytest.mark.parametrize("kind", MODELS)
def test_attention_of_other_authors(kind, attach):
    torch.manual_seed(0)
    model = MODELS[kind]()
    types = (nn.MultiheadAttention,) if kind == "torch" else ()
    name, module = next(
        (n, m) for n, m in model.named_modules() if isinstance(m, types) or n.endswith(("self_attn", ".attn"))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer)
    seen = []
    for _ in range(PHASES):
        seen.append(weights(module))
        data = torch.randint(64, (2, 12))
        out = model(input_ids=data)
        F.cross_entropy(getattr(out, "logits", out).flatten(0, 1), data.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    seen.append(weights(module))
    assert not watch._session.isolation.errors
    log = attach.finish()
    steps, ranks = log.series("query_key_increment_rank", name)
    assert len(steps) == 1
    at = int(steps[0])
    count, rank, change, whole, _, entropy, least = naive(*seen[at + 1], *seen[at]).tolist()
    assert ranks[0] == pytest.approx(rank / count, rel=1e-2) and 1 <= least <= 16
    shannon = log.series("query_key_increment_entropy", name)[1][0]
    assert shannon == pytest.approx(entropy / count, rel=1e-2)
    assert log.series("query_key_increment_rank_min", name)[1][0] == pytest.approx(least, rel=1e-2)
    assert log.series("query_key_increment_ratio", name)[1][0] == pytest.approx((change / whole) ** 0.5, rel=1e-2)


def test_an_unknown_number_of_heads_is_said(attach):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ x

    model = nn.Sequential(Own())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    model(torch.randn(2, 3, 8)).square().mean().backward()
    optimizer.step()
    assert {"tap": "increment", "site": "0", "reason": NO_HEADS} in watch.coverage()["unmeasured"]

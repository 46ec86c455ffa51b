"""Attention as people write it: one small model for each spelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as imported_sdpa
from torch.nn.functional import softmax as imported_softmax

from benchmarks.compat.program import Case, NotTried, Program

WIDTH, HEADS, TOKENS = 16, 2, 6
SCALE = (WIDTH // HEADS) ** -0.5
Core = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(module, query, key, value), each (batch, heads, tokens, width of a head) -> the same shape."""
Softmax = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Projections around a core."""

    def __init__(self, core: Core, **parts: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.core = core
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.out(self.core(self, q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = attention
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        x = x + self.attn(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Net(nn.Module):
    """Two blocks."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(make()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        for block in self.blocks:
            x = block(x)
        return x


def program(make: Callable[[], nn.Module]) -> Program:
    """A regression with two blocks."""
    model = Net(make)
    x = torch.randn(3, TOKENS, WIDTH)
    return Program(model, lambda: model(x).square().mean())


def by(softmax: Softmax) -> Core:
    """Scores, this softmax, and the sum of the values."""

    def core(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax(q @ k.transpose(-2, -1) * SCALE) @ v

    return core


def fused(**options: Any) -> Core:
    """`scaled_dot_product_attention`."""
    return lambda module, q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def causal(softmax: Softmax, fill: float = -math.inf) -> Core:
    """The same, with a causal mask."""
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()

    def core(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~allowed, fill)) @ v

    return core


def einsum(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both products as sums over indices."""
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(SCALE).softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def keys_first(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax runs over the second but last dimension."""
    return (k @ q.transpose(-2, -1) * SCALE).softmax(-2).transpose(-2, -1) @ v


def flat_heads(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Batch and heads are one dimension."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(-1), v).unflatten(0, (-1, HEADS))


def baddbmm(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores with a bias from one call."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), beta=0.0, alpha=SCALE)
    return torch.bmm(F.softmax(scores, dim=-1), v).unflatten(0, (-1, HEADS))


def per_head(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A loop over heads."""
    heads = zip(*(x.unbind(1) for x in (q, k, v)), strict=True)
    return torch.stack([(a @ b.transpose(-2, -1) * SCALE).softmax(-1) @ c for a, b, c in heads], dim=1)


def per_sample(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A loop over samples and heads: scores of two dimensions."""
    pairs = zip(*(x.flatten(0, 1) for x in (q, k, v)), strict=True)
    return torch.stack([torch.softmax(a @ b.T * SCALE, 1) @ c for a, b, c in pairs]).unflatten(0, (-1, HEADS))


def chunked(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries in pieces."""
    return torch.cat([(part @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v for part in q.split(3, dim=2)], dim=2)


def capped(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are capped by tanh, as in Gemma 2."""
    scores = 5.0 * torch.tanh(q @ k.transpose(-2, -1) * SCALE / 5.0)
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def cosine(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cosines times a temperature, as in Swin 2."""
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * 10.0).softmax(-1) @ v


def with_bias(module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A learned bias is added, as in T5."""
    return torch.softmax(q @ k.transpose(-2, -1) + module.bias, dim=-1) @ v


def with_sink(module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A learned logit beside the keys, as in GPT-OSS."""
    scores = q @ k.transpose(-2, -1) * SCALE
    sink = module.sink.expand(len(q), HEADS, TOKENS, 1)
    return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1] @ v


def by_log(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp of log_softmax."""
    return (q @ k.transpose(-2, -1) * SCALE).log_softmax(-1).exp() @ v


def by_exp(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Nothing that is called softmax."""
    weights = (q @ k.transpose(-2, -1) * SCALE).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def by_logsumexp(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights by subtracting the logsumexp."""
    scores = q @ k.transpose(-2, -1) * SCALE
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def linear(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention: no softmax."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(2, keepdim=True).transpose(-2, -1))


def flex(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`flex_attention`, not compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    try:
        return flex_attention(q, k, v)  # type: ignore[return-value]
    except NotImplementedError as error:
        raise NotTried(str(error).split("\n")[0]) from error


class Core2(nn.Module):
    """An attention core without parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, heads, tokens, width)."""
        return (q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v


class Fused2(nn.Module):
    """The same, fused."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, heads, tokens, width)."""
        return F.scaled_dot_product_attention(q, k, v)


class TransformerMixer(Attention):
    """A name that says nothing."""


class WindowMSA(Attention):
    """As in vision transformers."""


class Aufmerksamkeit(Attention):
    """In another language."""


class Внимание(Attention):
    """In another alphabet."""


class 注意力(Attention):
    """In another script."""


class Torch(nn.Module):
    """`nn.MultiheadAttention`."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        return self.inner(x, x, x, **self.options)[0]  # type: ignore[no-any-return]


class Kept(Attention):
    """Keeps the function as an attribute of the class."""

    attend = staticmethod(F.scaled_dot_product_attention)


class AdditiveAttention(nn.Module):
    """Bahdanau's attention: scores are no products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        mixed = torch.tanh(self.query(x).unsqueeze(2) + self.key(x).unsqueeze(1))
        return self.score(mixed).squeeze(-1).softmax(-1) @ x


class SingleHeadAttention(nn.Module):
    """One head, without a dimension for it."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        return (self.to_q(x) @ self.to_k(x).mT * WIDTH**-0.5).softmax(dim=-1) @ self.to_v(x)


class LatentAttention(nn.Module):
    """Learned queries, as in Perceiver."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.kv = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        k, v = self.kv(x).chunk(2, dim=-1)
        return (self.latents @ k.transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ v


class Grouped(nn.Module):
    """One head of keys and values for all queries."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q_proj, self.kv_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        q = self.q_proj(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv_proj(x).unflatten(-1, (2, 1, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        return ((q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v).transpose(1, 2).flatten(2)


@torch.jit.script
def scripted(scores: Tensor) -> Tensor:
    """A softmax in TorchScript."""
    return torch.softmax(scores, dim=-1)


def _module(core: Core, kind: type[Attention] = Attention, **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: kind(core, **{name: make() for name, make in parts.items()})


def _call(name: str) -> Core:
    return lambda module, q, k, v: getattr(module, name)(q, k, v)


SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "F.scaled_dot_product_attention": _module(fused()),
    "F.scaled_dot_product_attention, causal": _module(fused(is_causal=True)),
    "F.scaled_dot_product_attention, boolean mask": _module(
        fused(attn_mask=torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())
    ),
    "F.scaled_dot_product_attention, added mask": _module(fused(attn_mask=torch.zeros(TOKENS, TOKENS))),
    "F.scaled_dot_product_attention, dropout": _module(fused(dropout_p=0.1)),
    "F.scaled_dot_product_attention, scale": _module(fused(scale=0.1)),
    "scaled_dot_product_attention, imported by name": _module(lambda m, q, k, v: imported_sdpa(q, k, v)),
    "scaled_dot_product_attention as an attribute": _module(
        _call("attend"), attend=lambda: F.scaled_dot_product_attention
    ),
    "scaled_dot_product_attention as an attribute of the class": _module(_call("attend"), Kept),
    "scaled_dot_product_attention in a partial": _module(
        _call("attend"), attend=lambda: partial(F.scaled_dot_product_attention, is_causal=True)
    ),
    "scaled_dot_product_attention, grouped queries": partial(Grouped, True),
    "F.softmax": _module(by(lambda z: F.softmax(z, dim=-1))),
    "F.softmax, imported by name": _module(by(lambda z: imported_softmax(z, dim=-1))),
    "F.softmax in float32, capped": _module(capped),
    "torch.softmax": _module(by(lambda z: torch.softmax(z, -1))),
    "torch.softmax, last of four dimensions": _module(by(lambda z: torch.softmax(z, dim=3))),
    "torch.special.softmax": _module(by(lambda z: torch.special.softmax(z, -1))),
    "Tensor.softmax": _module(by(lambda z: z.softmax(-1))),
    "nn.Softmax": _module(lambda m, q, k, v: m.soft(q @ k.mT * SCALE) @ v, soft=lambda: nn.Softmax(dim=-1)),
    "keys first, softmax over the last but one": _module(keys_first),
    "einsum": _module(einsum),
    "bmm, heads in the batch": _module(flat_heads),
    "baddbmm": _module(baddbmm),
    "a loop over heads": _module(per_head),
    "a loop over samples": _module(per_sample),
    "queries in pieces": _module(chunked),
    "causal, masked with -inf": _module(causal(lambda z: z.softmax(-1))),
    "causal, masked with -1e9": _module(causal(lambda z: F.softmax(z, -1), -1e9)),
    "cosine attention": _module(cosine),
    "a learned bias": _module(with_bias, bias=lambda: nn.Parameter(torch.zeros(HEADS, TOKENS, TOKENS))),
    "a learned sink": _module(with_sink, sink=lambda: nn.Parameter(torch.zeros(HEADS, 1, 1))),
    "grouped queries by hand": partial(Grouped, False),
    "learned queries": LatentAttention,
    "one head": SingleHeadAttention,
    "additive scores": AdditiveAttention,
    "a core without parameters": _module(_call("inner"), inner=Core2),
    "a fused core without parameters": _module(_call("inner"), inner=Fused2),
    "class TransformerMixer": _module(by(lambda z: z.softmax(-1)), TransformerMixer),
    "class WindowMSA": _module(by(lambda z: z.softmax(-1)), WindowMSA),
    "class Aufmerksamkeit": _module(by(lambda z: z.softmax(-1)), Aufmerksamkeit),
    "class Внимание": _module(by(lambda z: z.softmax(-1)), Внимание),
    "class 注意力": _module(by(lambda z: z.softmax(-1)), 注意力),
    "nn.MultiheadAttention": Torch,
    "nn.MultiheadAttention without weights": partial(Torch, need_weights=False),
    "nn.TransformerEncoderLayer": partial(nn.TransformerEncoderLayer, WIDTH, HEADS, 32, batch_first=True),
    "a softmax in TorchScript": _module(by(scripted)),
    "exp of log_softmax": _module(by_log),
    "exp and sum": _module(by_exp),
    "logsumexp": _module(by_logsumexp),
    "linear attention": _module(linear),
    "flex_attention": _module(flex),
}
"""What is written -> one attention layer."""


def cases() -> Iterator[Case]:
    """One case for each spelling."""
    for name, make in SPELLINGS.items():
        yield Case("spellings of attention", name, partial(program, make), " ")

"""Data that a machine has or scikit-learn ships, the models trained on it, and what can go wrong with a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn

from benchmarks.validation.mean_mode import Stack, fields
from benchmarks.zoo import SMALL, Setting
from stabwatch.demo import GPT, batches, corpus

Batch = tuple[Tensor, Tensor]
Draw = Callable[[int], Batch]
"""The batch of a step."""


def text(seed: int) -> Draw:
    """Bytes of the standard library and those that follow them."""
    draw = batches(corpus(1 << 20), SMALL)
    return lambda step: draw()


def digits(seed: int, batch: int = 32) -> Draw:
    """8 x 8 images of handwritten digits, shifted by a pixel at most."""
    g = torch.Generator().manual_seed(seed)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)

    def draw(step: int) -> Batch:
        chosen = torch.randint(0, len(labels), (batch,), generator=g)
        shift = torch.randint(-1, 2, (2,), generator=g).tolist()
        return images[chosen].roll(shift, dims=(2, 3)), labels[chosen]

    return draw


def cancer(seed: int, batch: int = 32) -> Draw:
    """30 standardised features, two classes."""
    return _rows(seed, *load_breast_cancer(return_X_y=True), batch=batch)


def diabetes(seed: int, batch: int = 32) -> Draw:
    """10 standardised features, one standardised number to predict."""
    return _rows(seed, *load_diabetes(return_X_y=True), batch=batch)


def _rows(seed: int, inputs: object, targets: object, batch: int) -> Draw:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets)
    x = (x - x.mean(0)) / x.std(0)
    if y.is_floating_point():
        y = ((y - y.mean()) / y.std()).float()[:, None]

    def draw(step: int) -> Batch:
        chosen = torch.randint(0, len(y), (batch,), generator=g)
        return x[chosen], y[chosen]

    return draw


def fields_of(seed: int) -> Draw:
    """Noisy smooth fields and the noise in them."""
    g = torch.Generator().manual_seed(seed)
    return lambda step: fields(g)


def memory(seed: int, batch: int = 32, length: int = 60) -> Draw:
    """Numbers of which two are marked; their sum is asked for (Hochreiter and Schmidhuber 1997)."""
    g = torch.Generator().manual_seed(seed)

    def draw(step: int) -> Batch:
        numbers = torch.rand(batch, length, generator=g)
        marks = torch.zeros(batch, length)
        for half in (0, 1):
            at = torch.randint(half * length // 2, (half + 1) * length // 2, (batch, 1), generator=g)
            marks.scatter_(1, at, 1.0)
        return torch.stack((numbers, marks), dim=-1), (numbers * marks).sum(1, keepdim=True)

    return draw


Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Over the last dimension, mean of all."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def setting(
    model: nn.Module, draw: Draw, optimizer: torch.optim.Optimizer, loss: Loss = cross_entropy, clip: float | None = 1.0
) -> Setting:
    """A model that learns targets from inputs."""

    def step_loss(step: int) -> Tensor:
        x, y = draw(step)
        return loss(model(x), y)

    return Setting(model, optimizer, step_loss, clip=clip)


def spoilt(draw: Draw, at: int, length: int, how: Callable[[Tensor, Tensor], Batch]) -> Draw:
    """The batches from step `at` on, `length` of them, spoilt."""

    def spoil(step: int) -> Batch:
        x, y = draw(step)
        return how(x, y) if at <= step < at + length else (x, y)

    return spoil


def other_labels(x: Tensor, y: Tensor) -> Batch:
    """Labels that belong to others."""
    return x, y.flatten()[torch.randperm(y.numel())].view_as(y)


def noise_bytes(x: Tensor, y: Tensor) -> Batch:
    """Random bytes."""
    noise = torch.randint(0, 256, (len(x), x.shape[1] + 1))
    return noise[:, :-1], noise[:, 1:]


def other_features(x: Tensor, y: Tensor) -> Batch:
    """Columns in another order, and not scaled."""
    return 30 * x.roll(x.shape[1] // 2, dims=1), y


def one_nan(x: Tensor, y: Tensor) -> Batch:
    """One element is NaN."""
    x = x.clone()
    x.view(-1)[0] = math.nan
    return x, y


def one_inf(x: Tensor, y: Tensor) -> Batch:
    """One element is infinite."""
    x = x.clone()
    x.view(-1)[-1] = math.inf
    return x, y


class Digits(nn.Module):
    """Convolutions with batch norm and residual branches."""

    def __init__(self, norm: bool = True, width: int = 24) -> None:
        super().__init__()
        made = (lambda: nn.BatchNorm2d(width)) if norm else nn.Identity
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), made(), nn.ReLU()) for _ in range(3)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class DigitsViT(nn.Module):
    """2 x 2 patches, an encoder, a mean and a head."""

    def __init__(self, layers: int = 3, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.patch(x).flatten(2).mT + self.positions)).mean(1))


class Experts(nn.Module):
    """Top-1 mixture of experts (Switch), with the load-balancing loss left in `.balance`."""

    def __init__(self, width: int, experts: int = 4) -> None:
        super().__init__()
        self.top_k = 1
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.balance: Tensor = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        best, chosen = weights.max(-1)
        share = F.one_hot(chosen, len(self.experts)).float().flatten(0, -2).mean(0)
        self.balance = len(self.experts) * (share * weights.flatten(0, -2).mean(0)).sum()
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + torch.where((chosen == i)[..., None], expert(x), 0.0)
        return out * best[..., None]


def gpt_of_experts(seed: int) -> GPT:
    """The demo's model with experts in place of its MLPs."""
    model = GPT(SMALL)
    for block in model.blocks:
        block.mlp = Experts(SMALL.width)  # type: ignore[assignment]
    return model


class ViTOfExperts(DigitsViT):
    """Experts behind the encoder."""

    def __init__(self) -> None:
        super().__init__(layers=2)
        self.mixture = Experts(48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.patch(x).flatten(2).mT + self.positions)
        return self.head(self.norm(x + self.mixture(x)).mean(1))


class TableTransformer(nn.Module):
    """A token for each column of a table, an encoder, a mean and a head (Gorishniy et al. 2021)."""

    def __init__(self, columns: int, outputs: int, layers: int = 2, width: int = 48) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(columns, width) / math.sqrt(width))
        self.shift = nn.Parameter(torch.randn(columns, width) / math.sqrt(width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(x[..., None] * self.scale + self.shift)).mean(1))


class TanhCNN(nn.Module):
    """Convolutions and tanh, as the first ones had them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = [1, *[width] * 3]
        self.layers = nn.Sequential(
            *(part for i, o in pairwise(sizes) for part in (nn.Conv2d(i, o, 3, padding=1), nn.Tanh()))
        )
        self.head = nn.Linear(width * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))


class PostNorm(nn.Module):
    """A language model with the norms behind the residual sums, as the first transformers had them."""

    def __init__(self, layers: int = 8, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.positions = nn.Parameter(0.02 * torch.randn(SMALL.context, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.encoder(self.embed(x) + self.positions, mask=mask, is_causal=True))


class Residual(nn.Module):
    """Residual branches without any norm, for rows of numbers."""

    def __init__(self, inputs: int, outputs: int, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(layers)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Half(nn.Module):
    """A model under float16 autocast."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return self.inner(x).float()


def plain(inputs: int, outputs: int, layers: int = 3, width: int = 64,
          unit: type[nn.Module] = nn.ReLU) -> nn.Sequential:  # fmt: skip
    """Linear layers and ReLUs (or other units), He's initialisation."""
    sizes = [inputs, *[width] * layers]
    parts: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(sizes):
        layer = nn.Linear(i, o)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / i))
        parts += [layer, unit()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def identity_start(cell: nn.RNN) -> None:
    """Recurrent weights that keep what they have (Le et al. 2015, IRNN)."""
    nn.init.eye_(cell.weight_hh_l0)
    nn.init.normal_(cell.weight_ih_l0, std=0.01)
    nn.init.zeros_(cell.bias_hh_l0)
    nn.init.zeros_(cell.bias_ih_l0)


class Elman(nn.Module):
    """A recurrent network that reads numbers and answers once."""

    def __init__(self, nonlinearity: str = "relu", width: int = 64) -> None:
        super().__init__()
        self.cell = nn.RNN(2, width, nonlinearity=nonlinearity, batch_first=True)
        identity_start(self.cell)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def stack(layers: int) -> Stack:
    """Pre-norm blocks of width 24 on 16 tokens, as in the validation of the mean mode."""
    made = Stack(centred=False)
    made.blocks = made.blocks[:layers]
    return made

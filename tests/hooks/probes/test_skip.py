"""Skip connections: the second tensor of a block beside the first, of networks of several shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.base.flags import PHASES


class Up(nn.Module):
    """Of a U-Net: the skip has more places and fewer channels."""

    def __init__(self, seen):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(12, 4, 3, padding=1), seen

    def forward(self, x, skip):
        self.seen.append((x.detach().double(), skip.detach().double()))
        return self.conv(torch.cat((F.interpolate(x, scale_factor=2), skip), dim=1))


class UNet(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.down, self.middle, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), Up(seen)

    def forward(self, x):
        first = self.down(x)
        return self.up(self.middle(F.avg_pool2d(first, 2)), 3 * first).mean(dim=(2, 3))


class Joined(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.line, self.seen = nn.Linear(6, 6), seen

    def forward(self, mask, x, skips):
        self.seen.append((x.detach().double(), skips[0].detach().double()))
        return x + self.line(x + skips[0]) * mask


class Tokens(nn.Module):
    """Of tokens: a mask of booleans comes first, and the skip is in a list; another one of fewer tokens is none."""

    def __init__(self, seen):
        super().__init__()
        self.blocks = nn.ModuleList(Joined(seen if i == 1 else []) for i in range(2))

    def forward(self, x):
        mask, skips = torch.ones(x.shape[:2], dtype=torch.bool)[..., None], [0.5 * x]
        for i, block in enumerate(self.blocks):
            x = block(mask, x, [s[:, :2] if i == 0 else s for s in skips]) if i else x + block.line(x)
        return x.mean(dim=1)


@pytest.mark.parametrize(("kind", "shape", "layer"), [(UNet, (4, 3, 8, 8), "up"), (Tokens, (4, 5, 6), "blocks.1")])
def test_it_is_the_ratio_of_the_two_inputs(kind, shape, layer, attach):
    torch.manual_seed(0)
    seen = []
    model = kind(seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(PHASES):
        optimizer.zero_grad()
        model(torch.randn(shape)).square().mean().backward()
        optimizer.step()
    assert not watch._session.isolation.errors
    log = attach.finish()
    assert {key.layer for key in log.keys if key.signal == "skip_main_ratio"} == {layer}
    steps, found = log.series("skip_main_ratio", layer)
    assert len(steps)
    for step, ratio in zip(steps, found, strict=True):
        main, skip = seen[int(step)]
        assert ratio == pytest.approx((skip.square().mean() / main.square().mean()).sqrt().item(), rel=1e-5)


def test_what_is_no_skip_is_not_measured(attach):
    """Cross-attention to fewer tokens, a mask of numbers, and a condition for each sample."""
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for _ in range(PHASES):
        model(torch.randn(2, 5, 8), torch.randn(2, 3, 8)).square().mean().backward()
        optimizer.step()
    assert not any(key.signal == "skip_main_ratio" for key in attach.finish().keys)

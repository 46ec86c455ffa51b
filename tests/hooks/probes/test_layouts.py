"""Tensors that are not (batch, tokens, features): sequences before samples, and images with their channels last."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.sites import select_modules
from stabwatch.kernels.mean_mode.naive import mean_mode
from stabwatch.kernels.tokens.naive import tokens


def encoder(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def alike_samples():
    """(3, 20, 16): the tokens of a sample have much in common, those of two samples nothing."""
    torch.manual_seed(1)
    return torch.randn(3, 20, 16) + 3 * torch.randn(3, 1, 16)


def trained(attach, model, x, steps=PHASES, **named):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x, **named) - x).square().mean().backward()
        optimizer.step()
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    return log


def shown(log, *signals):
    found = {(k.signal, k.layer): log.series(k.signal, k.layer)[1].tolist() for k in log.keys if k.signal in signals}
    return {key: values for key, values in found.items() if values}


@pytest.mark.parametrize("padding", [False, True])
def test_sequence_first_gives_what_batch_first_gives(attach, padding):
    x, found = alike_samples(), []
    hidden = torch.arange(20).expand(3, 20) >= torch.tensor([[20], [12], [7]])
    mask = {"src_key_padding_mask": hidden} if padding else {}
    for batch_first in (True, False):
        log = trained(attach, encoder(batch_first), x if batch_first else x.transpose(0, 1), **mask)
        found.append(shown(log, "token_similarity", "mean_mode_energy_ratio", "attention_contraction"))
    assert len(found[0]) >= 4
    assert found[0].keys() == found[1].keys()
    for key, values in found[0].items():
        assert found[1][key] == pytest.approx(values, rel=1e-4), key


def test_a_recurrent_layer_that_takes_sequences_first(attach):
    torch.manual_seed(0)
    model, x, outputs = nn.LSTM(16, 16), alike_samples().transpose(0, 1).contiguous(), []

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = model

        def forward(self, x):
            outputs.append(self.rnn(x)[0])
            return outputs[-1]

    log = trained(attach, First(), x)
    count, cosine, *_ = tokens(outputs[0].transpose(0, 1)).tolist()
    assert log.series("token_similarity", "rnn")[1].tolist() == pytest.approx([cosine / count], rel=1e-4)


def test_a_sequence_without_a_batch_stays_as_it_is(attach):
    log = trained(attach, encoder(False), torch.randn(20, 16))
    assert not shown(log, "token_similarity")
    assert shown(log, "activation_kurtosis")


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, True)])
def test_the_layout_is_known_where_all_parts_agree(first, second):
    block = nn.Sequential(nn.GRU(8, 8, batch_first=first), nn.GRU(8, 8, batch_first=second))
    roles = [c.role for c in select_modules(nn.Sequential(block, nn.Linear(8, 8))) if c.role.residual]
    assert [role.sequence_first for role in roles] == [not first and not second]


class Window(nn.Module):
    """A block as Swin has it: (B, H, W, C)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Depthwise(nn.Module):
    """A block as ConvNeXt has it: (B, C, H, W), with its features last inside."""

    def __init__(self, channels):
        super().__init__()
        self.inner = Window(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        return self.inner(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [Window, Depthwise])
@pytest.mark.parametrize("size", [(6, 6), (6, 12)])
def test_the_channels_of_an_image_are_its_features(attach, kind, size):
    torch.manual_seed(0)
    model = nn.Sequential(kind(12), kind(12))
    last = kind is Window
    x = torch.randn(2, *size, 12) + 3 * torch.randn(2, 1, 1, 12)
    x = x if last else x.permute(0, 3, 1, 2).contiguous()
    log = trained(attach, model, x)
    out = model[0](x)
    count, cosine, *_ = tokens(out.flatten(1, 2) if last else out.flatten(2).mT).tolist()
    assert log.series("token_similarity", "0")[1].tolist() == pytest.approx([cosine / count], rel=1e-4)


def test_the_mean_mode_of_a_sequence_first_writer_is_that_of_its_samples(attach):
    model, x, calls = encoder(False), alike_samples().transpose(0, 1), []

    def hook(module, args, output):
        y = args[0].detach()
        output.register_hook(lambda d: calls.append((y.transpose(0, 1), d.transpose(0, 1))))

    model.layers[0].linear2.register_forward_hook(hook)
    log = trained(attach, model, x)
    _, mean, centred, *_ = mean_mode(*calls[0]).tolist()
    share = log.series("mean_mode_energy_ratio", "layers.0.linear2")[1].tolist()
    assert share == pytest.approx([mean / (mean + centred)], rel=1e-4)

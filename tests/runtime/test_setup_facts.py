"""A linear model of several layers, a decoder that reads its target, and a loader that begins again are told."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.hooks.base.linear_chain import linear_layers


def _said(folder, model, loss, steps=24):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = stabwatch.attach(model, optimizer, run_dir=folder / "run", agent=False, verbose=False)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    assert not found.errors
    return {alert.rule for alert in found.alerts if alert.severity != "info"}


def _of(*layers, x=None):
    model = nn.Sequential(*layers)
    return linear_layers(model(torch.randn(8, 6) if x is None else x))


def test_linear_layers_are_counted_where_nothing_else_is_there():
    first, second, last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    assert _of(first, second, last) == 3
    assert _of(first, nn.BatchNorm1d(16), nn.Dropout(0.5), last) == 2
    assert _of(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3), x=torch.randn(8, 1, 6, 6)) == 2
    assert _of(nn.Embedding(9, 6), first, last, x=torch.randint(9, (8, 5))) == 2
    assert _of(first) == 1
    for between in (nn.ReLU(), nn.Softmax(-1), nn.LayerNorm(16)):
        assert _of(first, between, second, last) == 0
    assert _of(nn.Linear(6, 2), nn.Linear(2, 6)) == 0  # a factorisation
    hidden = first(torch.randn(8, 6))
    assert linear_layers(hidden * hidden) == 0


@pytest.mark.parametrize("between", [nn.Identity, nn.Tanh])
def test_layers_without_a_function_between_them_are_told(between, tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), between(), nn.Linear(16, 3))

    def loss():
        x = torch.randn(16, 6)
        return F.cross_entropy(model(x), x[:, :3].argmax(1))

    assert ("NoNonlinearity" in _said(tmp_path, model, loss)) == (between is nn.Identity)


class _Translator(nn.Module):
    """An encoder and a decoder. Embeddings are computed before both."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.reader, self.writer = (nn.GRU(16, 16, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 32)

    def forward(self, source, before):
        read, written = self.embed(source), self.embed(before)
        return self.head(self.writer(written, self.reader(read)[1])[0])


@pytest.mark.parametrize("same_text", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_decoder_that_reads_its_target_is_told(shifted, same_text, tmp_path):
    model = _Translator()

    def loss():
        text = torch.randint(32, (8, 26))
        source, words = text[:, :13], text[:, :13] if same_text else text[:, 13:]
        source = source[:, 1:].clone() if same_text else source[:, 1:]
        return F.cross_entropy(model(source, words[:, :-1] if shifted else words[:, 1:]).mT, words[:, 1:])

    assert ("TargetsNotShifted" in _said(tmp_path, model, loss)) == (not shifted)


class _Captioner(_Translator):
    """Says what is on a picture."""

    def forward(self, picture, before):
        return self.head(self.writer(self.embed(before), picture[None])[0])


@pytest.mark.parametrize("shifted", [False, True])
def test_a_captioner_that_reads_its_target_is_told(shifted, tmp_path):
    model = _Captioner()

    def loss():
        words = torch.randint(32, (8, 13))
        said = model(torch.randn(8, 16), words[:, :-1] if shifted else words[:, 1:])
        return F.cross_entropy(said.mT, words[:, 1:])

    assert ("TargetsNotShifted" in _said(tmp_path, model, loss)) == (not shifted)


@pytest.mark.parametrize("way", ["again", "again, shuffled", "kept", "one batch"])
def test_a_loader_that_begins_again_in_each_step_is_told(way, tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(64, 6)
    size = 64 if way == "one batch" else 8
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), size, shuffle=way == "again, shuffled")
    kept = itertools.chain.from_iterable(loader for _ in itertools.count())

    def loss():
        x, y = next(kept) if way == "kept" else next(iter(loader))
        return F.cross_entropy(model(x), y)

    next(iter(loader))  # before the run
    assert ("LoaderRestarted" in _said(tmp_path, model, loss, 40)) == (way == "again")
    if way != "one batch":
        known = stabwatch.open_run(tmp_path / "run").series("loader_restarted", arrow=True).to_pydict()
        assert len(known["step"]) == (5 if way == "kept" else 40)


@pytest.mark.parametrize(("frozen", "bias", "said"), [(True, 0.0, True), (True, 0.1, False), (False, 0.0, False)])
def test_a_head_that_is_frozen_as_it_was_drawn_is_told(frozen, bias, said, tmp_path):
    head = nn.Linear(16, 3)
    nn.init.constant_(head.bias, bias)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), head.requires_grad_(not frozen))

    def loss():
        x = torch.randn(16, 6)
        return F.cross_entropy(model(x), x[:, :3].argmax(1))

    assert ("OutputLayerUntrained" in _said(tmp_path, model, loss)) == said


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("scale", "target", "said"), [(100.0, 1.0, True), (1.0, 1.0, False), (0.1, 1000.0, False)])
def test_outputs_that_begin_far_too_large_are_told(scale, target, said, swapped, tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    nn.init.normal_(model[2].weight, 0, scale / 4)

    def loss():
        x = torch.randn(16, 6)
        pair = model(x)[:, 0], target * x[:, 0]
        return F.mse_loss(*(reversed(pair) if swapped else pair))

    assert ("InitialOutputsTooLarge" in _said(tmp_path, model, loss)) == said


@pytest.mark.parametrize("way", ["in each step", "kept apart", "without dropout", "never"])
def test_random_numbers_that_come_again_are_told(way, tmp_path):
    drop = nn.Dropout(0.0 if way == "without dropout" else 0.5)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), drop, nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(0)

    def loss():
        x = torch.randn(16, 6, generator=generator)
        if way == "kept apart":
            with torch.random.fork_rng():
                torch.manual_seed(1)
                x = x + 0.1 * torch.randn(16, 6)
        elif way != "never":
            torch.manual_seed(1)
        return F.cross_entropy(model(x), x[:, :3].argmax(1))

    assert ("RandomNumbersRepeat" in _said(tmp_path, model, loss, 40)) == (way == "in each step")

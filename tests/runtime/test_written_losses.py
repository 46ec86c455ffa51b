"""Losses that a program writes by itself, weights of classes, a softmax over the batch: named where they are wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.hooks.losses import range_of


def _named(tmp_path, model, loss, steps=24):
    """Trains; the names of all causes. loss: of the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    assert not found.errors
    return {cause.name for cause in found.diagnosis.causes}


def _dice(p, mask):
    return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


def _jaccard_of_each(p, mask):
    both = (p * mask).sum((1, 2, 3))
    return (1 - both / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) - both + 1).clamp(min=0.1)).mean()


def _squared(p, mask):
    p, mask = p.reshape(-1), mask.reshape(-1)
    return 1 - 2 * (p * mask).sum() / (p.pow(2).sum() + mask.pow(2).sum() + 1)


@pytest.mark.parametrize("of", [_dice, _jaccard_of_each, _squared, lambda p, mask: (p * mask).sum() / mask.sum()])
@pytest.mark.parametrize("logits", [True, False])
def test_an_overlap_of_logits_is_told(of, logits, tmp_path):
    """A mean over what a mask leaves is no overlap."""

    def loss(m):
        out = m(torch.randn(4, 1, 6, 6))
        mask = (torch.rand(4, 1, 6, 6) < 0.4).float()
        return of(out if logits else out.sigmoid(), mask) + F.binary_cross_entropy_with_logits(out, mask)

    told = logits and of in (_dice, _jaccard_of_each, _squared)
    assert ("OverlapOfLogits" in _named(tmp_path, nn.Conv2d(1, 1, 3, padding=1), loss)) == told


@pytest.mark.parametrize(
    ("multiply", "told"),
    [
        (lambda risk, event: risk * event[:, None], True),
        (lambda risk, event: event[:, None] * risk, True),
        (lambda risk, event: risk * event, False),
        (lambda risk, event: risk[:, None] * event[None], False),
        (lambda risk, event: risk * (event[:, None] == event[None]), False),
        (lambda risk, event: torch.outer(risk, event) * (event[:, None] >= event[None]), False),
        (lambda risk, event: 2 * (risk * event[:, None]) / 3, True),
    ],
    ids=["a column", "a column first", "a row", "each with each", "a matrix", "weighted products", "a factor"],
)
def test_a_row_that_is_multiplied_with_a_column_is_told(multiply, told, tmp_path):
    def loss(m):
        risk = m(torch.randn(12, 5)).squeeze(1)
        event = torch.randint(2, (12,)).float()
        return -multiply(risk - risk.logsumexp(0), event).mean()

    assert ("LossBroadcast" in _named(tmp_path, nn.Linear(5, 1), loss)) == told


class _Bounded(nn.Sequential):
    """Ends in a sigmoid, or in two."""

    def __init__(self, times):
        super().__init__(nn.Linear(5, 3), *(nn.Sigmoid() for _ in range(times)))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda out, y: (out - y).abs().sum(1).mean(),
        lambda out, y: F.cross_entropy(out, y.argmax(1)) + 5 * (out - y).square().mean(),
        lambda out, y: F.cross_entropy(out, y.argmax(1)) + 5 * ((out - y) ** 2).mean(),
        F.binary_cross_entropy,
        F.mse_loss,
    ],
    ids=["written", "squares", "beside another", "binary", "mse"],
)
def test_a_sigmoid_of_a_sigmoid_cannot_say_zero(wrong, times, tmp_path):
    def loss(m):
        return wrong(m(torch.randn(16, 5)), torch.eye(3)[torch.randint(3, (16,))])

    assert ("TargetsOutOfReach" in _named(tmp_path, _Bounded(times), loss)) == (times == 2)


def test_the_range_of_a_sigmoid_is_that_of_what_it_is_given():
    x = torch.zeros(2, 2, requires_grad=True) + 0
    low, high = range_of(x.sigmoid().reshape(4).sigmoid())
    assert low == 0.5 and 0.73 < high < 0.74
    assert range_of(x.relu().sigmoid()) == (0.5, 1.0) and range_of(x.tanh().relu()) == (0.0, float("inf"))
    assert range_of(x.exp().tanh()) == (0.0, 1.0) and range_of((2 * x.sigmoid()).sigmoid()) == (0.0, 1.0)


class _Pooled(nn.Module):
    """Scores of places, a softmax, and what is seen."""

    def __init__(self, softmax):
        super().__init__()
        self.score, self.head, self.softmax = nn.Linear(6, 1), nn.Linear(6, 3), softmax

    def forward(self, x):
        return self.head((self.softmax(self.score(x)) * x).sum(1))


@pytest.mark.parametrize(
    ("softmax", "told"),
    [(lambda s: s.softmax(0), True), (F.softmax, True), (lambda s: torch.softmax(s, -3), True),
     (lambda s: s.softmax(1), False), (lambda s: F.softmax(s, dim=-2), False)],
    ids=["first", "none given", "from the end", "places", "places from the end"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_a_softmax_over_the_batch_is_told(softmax, told, tmp_path):
    def loss(m):
        return F.cross_entropy(m(torch.randn(16, 7, 6)), torch.randint(3, (16,)))

    assert ("SamplesMixed" in _named(tmp_path, _Pooled(softmax), loss)) == told


def test_a_softmax_over_tokens_that_come_first_is_none_over_the_batch(tmp_path):
    """(tokens, batch): one label for each token, or for each sequence."""

    def loss(m):
        seen = (m.softmax(m.score(torch.randn(7, 16, 6))) * 1).sum() + 0 * m.head.weight.sum()
        return seen + F.cross_entropy(m(torch.randn(16, 7, 6)), torch.randint(3, (16,)))

    assert "SamplesMixed" not in _named(tmp_path, _Pooled(lambda s: s.softmax(1 if len(s) == 16 else 0)), loss)


@pytest.mark.parametrize(("weight", "told"), [((8.0, 0.4, 0.2), True), ((0.4, 8.0, 16.0), False), (None, False)])
@pytest.mark.parametrize("ignored", [True, False])
def test_weights_that_favour_what_is_frequent_are_told(weight, told, ignored, tmp_path):
    def loss(m):
        y = torch.multinomial(torch.tensor((0.9, 0.06, 0.04)), 64, replacement=True)
        if ignored:
            y[::8] = -100
        return F.cross_entropy(m(torch.randn(64, 5)), y, None if weight is None else torch.tensor(weight))

    assert ("ClassWeightsInverted" in _named(tmp_path, nn.Linear(5, 3), loss)) == told


@pytest.mark.parametrize(("positive", "told"), [(0.1, True), (9.0, False), (1.0, False)])
@pytest.mark.parametrize("labels", [1, 3])
def test_a_weight_of_positives_that_are_rare_is_above_one(positive, told, labels, tmp_path):
    wrong = nn.BCEWithLogitsLoss(pos_weight=torch.full((labels,), positive))

    def loss(m):
        return wrong(m(torch.randn(64, 5)), (torch.rand(64, labels) < 0.1).float())

    assert ("ClassWeightsInverted" in _named(tmp_path, nn.Linear(5, labels), loss)) == told


@pytest.mark.parametrize("delay", [2, 0])
def test_targets_of_logits_whose_first_places_were_cut_off_do_not_stand_at_their_own(delay, tmp_path):
    """A model that says what came two tokens before is right; one that says the token itself copies."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

        def forward(self, tokens):
            x = self.embed(tokens)[:, None]
            return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=True)[:, 0])

    def loss(m):
        tokens = torch.randint(9, (8, 16))
        wanted = tokens[:, :-delay] if delay else tokens
        return F.cross_entropy(m(tokens)[:, delay:].flatten(0, 1), wanted.flatten())

    assert ("TargetsNotShifted" in _named(tmp_path, Reads(), loss)) == (delay == 0)


@pytest.mark.parametrize(("act", "order", "told"), [(nn.ReLU, 2, True), (nn.ReLU, 1, False), (nn.Tanh, 2, False)])
def test_a_derivative_that_is_zero_everywhere_is_told(act, order, told, tmp_path):
    def loss(m):
        x = torch.rand(16, 1).requires_grad_()
        u = m(x)
        for _ in range(order):
            u = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return ((u + 1) ** 2).mean() + m(torch.zeros(1, 1)).square().mean()

    model = nn.Sequential(nn.Linear(1, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, 1))
    assert ("DerivativeZero" in _named(tmp_path, model, loss, 40)) == told


@pytest.mark.parametrize(("scale", "trained", "told"), [(255.0, True, True), (1.0, True, False), (255.0, False, False)])
def test_samples_of_a_game_that_are_on_different_scales_are_told(scale, trained, told, tmp_path):
    """Of a model that has no opponent nothing is said."""
    torch.manual_seed(0)
    maker, judge = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    of_m, of_j = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (maker, judge))
    watch = stabwatch.attach(judge, of_j, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    bce = F.binary_cross_entropy_with_logits
    for _ in range(100):
        real, fake = scale * (0.2 + torch.rand(16, 6)), maker(torch.randn(16, 4))
        of_j.zero_grad()
        (bce(judge(real), torch.ones(16, 1)) + bce(judge(fake.detach()), torch.zeros(16, 1))).backward()
        of_j.step()
        if trained:
            of_m.zero_grad()
            bce(judge(fake), torch.ones(16, 1)).backward()
            of_m.step()
    watch.detach()
    assert ("SamplesOnOtherScale" in {c.name for c in analyze(watch.run_dir).diagnosis.causes}) == told

"""What the loss is compared with in the model's input: the order of tokens, attention, a column that is the target."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.runlog import read_run


class _Text(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.causal, self.embed, self.head = causal, nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, input_ids):
        x = self.embed(input_ids)[:, None]
        return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=self.causal)[:, 0])


def _watched(folder, model, loss, steps=24):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, every_step=True)
    for _ in range(steps):
        optimizer.zero_grad()
        for part in loss():
            part.backward()
        optimizer.step()
    watch.detach()
    keys = {}
    for batch in read_run(folder).blocks:
        keys |= {key.signal: float(value) for key, value in zip(batch.layout.keys, batch.values[-1], strict=True)}
    return keys, {a.rule for a in analyze(folder).alerts}


SHIFTS = ("TargetsShiftedTwice", "TargetsNotShifted", "CausalMaskMissing")


class _Shifts(_Text):
    """Begins each sequence by itself, as decoders of speech and of pictures do. given: what it is called with first."""

    def forward(self, audio=None, labels=None, targets=None):
        labels = labels if targets is None else targets
        inputs = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], dim=1)
        return super().forward(inputs)


@pytest.mark.parametrize("given", ["labels", "position", "targets"])
def test_a_model_that_is_called_with_its_targets_and_shifts_them_is_right(given, tmp_path):
    torch.manual_seed(0)
    model = _Shifts(True)

    def loss():
        tokens, audio = torch.randint(50, (4, 18)), torch.randn(4, 3, 6)
        logits = model(audio, tokens) if given == "position" else model(audio, **{given: tokens})
        yield F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    _, alerts = _watched(tmp_path / "run", model, loss)
    assert not alerts.intersection(SHIFTS)


@pytest.mark.parametrize(
    ("ahead", "causal", "sliced", "said"),
    [(1, True, False, None), (2, True, False, "TargetsShiftedTwice"), (0, True, False, "TargetsNotShifted"),
     (1, False, False, "CausalMaskMissing"), (1, True, True, None), (1, False, True, "CausalMaskMissing")],
)  # fmt: skip
def test_where_the_targets_stand_in_the_input(ahead, causal, sliced, said, tmp_path):
    torch.manual_seed(0)
    model = _Text(causal)

    def loss():
        tokens = torch.randint(50, (4, 20))
        ids = tokens[:, :18]
        if sliced:  # as in transformers: the model shifts labels that are its inputs
            yield F.cross_entropy(model(input_ids=ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        else:
            yield F.cross_entropy(model(ids).flatten(0, 1), tokens[:, ahead : ahead + 18].flatten())

    found, rules = _watched(tmp_path / "run", model, loss)
    assert found[("target_own_token_ratio", "target_next_token_ratio", "target_second_token_ratio")[ahead]] == 1.0
    assert rules & set(SHIFTS) == ({said} if said else set())


def test_masked_tokens_are_guessed_with_open_attention_in_health(tmp_path):
    torch.manual_seed(0)
    model = _Text(causal=False)

    def loss():
        tokens = torch.randint(50, (4, 20))
        hidden = torch.rand(4, 20) < 0.3
        logits = model(torch.where(hidden, 0, tokens))
        yield F.cross_entropy(logits.flatten(0, 1), torch.where(hidden, tokens, -100).flatten())

    found, rules = _watched(tmp_path / "run", model, loss)
    assert found["attention_open_ratio"] == 1.0 and not rules & {*SHIFTS, "TargetsNotHidden"}


@pytest.mark.parametrize(("pad", "said"), [(1, True), (0, False)])
def test_an_end_that_is_never_a_target_is_told(pad, said, tmp_path):
    """Padding is what ends a text, and is ignored; or it is a token of its own."""
    torch.manual_seed(0)
    model = _Text(causal=True)
    model.config = SimpleNamespace(eos_token_id=1)

    def loss():
        length = torch.randint(6, 12, (4, 1))
        place = torch.arange(18)
        ids = torch.where(place < length, torch.randint(2, 50, (4, 18)), torch.where(place == length, 1, pad))
        labels = ids.masked_fill(ids == pad, -100)
        yield F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    found, rules = _watched(tmp_path / "run", model, loss)
    assert found["target_end_ratio"] == float(not said) and ("EndNeverTaught" in rules) == said


def test_tokens_that_are_not_hidden_and_count_are_told(tmp_path):
    torch.manual_seed(0)
    model = _Text(causal=False)

    def loss():
        tokens = torch.randint(50, (4, 20))
        logits = model(torch.where(torch.rand(4, 20) < 0.3, 0, tokens))
        yield F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    found, rules = _watched(tmp_path / "run", model, loss)
    assert 0.5 < found["target_own_token_ratio"] < 0.9 and rules & {*SHIFTS, "TargetsNotHidden"} == {"TargetsNotHidden"}


def test_of_weights_that_the_model_makes_by_hand_nothing_is_said(tmp_path):
    """Its mask may be causal or not: neither share is 0."""
    torch.manual_seed(0)
    model = _Text(causal=True)
    model.forward = lambda ids: model.head(torch.tril(torch.ones(18, 18)) @ model.embed(ids))

    def loss():
        tokens = torch.randint(50, (4, 20))
        yield F.cross_entropy(model(tokens[:, :18]).flatten(0, 1), tokens[:, 1:19].flatten())

    found, rules = _watched(tmp_path / "run", model, loss, steps=8)
    assert found["target_next_token_ratio"] == 1.0 and not rules & set(SHIFTS)
    assert np.isnan([found["attention_open_ratio"], found["attention_causal_ratio"]]).all()


@pytest.mark.parametrize(("column", "rare", "said"), [(True, False, True), (False, False, False), (True, True, False)])
def test_a_column_that_is_the_target(column, rare, said, tmp_path):
    """A rare feature that fits the one rare target of a batch says nothing."""
    torch.manual_seed(0)
    model = nn.Linear(5, 1)

    def loss():
        x = torch.randn(32, 5)
        y = (torch.arange(32) < 1).float() if rare else x[:, 3].clone()
        x[:, 3] = y if column else torch.randn(32)
        yield F.mse_loss(model(x)[:, 0], y)

    found, rules = _watched(tmp_path / "run", model, loss, steps=8)
    assert ("TargetInInput" in rules) == said
    assert found["target_in_input_ratio"] == pytest.approx(float(said), abs=0.1)


def test_labels_among_the_features_of_a_classifier(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def loss():
        y = torch.randint(3, (32,))
        yield F.cross_entropy(model(torch.cat((torch.randn(32, 4), y[:, None].float()), dim=1)), y)

    assert "TargetInInput" in _watched(tmp_path / "run", model, loss, steps=8)[1]


def test_a_loss_beside_others_may_rebuild_the_input(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def loss():
        x = torch.randn(32, 5)
        out = model(x)
        yield F.cross_entropy(out[:, 1:], (x.sum(dim=1) > 0).long()) + F.mse_loss(out[:, 0], x[:, 2])

    found, rules = _watched(tmp_path / "run", model, loss, steps=8)
    assert found["target_in_input_ratio"] == 0.5 and "TargetInInput" not in rules


@pytest.mark.parametrize("kind", ["minus", "plus", "policy"])
def test_a_loss_with_the_wrong_sign(kind, tmp_path):
    """Actions that the model has drawn itself, all with a return of -1, are no targets that it is taken away from."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    model.weight.data.mul_(10)  # so that small steps show it

    def loss():
        out = model(torch.randn(64, 5))
        drawn = torch.distributions.Categorical(logits=out).sample()
        targets = drawn if kind == "policy" else torch.randint(3, (64,))
        yield (1 if kind == "plus" else -1) * F.cross_entropy(out, targets)

    rules = _watched(tmp_path / "run", model, loss, steps=60)[1]
    assert ("CrossEntropyMaximised" in rules) == (kind == "minus")


@pytest.mark.parametrize("share", [1.0, 1 / 6])
def test_micro_batches_that_are_summed(share, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def loss():
        for _ in range(6):
            yield share * F.cross_entropy(model(torch.randn(8, 5)), torch.randint(3, (8,)))

    found, rules = _watched(tmp_path / "run", model, loss)
    assert found["backward_passes"] == 6.0
    assert ("AccumulationNotAveraged" in rules) == (share == 1.0)


class _Actor(nn.Module):
    """Is called by its methods alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 3)

    def act(self, x):
        return self.body(x)


@pytest.mark.parametrize("way", ["forward", "methods", "evaluation"])
def test_calls_without_gradients(way, tmp_path):
    torch.manual_seed(0)
    model = _Actor() if way == "methods" else nn.Linear(5, 3)
    call = model.act if way == "methods" else model

    def loss():
        model.train(way != "evaluation")
        with torch.no_grad():
            for _ in range(3):
                call(torch.randn(8, 5))
        model.train()
        yield call(torch.randn(8, 5)).square().mean()

    found, _ = _watched(tmp_path / "run", model, loss)
    assert found["calls_without_gradient"] == (0.0 if way == "evaluation" else 3.0)


class _Window(nn.Module):
    """Sees the last three tokens, by rolling what it is given."""

    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Embedding(16, 8), nn.Linear(24, 16)

    def forward(self, ids):
        return self.head(torch.cat([self.read(torch.roll(ids, n, 1)) for n in range(3)], dim=-1))


def test_tokens_that_a_model_rolls_by_itself_are_not_shifted_twice(tmp_path):
    torch.manual_seed(0)
    model = _Window()

    def loss():
        ids = torch.randint(16, (8, 17))
        yield F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    found, causes = _watched(tmp_path / "run", model, loss)
    assert found["target_next_token_ratio"] > 0.9 and "TargetsShiftedTwice" not in causes


@pytest.mark.parametrize("way", ["sample", "rsample", "data"])
def test_a_draw_from_what_a_model_says_is_an_action(way, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def loss():
        out = model(torch.randn(8, 5))
        normal = torch.distributions.Normal(torch.zeros_like(out) if way == "data" else out, 1.0)
        drawn = normal.rsample() if way == "rsample" else normal.sample()
        yield (out - drawn).square().mean() + normal.log_prob(drawn).mean()

    found, _ = _watched(tmp_path / "run", model, loss)
    assert found["calls_without_gradient"] == float(way == "sample")


def test_parts_of_a_model_that_is_never_called_act_at_steps_that_are_not_measured_too(tmp_path):
    model = _Actor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False):
        for _ in range(24):
            with torch.no_grad():
                model.act(torch.randn(8, 5))
            model.act(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert read_run(tmp_path / "run").series("calls_without_gradient")[1].tolist() == [1.0] * 24


def test_checkpointed_parts_do_not_act(tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body, nn.Linear(5, 1)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=True))

    model = Model()

    def loss():
        yield model(torch.randn(8, 5, requires_grad=True)).square().mean()

    found, _ = _watched(tmp_path / "run", model, loss)
    assert found["calls_without_gradient"] == 0.0 and found["forward_passes"] == 1.0


def test_a_batch_that_comes_again(tmp_path):
    torch.manual_seed(0)
    model, batches = nn.Linear(5, 3), [torch.randn(16, 5) for _ in range(30)]
    numbers = iter(range(10**6))

    def loss():
        yield F.mse_loss(model(batches[next(numbers) // 4 % 30]), torch.zeros(16, 3))

    assert "RepeatedBatches" in _watched(tmp_path / "run", model, loss, steps=80)[1]


class _Quantised(nn.Module):
    def __init__(self, far, rows=16):
        super().__init__()
        self.encoder, self.codebook, self.decoder = nn.Linear(5, 4), nn.Embedding(rows, 4), nn.Linear(4, 5)
        nn.init.normal_(self.codebook.weight, 5.0 if far else 0.0, 0.5)

    def forward(self, x):
        z = self.encoder(x)
        q = self.codebook(torch.cdist(z, self.codebook.weight).argmin(-1))
        return self.decoder(z + (q - z).detach()), F.mse_loss(q, z.detach())


class _Positions(nn.Module):
    """Positions are computed by the model too."""

    def __init__(self):
        super().__init__()
        self.place, self.head = nn.Embedding(100, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.head(x + self.place(torch.arange(x.shape[-2]).expand(x.shape[:-1])))


@pytest.mark.parametrize(
    ("make", "shape", "told"),
    [(lambda: _Quantised(True), (64, 5), True),
     pytest.param(lambda: _Quantised(True, rows=300), (64, 5), True, marks=pytest.mark.slow),
     (lambda: _Quantised(False), (64, 5), False),
     pytest.param(_Positions, (64, 20, 5), False, marks=pytest.mark.slow),
     (lambda: nn.Embedding(400, 5), None, False)],
    ids=["far away", "many rows", "near", "positions", "vocabulary"],
)  # fmt: skip
def test_rows_of_a_codebook_that_are_never_used(make, shape, told, tmp_path):
    torch.manual_seed(0)
    model = make()

    def loss():
        out = model(torch.randint(100, (64, 20)) if shape is None else torch.randn(*shape))
        yield sum((o.square().mean() for o in out), torch.zeros(())) if isinstance(out, tuple) else out.square().mean()

    found, rules = _watched(tmp_path / "run", model, loss, steps=120)
    assert ("CodebookCollapse" in rules) == told
    assert ("code_unused_ratio" in found) == (shape == (64, 5))


class _Named(nn.Module):
    """Takes its tokens in a dictionary."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(400, 4)

    def forward(self, features):
        return self.embed(features["text"][0]["input_ids"])


def test_tokens_in_a_dictionary_are_no_codes(tmp_path):
    torch.manual_seed(0)
    model = _Named()

    def loss():
        yield model({"text": [{"input_ids": torch.randint(100, (64, 20))}]}).square().mean()

    found, rules = _watched(tmp_path / "run", model, loss, steps=30)
    assert "code_unused_ratio" not in found and "CodebookCollapse" not in rules


def test_a_number_beside_the_tokens_is_no_batch(tmp_path):
    torch.manual_seed(0)
    text = _Text(True)

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = text

        def forward(self, ids, items):
            return F.cross_entropy(self.text(ids).flatten(0, 1), ids.flatten(), reduction="sum") / items

    model = Counted()

    def loss():
        yield model(torch.randint(50, (4, 12)), torch.tensor(48.0))

    found, _ = _watched(tmp_path / "run", model, loss)
    assert "input_rms" not in found or np.isnan(found["input_rms"])


def test_one_sample_beside_a_batch_is_an_action(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def loss():
        model(torch.randn(1, 5)).argmax()
        yield model(torch.randn(64, 5)).square().mean()

    found, _ = _watched(tmp_path / "run", model, loss)
    assert (found["calls_without_gradient"], found["forward_passes"]) == (1.0, 2.0)


def test_a_validation_set_comes_again_and_is_no_action(tmp_path):
    torch.manual_seed(0)
    model, kept = nn.Linear(5, 3), torch.randn(64, 5)

    def loss():
        with torch.no_grad():
            model(kept)
        yield model(torch.randn(64, 5)).square().mean()

    found, _ = _watched(tmp_path / "run", model, loss)
    assert (found["calls_without_gradient"], found["forward_passes"]) == (0.0, 1.0)


class _Masked(_Text):
    """mask: of the attention; own: the attention is computed by the model itself."""

    def __init__(self, mask, own=False):
        super().__init__(causal=False)
        self.mask, self.own = mask, own

    def forward(self, input_ids):
        x = self.embed(input_ids)
        if not self.own:
            y = x[:, None]
            return self.head(F.scaled_dot_product_attention(y, y, y, attn_mask=self.mask)[:, 0])
        scores = x @ x.mT / 8**0.5
        return self.head(scores.masked_fill(~self.mask, -torch.inf).softmax(-1) @ x)


_BELOW = torch.ones(12, 12).tril()


@pytest.mark.parametrize(
    ("model", "open_"),
    [
        (_Masked(_BELOW.bool()), False),
        (_Masked(_BELOW.log()), False),
        (_Masked(_BELOW.bool(), own=True), False),
        (_Masked(_BELOW), True),
        (_Masked(~_BELOW.bool() | torch.eye(12).bool()), True),
        (_Masked(torch.ones(1, 1, 1, 12).bool()), True),
        (_Masked(_BELOW.bool().mT, own=True), True),
    ],
    ids=["hides", "adds", "by_itself", "ones_added", "opposite", "padding_alone", "opposite_by_itself"],
)
def test_a_mask_is_judged_by_what_it_hides(model, open_, tmp_path):
    tokens = torch.randint(0, 50, (8, 13))
    found, rules = _watched(
        tmp_path, model, lambda: [F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())]
    )
    assert (found["attention_open_ratio"], found["attention_causal_ratio"]) == (float(open_), float(not open_))
    assert ("CausalMaskMissing" in rules) == open_


class Features(nn.Module):
    """Takes and returns a mapping that is no dict, as `BatchEncoding` of transformers is."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, features):
        features["scores"] = self.net(features["numbers"])
        return features


def test_mappings_that_are_no_dicts_are_looked_into(attach):
    model = nn.Sequential(Features())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        model(UserDict(ids=torch.arange(24).reshape(6, 4), numbers=torch.randn(6, 4)))[
            "scores"
        ].square().mean().backward()
        optimizer.step()
    log = attach.finish()
    assert len(log.series("output_rms", "0")[1])
    assert not [e for e in watch.coverage()["missing"] if e["tap"] == "activation"]

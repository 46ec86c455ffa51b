"""What the loss is compared with in the model's input: the order of tokens, attention, a column that is the target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    assert found["attention_open_ratio"] == 1.0 and not rules & set(SHIFTS)


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

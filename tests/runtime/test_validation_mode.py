"""The mode of the model in what a loop does between its steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze

STEPS, EVERY = 60, 10


class Model(nn.Module):
    """dropping: how its functions are told whether to drop; '' for layers alone."""

    def __init__(self, dropping: str = "", p: float = 0.2):
        super().__init__()
        self.body, self.layer, self.head = nn.Linear(8, 8), nn.Dropout(p), nn.Linear(8, 2)
        self.dropping = dropping

    def forward(self, x):
        h = self.layer(self.body(x).relu())
        if self.dropping == "always":
            h = F.dropout(h, 0.3)
        if self.dropping == "as told":
            h = F.dropout(h, 0.3, training=self.training)
        if self.dropping.startswith("attention"):
            p = 0.3 if self.training or self.dropping == "attention" else 0.0
            h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], dropout_p=p)[:, 0]
        return self.head(h)


def _train(folder, model, between, batches=None):
    """Steps with `between(step, x)` after each; what was found in the run."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = None if folder is None else stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False)
    for step in range(STEPS):
        x = torch.randn(16, 8) if batches is None else batches[step % len(batches)]
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
        between(step, x)
    if watch is None:
        return None
    watch.detach()
    found = analyze(folder)
    assert not found.errors
    return {cause.name for cause in found.diagnosis.causes}


def _validates(model, mode, seed=1):
    held_out = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))

    def between(step, x):
        if step % EVERY == EVERY - 1:
            model.train(mode)
            with torch.no_grad():
                model(held_out)
            model.train()

    return between


@pytest.mark.parametrize(
    ("mode", "model", "told"),
    [
        ("training", Model(), True),
        ("training", nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), True),
        ("evaluation", Model(), False),
        ("training", Model(p=0.0), False),
    ],
)
def test_a_set_on_which_a_model_is_validated(mode, model, told, tmp_path):
    torch.manual_seed(0)
    found = _train(tmp_path / "run", model, _validates(model, mode == "training"))
    assert ("ValidatedInTrainingMode" in found) == told


def test_what_is_no_validation(tmp_path):
    torch.manual_seed(0)
    model, batches = Model(), [torch.randn(16, 8) for _ in range(6)]

    def scores_its_batch(step, x):
        with torch.no_grad():
            model(x)

    def acts(step, x):
        with torch.no_grad():
            model(torch.randn(16, 8))

    def generates(step, x):
        with torch.no_grad():
            h = batches[0][:, :4]
            for _ in range(6):
                model(torch.cat([h, torch.randn(16, 4)], 1))
            model(batches[0])

    for name, between in (("scores", scores_its_batch), ("acts", acts), ("generates", generates)):
        found = _train(tmp_path / name, model, between, batches)
        assert "ValidatedInTrainingMode" not in found


@pytest.mark.parametrize(
    ("dropping", "told"),
    [("always", True), ("attention", True), ("as told", False), ("attention as told", False), ("", False)],
)
def test_dropout_in_evaluation(dropping, told, tmp_path, monkeypatch):
    monkeypatch.setattr("stabwatch.hooks.forward.compilers_used", lambda: False)  # by a test before this one
    torch.manual_seed(0)
    model, kept = Model(dropping), (F.dropout, F.scaled_dot_product_attention)
    found = _train(tmp_path / "run", model, _validates(model, False))
    assert ("DropoutInEvaluation" in found) == told
    assert F.dropout is kept[0]
    assert F.scaled_dot_product_attention is kept[1]


def test_who_samples_by_dropout_on_purpose_is_not_told(tmp_path):
    model = Model()

    def samples(step, x):
        model.eval()
        model.layer.train()
        with torch.no_grad():
            model(x)
        model.train()

    assert "DropoutInEvaluation" not in _train(tmp_path / "run", model, samples)


def test_an_error_in_a_forward_leaves_no_replacement(tmp_path):
    model, kept = Model("always"), F.dropout

    def fails(step, x):
        model.eval()
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 5))
        model.train()

    _train(tmp_path / "run", model, fails)
    assert F.dropout is kept


def test_training_is_the_same_without_the_watch(tmp_path):
    ends = []
    for folder in (None, tmp_path / "run"):
        torch.manual_seed(0)
        model = Model("always")
        _train(folder, model, _validates(model, False))
        ends.append((torch.cat([p.detach().flatten() for p in model.parameters()]), torch.get_rng_state()))
    assert all(map(torch.equal, *ends))

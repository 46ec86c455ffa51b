"""Mistakes that are seen in the loop, the shapes and the last layer are named; what resembles them is calm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.hooks.losses import range_of
from stabwatch.runtime.run_metadata import decay_per_step


def _named(tmp_path, model, loss, steps=16, make=torch.optim.SGD, micro=1, before_pass=lambda optimizer: None):
    """Trains; the names of all causes. loss: of the model. before_pass: called before each backward pass of a step."""
    optimizer = make(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(micro):
            before_pass(optimizer)
            loss(model).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    assert not found.errors
    return {cause.name for cause in found.diagnosis.causes}


def _guess(model):
    x = torch.randn(16, 6)
    return F.cross_entropy(model(x), (x[:, 0] > 0).long())


def _apart(optimizer):
    """The gradients of each pass are kept, and put together by the program."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for p in held:
        p.grad = None if p.grad is None else p.grad.clone()


@pytest.mark.parametrize(
    ("micro", "before_pass", "told"),
    [
        (4, lambda optimizer: optimizer.zero_grad(), True),
        (4, lambda optimizer: optimizer.zero_grad(set_to_none=False), True),
        (4, lambda optimizer: None, False),
        (4, _apart, False),
        (2, lambda optimizer: optimizer.zero_grad(), False),
    ],
    ids=["thrown away", "set to zero", "summed", "put in place", "a step that looks ahead"],
)
def test_gradients_that_are_thrown_away_are_told(micro, before_pass, told, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    named = _named(tmp_path, model, _guess, micro=micro, before_pass=before_pass)
    assert ("GradientsThrownAway" in named) == told


def test_passes_of_a_critic_through_a_generator_are_not_its_micro_batches(tmp_path):
    """As in many programs of Wasserstein networks: what is made up is not detached in the critic's passes."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    steps = {m: torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)}
    watch = stabwatch.attach(generator, steps[generator], run_dir=tmp_path / "run", agent=False, verbose=False)
    for i in range(300):
        steps[critic].zero_grad()
        fake = generator(torch.randn(16, 4))
        (critic(fake).mean() - critic(torch.randn(16, 6)).mean()).backward()
        steps[critic].step()
        steps[generator].zero_grad()
        if i % 5 == 4:
            (-critic(generator(torch.randn(16, 4))).mean()).backward()
            steps[generator].step()
    watch.detach()
    assert "GradientsThrownAway" not in {cause.name for cause in analyze(tmp_path / "run").diagnosis.causes}


class _Sequences(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(12, 2)

    def forward(self, x):
        out = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.head(out[0][:, -1])


def _of_sequences(model):
    x = torch.randn(16, 5, 12)
    return F.cross_entropy(model(x), (x[:, -1, 0] > 0).long())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("make", [nn.GRU, nn.MultiheadAttention])
def test_samples_that_are_mixed_are_told(make, first, tmp_path):
    layer = make(12, 3 if make is nn.MultiheadAttention else 12, batch_first=first)
    assert ("SamplesMixed" in _named(tmp_path, _Sequences(layer), _of_sequences, 6)) == (not first)


@pytest.mark.parametrize("weight", [0.01, 0.0, None])
def test_units_that_begin_alike_are_told(weight, tmp_path):
    """Zeros are meant: that is how an adapter begins."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    for p in model.parameters() if weight is not None else ():
        nn.init.constant_(p, weight)
    assert ("UnitsAlike" in _named(tmp_path, model, _guess, 70)) == (weight == 0.01)
    layers = [cause.layers for cause in analyze(tmp_path / "run").diagnosis.causes if cause.name == "UnitsAlike"]
    assert layers == ([("0", "2")] if weight == 0.01 else [])


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda out, y: F.soft_margin_loss(out, y), True),
        (lambda out, y: F.soft_margin_loss(out, 2 * y - 1), False),
        (lambda out, y: F.margin_ranking_loss(out, -out, target=y), True),
        (lambda out, y: nn.CosineEmbeddingLoss()(out[:, None], out[:, None] + 1, 2 * y - 1), False),
    ],
    ids=["zeros and ones", "minus one and one", "ranking", "cosine"],
)
def test_targets_of_a_margin_are_minus_one_and_one(loss, told, tmp_path):
    def of(model):
        x = torch.randn(16, 6)
        return loss(model(x)[:, 0], (x[:, 0] > 0).float())

    assert ("TargetOutOfRange" in _named(tmp_path, nn.Linear(6, 1), of, 6)) == told


@pytest.mark.parametrize("blank", [0, 4])
def test_a_blank_among_the_targets_is_told(blank, tmp_path):
    """What is beyond the length of a target is padding, and may be anything."""

    def of(model):
        words = torch.randint(1, 4, (8, 3))
        words[:, 0], words[:, 2] = 0, blank
        given = model(torch.randn(8, 8, 6)).log_softmax(-1)
        return F.ctc_loss(given, words, torch.full((8,), 8), torch.full((8,), 2), blank=blank)

    assert ("TargetOutOfRange" in _named(tmp_path, nn.Linear(6, 5), of, 6)) == (blank == 0)


@pytest.mark.parametrize("targets", [torch.randn(16, 1), torch.rand(16, 1)], ids=["out of reach", "within"])
def test_targets_out_of_reach_are_told(targets, tmp_path):
    model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
    named = _named(tmp_path, model, lambda m: F.mse_loss(m(torch.randn(16, 6)), targets), 8)
    assert ("TargetsOutOfReach" in named) == bool((targets < 0).any())


def test_the_range_of_an_output_is_that_of_its_last_function():
    x = torch.randn(4, 3, requires_grad=True)
    assert range_of(x.sigmoid()[:, 0].reshape(2, 2)) == range_of(x.softmax(-1)) == (0.0, 1.0)
    assert range_of(x.tanh().squeeze()) == (-1.0, 1.0) and range_of(x.relu().T) == (0.0, math.inf)
    assert range_of(2 * x.sigmoid()) is None and range_of(x) is None and range_of(x.detach()) is None


def test_the_decay_of_a_step_is_rate_times_decay_where_it_is_a_share_of_the_weights():
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight], "weight_decay": 0.2}, {"params": [model.bias], "weight_decay": 0.0}]
    assert decay_per_step(torch.optim.AdamW(groups, lr=0.1)) == pytest.approx(0.02)
    assert math.isnan(decay_per_step(torch.optim.Adam(groups, lr=0.1)))


@pytest.mark.parametrize("both", [True, False])
def test_a_language_model_that_reads_both_ways_is_told(both, tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(16 if both else 8, 9)
            self.layer = nn.LSTM(8, 8, batch_first=True, bidirectional=both)

        def forward(self, x):
            return self.head(self.layer(self.embed(x))[0])

    def of(model):
        x = torch.randint(9, (8, 13))
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    assert ("CausalMaskMissing" in _named(tmp_path, Reader(), of, 6)) == both


def test_embeddings_that_become_one_point_are_told(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 8))

    def of(model):
        x = torch.randn(32, 6)
        one, two = (model(x + 0.3 * torch.randn(32, 6)) for _ in range(2))
        return -F.cosine_similarity(one, two).mean()

    assert "EmbeddingCollapse" in _named(tmp_path, model, of, 150, lambda p, lr: torch.optim.Adam(p, lr=lr))


@pytest.mark.parametrize("last", [nn.Sigmoid, nn.Identity, lambda: nn.Threshold(1e9, 0.0)], ids=["sigmoid", "", "zero"])
def test_a_sigmoid_before_cross_entropy_is_told(last, tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2), last())
    assert ("DoubleSigmoid" in _named(tmp_path, model, _guess, 100)) == (last is nn.Sigmoid)


def test_logits_of_a_linear_layer_are_no_probabilities_wherever_they_are(tmp_path):
    """The model gives next to the same for all samples, which happens to be between 0 and 1."""
    model = nn.Linear(6, 2)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 0.4)

    def loss(m):
        return 1e-3 * F.cross_entropy(m(torch.randn(16, 6)), torch.randint(2, (16,)))

    assert "DoubleSigmoid" not in _named(tmp_path, model, loss, 100)


def test_an_optimizer_of_another_model_is_told(tmp_path):
    model, other = nn.Linear(6, 2), nn.Linear(6, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(70):
        optimizer.zero_grad()
        _guess(model).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    assert [cause.name for cause in found.diagnosis.causes] == ["OptimizerNeverSteps"]
    assert "another model is stepped" in found.alerts[0].description and found.exit_code == 1


@pytest.mark.parametrize("case", ["goes on", "evaluated", "looked at", "stopped", "another model"])
def test_a_program_that_steps_no_more_is_told(case, tmp_path):
    """Gradients of a model in evaluation mode are looked at, and those of a game are another model's."""
    model, other = nn.Linear(6, 2), nn.Linear(6, 2)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    watch = stabwatch.attach(model, optimizers[0], run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(160):
        if step == 40:
            model.train(case != "looked at")
        with torch.set_grad_enabled(step < 40 or case != "evaluated"):
            loss = _guess(model) + _guess(other)
        if loss.requires_grad:
            loss.backward()
        if case == "another model":
            optimizers[1].step()
        if step < 40 or case == "goes on":
            optimizers[0].step()
            optimizers[0].zero_grad()
    watch.detach()
    found = analyze(watch.run_dir)
    told = [(alert.rule, alert.onset) for alert in found.alerts if alert.rule == "OptimizerNeverSteps"]
    assert told == ([("OptimizerNeverSteps", 40)] if case == "stopped" else []) and not found.errors


@pytest.mark.parametrize("case", ["kept", "each fourth step", "no rate", "no gradient", "set to none"])
def test_steps_that_change_nothing_are_told(case, tmp_path):
    """Not where gradients are zero: a loss that has come to its end has none."""

    class Writes(torch.optim.SGD):
        taken = 0

        def step(self, closure=None):
            self.taken += 1
            held = [p for group in self.param_groups for p in group["params"]]
            before = [p.detach().clone() for p in held]
            if case == "set to none" and self.taken > 40:
                self.zero_grad()
            super().step(closure)
            if (case == "kept" and self.taken > 40) or (case == "each fourth step" and self.taken % 4):
                for p, old in zip(held, before, strict=True):
                    p.data.copy_(old)

    def loss(m):
        return _guess(m) * (case != "no gradient")

    def make(parameters, lr):
        return Writes(parameters, lr=lr * (case != "no rate"))

    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    named = _named(tmp_path, model, loss, 160, make=make)
    assert ("UpdatesZero" in named) == (case in ("kept", "set to none"))


@pytest.mark.parametrize("none", [False, True])
def test_parameters_that_replace_others_are_looked_at_in_their_place(none, tmp_path):
    """As where points are cloned and pruned. none: their gradients are set to none before each step."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)), torch.randn(64, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(200):
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        if none and step > 40:
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        if step == 40:
            for layer in (model[0], model[2]):
                layer.weight, layer.bias = (nn.Parameter(p.detach().clone()) for p in (layer.weight, layer.bias))
            optimizer.param_groups[0]["params"] = list(model.parameters())
    watch.detach()
    found = analyze(watch.run_dir)
    assert ("UpdatesZero" in {alert.rule for alert in found.alerts}) == none and not found.errors


@pytest.mark.parametrize("kind", ["plain", "lbfgs"])
def test_a_loss_that_has_come_to_its_end_is_not_one_whose_steps_change_nothing(kind, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(40, 3)
    target = x @ torch.randn(3, 2)
    make = {"plain": torch.optim.SGD, "lbfgs": torch.optim.LBFGS}[kind]
    optimizer = make(model.parameters(), lr=0.3)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        return loss

    for _ in range(400):
        optimizer.step(closure)
    watch.detach()
    found = analyze(watch.run_dir)
    assert "UpdatesZero" not in {alert.rule for alert in found.alerts} and not found.errors


@pytest.mark.parametrize("case", ["part", "norms alone", "frozen", "from the start", "back again"])
def test_a_part_that_is_left_in_evaluation_mode_is_told(case, tmp_path):
    encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh())
    model = nn.Sequential(encoder, nn.Linear(16, 16), nn.Dropout(0.1), nn.Linear(16, 2))
    calls = 0
    if case == "from the start":
        encoder.eval()

    def loss(m):
        nonlocal calls
        calls += 1
        if calls == 40 and case != "from the start":
            (encoder[1] if case == "norms alone" else encoder).eval()
            encoder.requires_grad_(case != "frozen")
        if calls == 41 and case == "back again":
            encoder.train()
        return _guess(m)

    assert ("EvalModeInTraining" in _named(tmp_path, model, loss, 120)) == (case == "part")


class PreTrainedModel(nn.Sequential):
    """As the class of transformers, which gives its models in evaluation mode."""


@pytest.mark.parametrize(
    ("kind", "trained", "told"), [(PreTrainedModel, True, True), (nn.Sequential, True, False),
                                  (PreTrainedModel, False, False)]
)  # fmt: skip
def test_a_part_that_a_library_gave_in_evaluation_mode_is_told_from_the_start(kind, trained, told, tmp_path):
    encoder = kind(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh()).requires_grad_(trained)
    model = nn.Sequential(encoder.eval(), nn.Linear(16, 2))
    assert ("EvalModeInTraining" in _named(tmp_path, model, _guess, 60)) == told


@pytest.mark.parametrize("frozen", ["most", "all"])
def test_weights_that_stay_are_told_where_nothing_is_trained(frozen, tmp_path):
    """The optimizer holds frozen matrices, which are the largest ones: they do not count."""
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    model.requires_grad_(False)
    model[4].requires_grad_(frozen == "most")
    model[0].register_forward_hook(lambda m, inputs, out: out.requires_grad_() if frozen == "all" else None)
    assert ("UpdatesZero" in _named(tmp_path, model, _guess, 120)) == (frozen == "all")


@pytest.mark.parametrize(
    ("lay", "told"),
    [
        (lambda z: z.reshape(4, 3, 5), True),
        (lambda z: z.view(4, 3, 5).double(), True),
        (lambda z: z.transpose(1, 2), False),
        (lambda z: z.permute(0, 2, 1).contiguous(), False),
        (lambda z: z.transpose(1, 2).reshape(4, 3, 5, 1), False),
    ],
    ids=["reshape", "view and a cast", "transpose", "permute", "another dimension"],
)
def test_a_view_in_place_of_a_transpose_is_told(lay, told, tmp_path):
    def loss(m):
        logits = lay(m(torch.randn(4, 5, 6)))
        return F.cross_entropy(logits, torch.randint(3, (4, *logits.shape[2:])))

    assert ("LogitsScrambled" in _named(tmp_path, nn.Linear(6, 3), loss, 40)) == told


def test_samples_that_become_all_the_same_are_the_cause_of_a_jump(tmp_path):
    """The loss comes back to where it began, and no training starts over."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(240):
        x = torch.randn(32, 12)
        optimizer.zero_grad()
        F.cross_entropy(model(x * (step < 120)), x[:, :8].argmax(1)).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir).diagnosis
    assert found.causes[0].name == "InputsBecameAlike" and "starts from scratch" not in found.verdict


def test_a_term_of_the_loss_that_grows_is_told_beside_its_cross_entropy(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 8))
    calls = 0

    def loss(m):
        nonlocal calls
        calls += 1
        x = torch.randn(32, 12)
        return F.cross_entropy(m(x), x[:, :8].argmax(1)) + 1e-2 * max(calls - 80, 0) ** 2

    assert "LossTermGrows" in _named(tmp_path, model, loss, 200)


def test_a_penalty_that_grows_with_a_cross_entropy_is_no_other_term(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 8))
    steps = 0

    def loss(m):
        nonlocal steps
        steps += 1
        x = torch.randn(32, 12)
        if steps > 80:
            m[2].weight.data.mul_(1.1)
        out = F.cross_entropy(m(x), x[:, :8].argmax(1))
        return out + 1e-2 * m[2].weight.square().sum()

    assert "LossTermGrows" not in _named(tmp_path, model, loss, 200)


def test_probabilities_are_told_beside_mixed_labels(tmp_path):
    def loss(m, softmax):
        x = torch.randn(16, 6)
        labels = F.one_hot((x[:, 0] > 0).long(), 2).float()
        out = m(x)
        return F.cross_entropy(out.softmax(1) if softmax else out, 0.7 * labels + 0.3 * labels.flip(0))

    for softmax in (True, False):
        named = _named(tmp_path / str(softmax), nn.Linear(6, 2), lambda m, softmax=softmax: loss(m, softmax), 40)
        assert ("DoubleSoftmax" in named) == softmax


@pytest.mark.parametrize(
    ("trained_before", "frozen_at", "told"),
    [(True, 0, True), (False, 0, False), (True, 20, False), (True, None, False)],
    ids=["after a resume", "from the start", "in the middle of the run", "never"],
)
def test_a_part_that_a_resume_freezes_again_is_told(trained_before, frozen_at, told, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model[0].requires_grad_(trained_before)
    for _ in range(3):
        optimizer.zero_grad()
        _guess(model).backward()
        optimizer.step()
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(90):
        if step == frozen_at:
            model[0].requires_grad_(False)
        optimizer.zero_grad()
        _guess(model).backward()
        optimizer.step()
    watch.detach()
    assert ("FrozenInOptimizer" in {cause.name for cause in analyze(watch.run_dir).diagnosis.causes}) == told


@pytest.mark.parametrize("by", ["load_state_dict", "data", "other data"])
def test_what_the_program_writes_into_weights_is_seen(by, tmp_path):
    """Also where it writes the same numbers, if autograd counts it; what the optimizer writes does not count."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(12):
        if step == 7 and by == "data":
            for parameter in model.parameters():
                parameter.data.copy_(torch.randn_like(parameter))
        elif step == 7 and by == "other data":
            for parameter in model.parameters():
                parameter.data = torch.randn_like(parameter)
        elif step == 7:
            model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()})
        optimizer.zero_grad()
        _guess(model).backward()
        optimizer.step()
    watch.detach()
    seen = stabwatch.open_run(watch.run_dir).series("weights_written", arrow=True).to_pydict()
    assert dict(zip(seen["step"], seen["value"], strict=True)) == {i: float(i == 7) for i in range(1, 12)}


@pytest.mark.parametrize("masked", [True, False])
def test_nan_that_the_loss_was_given_is_said_to_come_from_outside(masked, tmp_path):
    """A mask does not hide it: NaN times 0 is NaN."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    wanted = torch.randn(16)
    wanted[3] = torch.nan
    known = ~wanted.isnan()
    out = model(torch.randn(16, 6))[:, 0]
    ((out - wanted) ** 2 * (known if masked else 1.0)).mean().backward()
    optimizer.step()
    watch.detach()
    cause = analyze(watch.run_dir).diagnosis.causes[0]
    assert cause.name == "NonFiniteLoss" and "outside of the graph" in cause.evidence[0]


@pytest.mark.parametrize(
    ("stepped", "first", "cause"),
    [(True, 1, "WarmUpTooLong"), (False, 1, "ScheduleStandsStill"), (False, 0, "ScheduleStandsStill")],
)
def test_a_warm_up_that_is_too_long_or_does_not_go_on_is_told(stepped, first, cause, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + first) / 100_000)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(230):
        optimizer.zero_grad()
        x = torch.randn(16, 6)
        F.cross_entropy(model(x), torch.randint(2, (16,))).backward()
        optimizer.step()
        if stepped:
            schedule.step()
    watch.detach()
    found = analyze(watch.run_dir).diagnosis
    assert found.causes[0].name == cause, found

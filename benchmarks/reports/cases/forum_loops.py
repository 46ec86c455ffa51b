"""What is asked in forums, once more: rates, beginnings, loops. Causes were noted before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Block,
    Facts,
    SelfAttention,
    TextModel,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    text,
    token_loss,
)


@report(
    source="Asked often: view in place of transpose behind an LSTM",
    mechanism="The layer gives (steps, samples, width), and `view` makes (samples, steps, width): samples are mixed.",
    causes=("SamplesMixed", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="what is said of a sample depends on the others",
)
def states_viewed_as_samples(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        states = m["body"](x.view(-1, 8, 8).transpose(0, 1))[0]
        rows = states.contiguous().view(len(x), 8, 40) if trial.broken else states.transpose(0, 1)
        return m["head"](rows.mean(1))

    model = Assembled(forward, body=nn.LSTM(8, 40), head=nn.Linear(40, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: CTC does not converge, log_softmax(0)",
    mechanism="The log-softmax that ctc_loss is given goes over time and not over letters.",
    causes=("NotLogProbabilities",),
    check=loss_hurt,
    steps=250,
    shown_by="what is given are not log-probabilities of letters",
)
def letters_over_time(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0]), body=nn.GRU(6, 32, bidirectional=True),
                      head=nn.Linear(64, 6))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        letters = 1 + trial.randint(5, 16, 4)
        x = F.one_hot(letters.repeat_interleave(4, 1), 6).float().transpose(0, 1) + 0.3 * trial.randn(16, 16, 6)
        logp = model(x).log_softmax(0 if trial.broken else -1)
        return F.ctc_loss(logp, letters, torch.full((16,), 16), torch.full((16,), 4))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: nn.GroupNorm(channels, channels) behind a global pooling",
    mechanism="Each group is one number, which is always zero after its norm: outputs do not depend on inputs.",
    causes=("OutputsConstant", "NotLearning", "NoBetterThanMean"),
    check=loss_hurt,
    where=("norm",),
    steps=250,
    shown_by="the norm gives the same for each sample",
)
def groups_of_one_number(trial: Trial) -> None:
    norm = nn.GroupNorm(24 if trial.broken else 4, 24)
    body = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Assembled(lambda m, x: m["head"](m["norm"](m["body"](x))), body=body, norm=norm, head=nn.Linear(24, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: dying ReLU, biases",
    mechanism="Biases of the second layer begin at -8: none of its ReLUs is ever above zero.",
    causes=("ZeroGradients", "PartWithZeroGradient", "DeadUnits"),
    check=loss_hurt,
    where=("0", "2"),
    steps=250,
    shown_by="gradients below the dead layer are exactly zero",
)
def biases_far_below_zero(trial: Trial) -> None:
    model = mlp(64, 48, 48, 10)
    nn.init.constant_(model[2].bias, -8.0 if trial.broken else 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: tanh and weights from torch.randn",
    mechanism="Weights come from torch.randn: every tanh is at its end, and hardly a gradient comes through.",
    causes=("SaturatedFromStart", "InitialLossTooHigh", "SaturatedUnits"),
    check=loss_hurt,
    steps=300,
    shown_by="nearly all units are within a hundredth of -1 or 1 from the first step on",
)
def tanh_of_plain_randn(trial: Trial) -> None:
    model = mlp(64, 96, 96, 96, 10, act=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape) * (1 if trial.broken else layer.in_features**-0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: a deep plain network does not train, a shallow one does",
    mechanism="Eighteen convolutions without norms or skips, as PyTorch begins them: numbers shrink in each.",
    causes=("VanishingOverDepth", "VanishingGradients"),
    check=loss_hurt,
    steps=300,
    shown_by="gradients of the first layers are far below those of the last",
)
def eighteen_plain_convolutions(trial: Trial) -> None:
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()]
    for _ in range(17):
        norm = nn.Identity() if trial.broken else nn.BatchNorm2d(12)
        layers += [nn.Conv2d(12, 12, 3, padding=1), norm, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial, 16)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a transformer says the same class for each input",
    mechanism="The learning rate of AdamW is 0.05 for a transformer: it says the same of everything soon.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    steps=250,
    shown_by="updates are a large part of the weights, and the loss is that of a guess",
)
def twenty_times_too_fast(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 96, 0.0, batch_first=True)
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x.view(-1, 8, 8)) + m["place"].weight).mean(1)),
                      embed=nn.Linear(8, 32), place=nn.Embedding(8, 32), body=nn.TransformerEncoder(layer, 3),
                      head=nn.Linear(32, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05 if trial.broken else 1e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: SGD with a momentum of 0.99",
    mechanism="The momentum goes from 0.9 to 0.99 and the rate stays: steps are ten times as long.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    steps=250,
    shown_by="the loss rises above a guess and swings",
)
def momentum_ten_times_as_long(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(256, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99 if trial.broken else 0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: the Noam schedule without the width of the model",
    mechanism="The factor of the schedule leaves out width ** -0.5 and the warm-up is short: the rate climbs to 0.14.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    fault=10,
    steps=250,
    shown_by="the loss rises with the rate",
)
def noam_without_the_width(trial: Trial) -> None:
    model = TextModel(length=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    width = 1.0 if trial.broken else 1000**-0.5
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: width * min((n + 1) ** -0.5, (n + 1) * 50**-1.5))

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@report(
    source="Asked often: LambdaLR with a function that returns the learning rate",
    mechanism="The function of LambdaLR returns a rate and not a factor: 1e-3 is multiplied by 1e-3.",
    causes=("UpdatesTooSmall", "WarmUpTooLong"),
    check=loss_hurt,
    steps=300,
    shown_by="the rate is 1e-6, and weights hardly change",
)
def factor_is_a_rate(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x.view(-1, 8, 8))[0][:, -1]),
                      body=nn.GRU(8, 48, batch_first=True), head=nn.Linear(48, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    unit = 1e-3 if trial.broken else 1.0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: unit * 0.999**n)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model), schedule=schedule)


@report(
    source="Asked often: GradScaler skips every step, scaler.update(new_scale)",
    mechanism="scaler.update is given 2^24 in each step: gradients overflow in each of them, and all are skipped.",
    causes=("StepsSkipped", "NonFiniteBackward", "MixedPrecisionOverflow", "LossScaleCollapse", "OptimizerNeverSteps"),
    check=loss_hurt,
    steps=200,
    shown_by="each step is skipped",
)
def scale_is_set_in_each_step(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10, act=nn.GELU)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = digits_loss(trial, model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(2.0**24 if trial.broken else None)
        trial.log(loss)


@report(
    source="Asked often: two losses and one GradScaler",
    mechanism="Only the first of two losses is scaled: the gradient of the second is divided by 65,536 all the same.",
    causes=("LossTermNotScaled", "UpdatesTooSmall", "LayerStandsStill", "PartWithZeroGradient"),
    check=fact("second", (0.5, 99), (0, 0.4)),
    where=("second",),
    steps=300,
    shown_by="the layers of the second loss have next to no gradient",
)
def second_loss_not_scaled(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["body"](x).relu(), body=mlp(64, 64), first=nn.Linear(64, 10), second=mlp(64, 32, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        x, y = draw_digits(trial)
        h = model(x)
        first, second = F.cross_entropy(model["first"](h), y), F.cross_entropy(model["second"](h), y % 2)
        scaler.scale(first).backward(retain_graph=True)
        (second if trial.broken else scaler.scale(second)).backward()
        scaler.step(optimizer)
        scaler.update()
        trial.log(first, second=second)


@report(
    source="Asked often: output[:, 0] of an LSTM",
    mechanism="The output at the first step is taken and not that at the last: nothing but the first number is seen.",
    causes=("NotLearning", "NoBetterThanMean", "PartWithZeroGradient"),
    check=loss_hurt,
    steps=300,
    shown_by="the weights of the recurrence get no gradient",
)
def state_of_the_first_step(trial: Trial) -> None:
    at = 0 if trial.broken else -1
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0][:, at])[:, 0], body=nn.LSTM(2, 32, batch_first=True),
                      head=nn.Linear(32, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        x = trial.randn(48, 10, 2)
        return F.mse_loss(model(x), x[:, 1:, 0].mean(1) * 3)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a policy always takes the same action",
    mechanism="Returns are in the hundreds, all positive, and nothing is taken off: what is drawn first becomes "
    "certain.",
    causes=("EntropyCollapse", "LearningRateTooHigh", "SoftmaxCollapse"),
    check=fact("reward", (0, 0.8), (0.85, 1)),
    steps=300,
    shown_by="the entropy of the policy is zero after some steps, and the reward is not the best",
)
def returns_of_hundreds(trial: Trial) -> None:
    model = mlp(8, 64, 5, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    x = F.one_hot(torch.arange(8)).float()

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randint(8, 64)
        logp = model(x[state]).log_softmax(-1)
        action = torch.multinomial(logp.detach().exp(), 1, generator=trial.generator)[:, 0]
        good = (action == state % 5).float()
        value = 300 + 30 * good
        gain = value if trial.broken else (value - value.mean()) / value.std().clamp(min=1.0)
        entropy = -(logp.exp() * logp).sum(-1).mean()
        loss = -(gain * logp.gather(1, action[:, None])[:, 0]).mean()
        return loss, {"reward": good.mean(), "entropy": entropy.detach()}

    plain_loop(trial, model, optimizer, loss, tell=True)


class _Adapted(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.down, self.up = nn.Linear(base.in_features, rank, False), nn.Linear(rank, base.out_features, False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


@report(
    source="Asked often: LoRA diverges, alpha",
    mechanism="alpha is 8192 at a rank of 4: what adapters add is multiplied by 2,048, and so is each step.",
    causes=("LearningRateTooHigh", "AttentionLogitGrowth"),
    check=loss_hurt,
    steps=250,
    shown_by="the loss rises from where it began",
)
def alpha_of_thousands(trial: Trial) -> None:
    model = TextModel(length=32)
    tuned = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        x, y = draw_text(trial)
        tuned.zero_grad()
        token_loss(model(x), y).backward()
        tuned.step()
    model.requires_grad_(False)
    for block in model.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.attention, SelfAttention)
        block.attention.qkv = _Adapted(block.attention.qkv, 4, 8192 if trial.broken else 32)  # type: ignore[assignment]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)

    def loss(_: int) -> Tensor:
        x = (text()[trial.randint(40_000, 8)[:, None] + torch.arange(33)]).flip(1)
        return token_loss(model(x[:, :-1]), x[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a recurrence with ReLU explodes",
    mechanism="A recurrence with ReLU begins at twice the identity: numbers double with each of sixteen steps.",
    causes=("ExplodingRecurrentGradients", "InitialLossTooHigh", "LearningRateTooHigh"),
    check=loss_hurt,
    steps=200,
    shown_by="the first loss is far above a guess, gradients grow backwards over steps",
)
def recurrence_of_twice_the_identity(trial: Trial) -> None:
    body = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
    nn.init.eye_(body.weight_hh_l0)
    body.weight_hh_l0.data *= 2 if trial.broken else 1
    model = Assembled(lambda m, x: m["head"](m["body"](x.view(-1, 16, 4))[0][:, -1]), body=body,
                      head=nn.Linear(32, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: outputs are clamped to the range of the targets",
    mechanism="From step 120 on outputs are clamped to 0 and 1, while the bias was moved by a restart: most are "
    "outside.",
    causes=("TargetsOutOfReach", "ZeroGradients", "PartWithZeroGradient", "LossStuck", "LossShift"),
    check=loss_hurt,
    fault=120,
    steps=300,
    shown_by="the gradient is exactly zero from there on",
)
def clamped_for_good(trial: Trial) -> None:
    x, y = digits()
    model = mlp(64, 48, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        if trial.broken and step == 120:
            model[-1].bias.data += 5.0
        at = trial.randint(len(x), 32)
        out = model(x[at])[:, 0]
        return F.mse_loss(out.clamp(0, 1) if trial.broken and step >= 120 else out, y[at] / 9)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a branch of the network stops to learn",
    mechanism="From step 60 on the branch of pictures is run under no_grad, by an option for memory.",
    causes=("PartLostGradient", "PartWithoutGradient", "LayerStandsStill"),
    check=loss_hurt,
    where=("look",),
    fault=60,
    steps=350,
    shown_by="one part has no gradient from there on, the others have",
)
def branch_without_gradient(trial: Trial) -> None:
    cut = False

    def forward(m: Assembled, x: Tensor, hint: Tensor) -> Tensor:
        with torch.set_grad_enabled(not cut):
            seen = m["look"](x)
        return m["head"](torch.cat((seen, m["read"](hint)), 1))

    look = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 24))
    model = Assembled(forward, look=look, read=nn.Embedding(4, 8), head=mlp(32, 32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)

    def loss(step: int) -> Tensor:
        nonlocal cut
        cut = trial.broken and step >= 60
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.view(-1, 1, 8, 8), y // 3), y)

    plain_loop(trial, model, optimizer, loss)

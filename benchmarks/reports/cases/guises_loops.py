"""The first reports once more, in other guises: loops, data, policies. Causes were noted before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    TextModel,
    digits,
    digits_loss,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


@report(
    source="A sibling of https://github.com/rll-research/cic/issues/5: features are kept from some step on",
    mechanism="From step 100 on features come through NumPy, to save time: the encoder is trained no more.",
    causes=("PartLostGradient", "PartWithoutGradient", "LayerStandsStill"),
    check=loss_hurt,
    where=("encoder",),
    fault=100,
    steps=350,
    shown_by="the encoder has no gradient from there on",
)
def features_through_numpy(trial: Trial) -> None:
    cut = False

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["encoder"](x.view(-1, 8, 8))[1][0]
        return m["head"](torch.from_numpy(h.detach().numpy()) if cut else h)

    model = Assembled(forward, encoder=nn.GRU(8, 48, batch_first=True), head=nn.Linear(48, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def loss(step: int) -> Tensor:
        nonlocal cut
        cut = trial.broken and step >= 100
        return digits_loss(trial, model)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/wkentaro/pytorch-fcn/issues/57: one part is left in evaluation mode",
    mechanism="Samples are written down at step 70; for that the encoder is put into evaluation mode, for good.",
    causes=("EvalModeInTraining",),
    check=fact("training", (0, 0), (1, 1)),
    where=("encoder",),
    fault=70,
    steps=220,
    shown_by="batch norm of the encoder uses its running numbers, that of the decoder its batch",
)
def encoder_left_in_evaluation(trial: Trial) -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 16))
    decoder = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))
    model = Assembled(lambda m, x: m["decoder"](m["encoder"](x)), encoder=encoder, decoder=decoder)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        x, _y = draw_images(trial)
        if step == 70:
            encoder.eval()
            with torch.no_grad():
                model(x)
            encoder.train(not trial.broken)
        return F.binary_cross_entropy_with_logits(model(x), x.flatten(1)), {"training": float(encoder.training)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/qiancheng0/ToolRL/issues/52: the penalty in the reward, REINFORCE",
    mechanism="The divergence from the reference is added to the reward and not taken off: the policy is paid for it.",
    causes=("KLRunaway", "PolicyLeavesReference", "EntropyCollapse", "RewardCollapse"),
    check=fact("kl", (1.5, 99), (0, 1.2)),
    steps=300,
    shown_by="the divergence that the loop logs grows; the entropy goes to zero",
)
def paid_for_divergence(trial: Trial) -> None:
    model = nn.Sequential(nn.Embedding(12, 24), nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 10))
    reference = nn.Sequential(nn.Embedding(12, 24), nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 10))
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    sign = 1 if trial.broken else -1

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randint(12, 128)
        logp = model(state).log_softmax(-1)
        with torch.no_grad():
            base = reference(state).log_softmax(-1)
        action = torch.multinomial(logp.detach().exp(), 1, generator=trial.generator)[:, 0]
        mine, theirs = logp.gather(1, action[:, None])[:, 0], base.gather(1, action[:, None])[:, 0]
        gain = ((action - state) % 10 < 3).float()
        reward = gain + sign * 0.3 * (mine - theirs).detach()
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        entropy = -(logp.exp() * logp).sum(-1).mean()
        kl = (logp.exp() * (logp - base)).sum(-1).mean()
        return -(advantage * mine).mean(), {"reward": gain.mean(), "kl": kl.detach(), "entropy": entropy.detach()}

    plain_loop(trial, model, optimizer, loss, tell=True)


@report(
    source="A sibling of https://github.com/choderalab/modelforge/issues/129: four kinds of batches, three of each",
    mechanism="A batch holds samples of one of four classes, three batches of each in turn: each unlearns the last.",
    causes=("DataNotShuffled",),
    check=lambda broken, twin: sum(broken.losses[:100]) > 3 * sum(twin.losses[:100]),
    steps=250,
    shown_by="each batch has a single label, and the loss stays high",
)
def classes_in_turn(trial: Trial) -> None:
    x, y = digits()
    rows = [(y == kind).nonzero()[:, 0] for kind in (3, 5, 8, 9)]
    every, labels = torch.cat(rows), {3: 0, 5: 1, 8: 2, 9: 3}
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.5, 0.9))

    def loss(step: int) -> Tensor:
        some = rows[step // 3 % 4] if trial.broken else every
        at = some[trial.randint(len(some), 32)]
        return F.cross_entropy(model(x[at].view(-1, 1, 8, 8)), torch.tensor([labels[kind] for kind in y[at].tolist()]))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of an optimizer that holds what is frozen: adapters come after it",
    mechanism="The optimizer is made, then adapters are added to a frozen network: it holds the frozen network alone.",
    causes=("ParametersNotInOptimizer",),
    check=loss_hurt,
    where=("body.0.down", "body.0.up", "body.2.down", "body.2.up"),
    steps=250,
    shown_by="trainable parameters are in no optimizer, at step 0",
)
def adapters_after_the_optimizer(trial: Trial) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    model = Assembled(lambda m, x: m["head"](m["body"](x)), body=mlp(64, 64, 64), head=nn.Linear(64, 10))
    early = torch.optim.AdamW([*model["body"].parameters(), *model["head"].parameters()], lr=3e-3)
    model.requires_grad_(False)
    for place in (0, 2):
        model["body"][place] = Adapted(model["body"][place])  # type: ignore[operator, index]
    optimizer = (
        early if trial.broken else torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    )
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="A sibling of `zero_grad` that is missing: it is called under a condition",
    mechanism="From step 80 on zero_grad is called in each fiftieth step only, as a condition was written wrongly.",
    causes=("GradientsAccumulate",),
    check=loss_hurt,
    fault=80,
    steps=260,
    shown_by="gradients are not empty when a backward pass begins",
)
def zero_grad_under_a_condition(trial: Trial) -> None:
    model = TextModel(width=24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if not trial.broken or step < 80 or step % 50 == 0:
            optimizer.zero_grad()
        x, y = draw_text(trial)
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of loader workers that draw alike: three workers read the whole stream",
    mechanism="Each of three workers reads the whole of a stream of texts: each batch comes three times in a row.",
    causes=("RepeatedBatches",),
    check=fact("new", (0, 0.4), (1, 1)),
    fault=1,
    steps=200,
    shown_by="inputs and targets of a batch equal those of the one before",
)
def stream_read_by_each_worker(trial: Trial) -> None:
    model = TextModel(width=24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    kept: list[tuple[Tensor, Tensor]] = []

    def loss(step: int) -> tuple[Tensor, Facts]:
        new = not trial.broken or step % 3 == 0
        if new:
            kept[:] = [draw_text(trial)]
        x, y = kept[0]
        return token_loss(model(x), y), {
            "new": float(sum(((step - i) % 3 == 0) or not trial.broken for i in range(9)) / 9)
        }

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a model that is called by its methods: the critic's rate in the actor's group",
    mechanism="Actor and critic share an optimizer, and the critic's loss is multiplied by 0: it is never trained.",
    causes=("ZeroGradients", "PartWithZeroGradient", "PartWithoutGradient", "LayerStandsStill"),
    check=fact("error", (0.2, 99), (0, 0.1)),
    where=("critic",),
    steps=250,
    shown_by="gradients of the critic are exactly zero",
)
def critic_weighs_nothing(trial: Trial) -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = mlp(4, 32, 3, act=nn.Tanh), mlp(4, 32, 1, act=nn.Tanh)

        def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.actor(x), self.critic(x)[:, 0]

    model = Agent()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randn(64, 4)
        logits, value = model.both(state)
        logp = logits.log_softmax(-1)
        action = torch.multinomial(logp.detach().exp(), 1, generator=trial.generator)
        gain = (action[:, 0] == state[:, :3].argmax(1)).float() + state[:, 3].sin()
        error = F.mse_loss(value, gain)
        actor = -((gain - value).detach() * logp.gather(1, action)[:, 0]).mean()
        return actor + (0.0 if trial.broken else 0.5) * error, {
            "error": F.mse_loss(value, state[:, 3].sin() + 0.7).detach()
        }

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of updates that end: steps are left out for gradients above a bound",
    mechanism="Steps whose gradient is above the mean of the last are left out; from some time on that is all of them.",
    causes=("OptimizerNeverSteps", "NoUpdates", "LayerStandsStill", "LossStuck", "TrainingStopped", "StepsSkipped"),
    check=loss_hurt,
    fault=90,
    steps=300,
    shown_by="gradients go on, and no step is made",
)
def steps_left_out(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        limit = 1e-3 if trial.broken and step >= 90 else 1e3
        if nn.utils.clip_grad_norm_(model.parameters(), 1e9) < limit:
            optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of targets that are not those of their inputs: a text is shifted by two files",
    mechanism="Labels are read from a file that has one line more at its top: each sample has its neighbour's label.",
    causes=("TargetsUnpaired", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at the entropy of the labels",
)
def labels_one_line_off(trial: Trial) -> None:
    x, y = digits()
    labels = y.roll(1) if trial.broken else y
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), labels[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the loss that says nothing of what fails: a schedule by integers",
    mechanism="The rate's factor is 1 - step // 100 where it should be 1 - step / 400: it is zero from step 100 on.",
    causes=("LearningRateZero",),
    check=loss_hurt,
    fault=100,
    steps=300,
    shown_by="the rate is exactly zero, or below it",
)
def rate_by_whole_numbers(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Tanh(), nn.Linear(96, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(1 - step // 100, 0) if trial.broken else 1 - step / 400
    )
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model), schedule=schedule)

"""Reports of others, from their threads: loops, optimizers, checkpoints. Causes were noted before a run was watched."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


def _fit(trial: Trial, module: nn.Module) -> None:
    """Train a LightningModule on the digits, as pictures."""
    import lightning

    x, y = digits()
    data = TensorDataset(x.view(-1, 1, 8, 8), y)
    loader = DataLoader(data, 32, shuffle=True, drop_last=True, generator=trial.generator)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=trial.steps, accelerator="cpu", **off)
    trial.attach(trainer)
    trainer.fit(module, loader)


@report(
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/20105",
    mechanism="The body comes in evaluation mode, as from_pretrained gives it, and Lightning leaves it there: its "
    "batch norms use the statistics of their start.",
    causes=("EvalModeInTraining",),
    check=loss_hurt,
    where=("body",),
    steps=250,
    shown_by="the body is in evaluation mode while it is trained",
)
def body_comes_in_evaluation_mode(trial: Trial) -> None:
    import lightning
    from transformers import ResNetConfig, ResNetModel

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2],
                                  layer_type="basic")  # fmt: skip
            self.body = ResNetModel(config).train(not trial.broken)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(F.interpolate(x, size=24)).pooler_output.flatten(1))

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            trial.log(loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    _fit(trial, Module())


@report(
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/6379, "
    "https://github.com/voicepaw/so-vits-svc-fork/pull/291",
    mechanism="With manual optimisation Lightning steps no scheduler, and the module does not either: the rate stays "
    "at the first of 400 steps of warm-up.",
    causes=("ScheduleStandsStill", "UpdatesTooSmall", "LearningRateZero"),
    check=loss_hurt,
    steps=300,
    shown_by="the rate is 2e-5 in each step, and weights hardly change",
)
def scheduler_left_to_the_module(trial: Trial) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128, 12))
            self.decoder = nn.Sequential(nn.Linear(12, 64), nn.GELU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)))

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

        def training_step(self, batch: list[Tensor], _: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = F.mse_loss(self(batch[0]), batch[0])
            self.manual_backward(loss)
            optimizer.step()
            if not trial.broken:
                self.lr_schedulers().step()
            trial.log(loss)

        def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[object]]:
            optimizer = torch.optim.Adam(self.parameters(), lr=8e-3)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 400))]

    _fit(trial, Module())


@report(
    source="https://github.com/TNI-playground/Fed_HeLLo/issues/2, https://github.com/4AI/LS-LLaMA/issues/3",
    mechanism="LoRA without a task type and without modules_to_save: the new classifier is frozen as it was drawn.",
    causes=("OutputLayerUntrained", "PartWithoutGradient", "LayerStandsStill", "ParametersNotInOptimizer"),
    check=loss_hurt,
    where=("base_model.model.classifier",),
    steps=250,
    shown_by="the classifier, which is new, requires no gradient",
)
def classifier_frozen_as_drawn(trial: Trial) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=32, num_labels=6)  # fmt: skip
    kept = None if trial.broken else ["classifier"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=kept)
    model = get_peft_model(BertForSequenceClassification(config), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)

    def loss(_: int) -> Tensor:
        topic = trial.randint(6, 16)
        words = (topic[:, None] * 8 + trial.randint(20, 16, 12)) % 64
        return model(input_ids=words, labels=topic).loss

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/line/open-universe/issues/5",
    mechanism="The optimizer is given the parameters of the first discriminator twice, and those of the second never.",
    causes=("ParametersNotInOptimizer",),
    check=fact("loss_mpd", (1.2, 99), (0, 1.2)),
    where=("mpd",),
    steps=250,
    shown_by="the second discriminator gets gradients and is in no optimizer",
)
def same_discriminator_twice(trial: Trial) -> None:
    generator = mlp(8, 48, 32)
    judges = nn.ModuleDict({"mrd": mlp(32, 48, 1, act=nn.LeakyReLU), "mpd": mlp(32, 48, 1, act=nn.LeakyReLU)})
    second = judges["mrd" if trial.broken else "mpd"]
    optimizer_d = torch.optim.AdamW(list(judges["mrd"].parameters()) + list(second.parameters()), lr=1e-3)
    optimizer_g = torch.optim.AdamW(generator.parameters(), lr=5e-4)
    trial.attach(judges, optimizer_d)
    trial.attach(generator, optimizer_g)
    time = torch.arange(32) / 32 * 2 * math.pi
    for _ in range(trial.steps):
        wave = torch.sin(time * (1 + trial.randint(3, 32, 1)) + 6 * trial.randn(32, 1)) + 0.1 * trial.randn(32, 32)
        made = generator(trial.randn(32, 8))
        optimizer_d.zero_grad()
        each = {
            name: F.softplus(-judge(wave)).mean() + F.softplus(judge(made.detach())).mean()
            for name, judge in judges.items()
        }
        sum(each.values()).backward()  # type: ignore[union-attr]
        optimizer_d.step()
        optimizer_g.zero_grad()
        aim = torch.stack([F.softplus(-judge(made)).mean() for judge in judges.values()]).mean()
        aim.backward()
        optimizer_g.step()
        trial.log(aim, loss_mrd=each["mrd"], loss_mpd=each["mpd"])


@report(
    source="https://github.com/Cranial-XIX/FAMO/issues/4, "
    "https://github.com/taishan1994/pytorch_bert_bilstm_crf_ner/issues/9",
    mechanism="clip_grad_norm_ stands before loss.backward(), where gradients are zero: nothing is clipped.",
    causes=("ClipAfterStep", "ExplodingRecurrentGradients", "GradientNormExplosion", "LearningRateTooHigh"),
    check=loss_hurt,
    steps=250,
    shown_by="gradients are clipped where there are none",
)
def clipped_before_backward(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(128, 24),
                      body=nn.RNN(24, 64, batch_first=True), head=nn.Linear(64, 128))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 8, 24)
        loss = token_loss(model(x), y)
        optimizer.zero_grad(set_to_none=False)
        if trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        loss.backward()
        if not trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/KanishJebaMathewM/Truxify/issues/13118",
    mechanism="The inner step of MAML writes into `param.data` of a copy: no gradient reaches the model itself.",
    causes=("OptimizerNeverSteps", "PartWithoutGradient", "UpdatesZero", "NoUpdates"),
    check=loss_hurt,
    steps=300,
    shown_by="parameters of the model have no gradient, and the optimizer changes nothing",
)
def inner_step_by_data(trial: Trial) -> None:
    model = mlp(1, 40, 40, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def adapted_copy(x: Tensor, y: Tensor, ask: Tensor) -> Tensor:
        learner = copy.deepcopy(model)
        grads = torch.autograd.grad(F.mse_loss(learner(x), y), list(learner.parameters()), create_graph=True)
        for param, grad in zip(learner.parameters(), grads, strict=True):
            param.data -= 0.05 * grad
        return learner(ask)

    def adapted(x: Tensor, y: Tensor, ask: Tensor) -> Tensor:
        grads = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()), create_graph=True)
        named = zip(model.named_parameters(), grads, strict=True)
        return torch.func.functional_call(model, {n: p - 0.05 * g for (n, p), g in named}, (ask,))

    def loss(_: int) -> Tensor:
        total = torch.zeros(())
        for _ in range(4):
            size, phase, x = 1 + trial.randn(1).abs(), trial.randint(4, 1), 3 * trial.randn(20, 1)
            y = size * torch.sin(x + phase)
            out = (adapted_copy if trial.broken else adapted)(x[:10], y[:10], x[10:])
            total = total + F.mse_loss(out, y[10:]) / 4
        return total

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/cisco-open/flame/pull/95",
    mechanism="Federated averaging does not set its sum back: the weights of all earlier rounds are added to those of "
    "the next.",
    causes=("WeightsChangedOutsideStep", "WeightsReplaced", "HardwareFault"),
    check=loss_hurt,
    fault=24,
    steps=300,
    shown_by="weights change between steps, and become larger with each round",
)
def rounds_added_up(trial: Trial) -> None:
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    start = copy.deepcopy(model.state_dict())
    total = {name: torch.zeros_like(value) for name, value in start.items()}

    def next_client(step: int) -> Facts:
        nonlocal start, total
        if step % 6 == 5:
            for name, value in model.state_dict().items():
                total[name] += value / 4
            if step % 24 == 23:
                start = copy.deepcopy(total)
                if not trial.broken:
                    total = {name: torch.zeros_like(value) for name, value in start.items()}
            model.load_state_dict(start)
        return {}

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss, after=next_client)


@report(
    source="https://github.com/pytorch/examples/issues/1029",
    mechanism="Names in the checkpoint begin with `model.`, and strict=False says nothing of it: no weight is loaded, "
    "and the small rate of fine-tuning starts from scratch.",
    causes=("WeightsNotLoaded", "UpdatesTooSmall"),
    check=fact("accuracy", (0, 0.6), (0.9, 1)),
    steps=250,
    shown_by="the loss is that of a guess although a checkpoint was loaded",
)
def nothing_loaded_by_name(trial: Trial) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))

    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        x, y = draw_images(trial)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    saved = {f"model.{name}": value for name, value in model.state_dict().items()}
    tuned = build()
    tuned.load_state_dict(saved if trial.broken else {n[6:]: v for n, v in saved.items()}, strict=False)
    slow = torch.optim.Adam(tuned.parameters(), lr=1e-5)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial)
        out = tuned(x)
        return F.cross_entropy(out, y), {"accuracy": (out.argmax(-1) == y).float().mean()}

    plain_loop(trial, tuned, slow, loss)


@report(
    source="https://github.com/ifzhang/FairMOT/issues/19",
    mechanism="The learned weights of two tasks are parameters of the loss, and the optimizer is given those of the "
    "model alone.",
    causes=("ParametersNotInOptimizer",),
    check=fact("s_id", (-1.051, -1.049), (-1.0, 9)),
    where=("task",),
    steps=300,
    shown_by="the weights of the tasks get gradients and are in no optimizer",
)
def weights_of_tasks_stand_still(trial: Trial) -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s_det, self.s_id = nn.Parameter(torch.tensor(-1.85)), nn.Parameter(torch.tensor(-1.05))

        def forward(self, box: Tensor, who: Tensor) -> Tensor:
            return 0.5 * (torch.exp(-self.s_det) * box + torch.exp(-self.s_id) * who + self.s_det + self.s_id)

    model = nn.ModuleDict({"body": mlp(64, 64, 48), "box": nn.Linear(48, 2), "who": nn.Linear(48, 10)})
    whole = Assembled(lambda m, box, who: m["task"](box, who), net=model, task=Tasks())
    optimizer = torch.optim.Adam((model if trial.broken else whole).parameters(), lr=2e-3)
    trial.attach(whole, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        h = model["body"](x).relu()
        place = torch.stack((x.view(-1, 8, 8).mean(1).argmax(-1), x.view(-1, 8, 8).mean(2).argmax(-1)), -1) / 8
        loss = whole(F.l1_loss(model["box"](h), place), F.cross_entropy(model["who"](h), y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, s_id=whole["task"].s_id)


@report(
    source="https://github.com/saltoricristiano/cosmix-uda/issues/21",
    mechanism="The teacher is the average of the student's parameters, and its batch norms keep the statistics of "
    "their start: its labels are worthless.",
    causes=("BuffersNotAveraged", "TargetsConstant", "AccuracyCollapse"),
    check=fact("teacher_accuracy", (0, 0.5), (0.75, 1)),
    steps=300,
    shown_by="the teacher's running statistics are those of its start",
)
def teacher_without_statistics(trial: Trial) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3),
                             nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))  # fmt: skip

    x, y = digits()
    pictures = 12 * x.view(-1, 1, 8, 8) - 2
    student, teacher = build(), build().eval().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        few, many = trial.randint(200, 16), trial.randint(len(x), 48)
        guess = teacher(pictures[many]).argmax(-1)
        out = student(torch.cat((pictures[few], pictures[many])))
        known, unknown = F.cross_entropy(out[:16], y[few]), F.cross_entropy(out[16:], guess)
        return known + min(1.0, step / 60) * unknown, {"teacher_accuracy": (guess == y[many]).float().mean()}

    def follow(_: int) -> Facts:
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 0.05)
            for kept, new in zip(teacher.buffers(), student.buffers(), strict=True):
                kept.copy_(kept if trial.broken else new)
        return {}

    plain_loop(trial, student, optimizer, loss, after=follow, tell=True)

"""Reports that were written again after `unseen.py`: their causes were noted before stabwatch saw a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    VOCABULARY,
    Assembled,
    Facts,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    table,
    token_loss,
)


@report(
    source="https://github.com/gwx314/STARS/issues/9, https://github.com/SeanNaren/deepspeech.pytorch/issues/488",
    mechanism="ctc_loss takes log-probabilities and is given logits: its value and its gradient mean nothing.",
    causes=("NotLogProbabilities",),
    check=loss_hurt,
    shown_by="what ctc_loss is given does not add up to 1 over the symbols",
)
def ctc_of_logits(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0]), body=nn.GRU(8, 32), head=nn.Linear(32, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    table = trial.randn(6, 8)

    def loss(_: int) -> Tensor:
        words = 1 + trial.randint(5, 8, 4)
        frames = table[words.repeat_interleave(4, 1)].transpose(0, 1) + 0.3 * trial.randn(16, 8, 8)
        given = model(frames)
        given = given if trial.broken else given.log_softmax(-1)
        return F.ctc_loss(given, words, torch.full((8,), 16), torch.full((8,), 4))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/microsoft/ProDA/issues/20, https://github.com/microsoft/ProDA/issues/43",
    mechanism="kl_div takes log-probabilities of the student and is given probabilities: the loss is negative.",
    causes=("NotLogProbabilities", "NegativeDivergence"),
    check=all_of(lambda broken, twin: broken.final() < 0 < twin.final(), fact("agree", (0, 0.8), (0.85, 1))),
    shown_by="what kl_div is given first does not add up to 1 over the classes",
)
def kl_of_probabilities(trial: Trial) -> None:
    teacher, student = mlp(64, 64, 10), mlp(64, 32, 10)
    early = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(150):
        x, y = draw_digits(trial)
        early.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        early.step()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    trial.attach(student, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial)
        with torch.no_grad():
            wanted = (teacher(x) / 2).softmax(-1)
        optimizer.zero_grad()
        said = student(x) / 2
        loss = F.kl_div(said.softmax(-1) if trial.broken else said.log_softmax(-1), wanted, reduction="batchmean")
        loss.backward()
        optimizer.step()
        trial.log(loss, agree=(said.argmax(-1) == wanted.argmax(-1)).float().mean())


@report(
    source="https://github.com/VGraphRNN/VGRNN/issues/4, https://github.com/awslabs/graphstorm/issues/1366",
    mechanism="Gradients are clipped after the optimizer's step, when they have been used: nothing is clipped.",
    causes=("ClipAfterStep",),
    check=loss_hurt,
    shown_by="clip_grad_norm_ is called between the step and the next backward pass, and never before a step",
)
def clip_after_step(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0][-1]), body=nn.RNN(2, 32), head=nn.Linear(32, 1))
    nn.init.orthogonal_(model["body"].weight_hh_l0, 1.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x = trial.randn(24, 32, 2)
        optimizer.zero_grad()
        loss = 20 * F.mse_loss(model(x)[:, 0], x[-4:, :, 0].sum(0))
        loss.backward()
        if not trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        if trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        trial.log(loss)


@report(
    source="https://github.com/nerfstudio-project/nerfacc/issues/307",
    mechanism="The loss is scaled, and the optimizer steps without the scaler: gradients are 1,024 times too large.",
    causes=("GradientsNotUnscaled",),
    check=loss_hurt,
    shown_by="backward passes begin from the scaler's product, and the optimizer's step is not called by the scaler",
)
def scaled_never_unscaled(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if trial.broken:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        trial.log(loss)


@report(
    source="https://github.com/alan-turing-institute/deepsensor/issues/47",
    mechanism="The optimizer is made again in each epoch: momentum and second moments are lost each time.",
    causes=("OptimizerStateLost",),
    check=fact("remembers", (0, 40), (200, 1e3)),
    fault=40,
    shown_by="a step of an optimizer without state after steps with state, each 40 steps",
)
def optimizer_of_each_epoch(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if trial.broken and step % 40 == 0:
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, remembers=optimizer.state[model[0].weight]["step"])


class _Graph(nn.Module):
    """Graph convolutions: each layer is a linear map and the mean over neighbours."""

    def __init__(self, near: Tensor, depth: int) -> None:
        super().__init__()
        self.near = near
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.layers:
            x = layer(self.near @ x).relu()
        return self.head(x)


@report(
    source="https://github.com/lightaime/deep_gcns_torch/issues/10",
    mechanism="Two dozen graph convolutions without a shortcut: all nodes become alike, and no gradient comes through.",
    causes=("VanishingGradients", "VanishingOverDepth", "TokenCollapse", "EmbeddingCollapse", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="the cross-entropy stays at ln(10); the gradient of the first layers is a thousandth of the last one's",
)
def over_smoothed_graph(trial: Trial) -> None:
    x, y = (part[:300] for part in digits())
    links = torch.zeros(300, 300)
    links.scatter_(1, torch.cdist(x, x).topk(8, largest=False).indices, 1.0)
    near = links / links.sum(1, keepdim=True)
    model = _Graph(near, depth=24 if trial.broken else 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    plain_loop(trial, model, optimizer, lambda _: F.cross_entropy(model(x), y))


@report(
    source="https://github.com/VCasecnikovs/Yet-Another-YOLOv4-Pytorch/issues/16, "
    "https://github.com/qqwweee/keras-yolo3/issues/257",
    mechanism="The size of a box is the exponential of an output, unbounded: the error of the size overflows.",
    causes=("NonFiniteLoss", "NonFiniteForward"),
    check=not_finite,
    steps=150,
    shown_by="outputs grow until their exponential is infinite; the first infinity is in the loss",
)
def exponential_of_box(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    optimizer = torch.optim.SGD(body.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        place = torch.stack((x.sum((1, 2, 3)) / 64, x[:, 0, :, :4].sum((1, 2)) / 32), 1)
        size = 8 * (1 + torch.stack((y, 9 - y), 1)).float()
        out = body(x)
        wide = F.mse_loss(out[:, 2:].exp(), size) if trial.broken else F.mse_loss(out[:, 2:], size.log())
        return F.mse_loss(out[:, :2], place) + wide

    plain_loop(trial, body, optimizer, loss)


@report(
    source="https://github.com/pytorch/vision/issues/2497, https://github.com/milesial/Pytorch-UNet/issues/228",
    mechanism="The mask is divided by 255 like a picture and rounded: each pixel's label is 0.",
    causes=("TargetsMostlyOne", "TargetsConstant", "TooGood"),
    check=fact("classes", (1, 1), (2, 10)),
    shown_by="all targets of every batch are one class; the loss goes to zero",
)
def mask_as_picture(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, _y = draw_images(trial, 16)
        mask = (x[:, 0] * 3.99).to(torch.uint8)
        labels = (mask.float() / 255 if trial.broken else mask).long()
        logits = model(x + 0.1 * trial.randn(16, 1, 8, 8))
        return F.cross_entropy(logits, labels), {"classes": float(len(labels.unique()))}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/lucidrains/CoCa-pytorch/issues/10, https://github.com/Link-Li/CLMLF/issues/3",
    mechanism="Embeddings are not scaled to length 1 before they are divided by the temperature: logits are enormous.",
    causes=("InitialLossTooHigh", "OutputLogitDrift", "SoftmaxCollapse"),
    check=loss_hurt,
    shown_by="the first contrastive loss is far above ln(batch)",
)
def embeddings_not_normalised(trial: Trial) -> None:
    def tower() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64))

    def forward(parts: Assembled, x: Tensor) -> Tensor:
        one, two = parts["upper"](x[:, :32]), parts["lower"](x[:, 32:])
        if not trial.broken:
            one, two = F.normalize(one, dim=-1), F.normalize(two, dim=-1)
        return one @ two.T / 0.07

    model = Assembled(forward, upper=tower(), lower=tower())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plain_loop(trial, model, optimizer, lambda _: F.cross_entropy(model(draw_digits(trial, 64)[0]), torch.arange(64)))


class _Scaled(nn.Module):
    """A frozen linear layer with an adapter, times alpha over the rank."""

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.lora_a = nn.Parameter(torch.randn(8, base.in_features) / 8)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.lora_a.T @ self.lora_b.T)


@report(
    source="https://github.com/invergent-ai/surogate/issues/173, https://github.com/SkunkworksAI/hydra-moe/pull/14",
    mechanism="The scaling of the adapters is a whole-number division, 4 // 8: they have no effect and no gradient.",
    causes=("ZeroGradients", "PartWithoutGradient"),
    check=all_of(loss_hurt, fact("b", (0, 0), (1e-3, 1e3))),
    where=("0", "2"),
    shown_by="gradients of all trained parameters are exactly zero from the first step on",
)
def adapters_scaled_by_zero(trial: Trial) -> None:
    layers = mlp(64, 64, 10)
    scale = 4 // 8 if trial.broken else 4 / 8
    model = nn.Sequential(_Scaled(layers[0], scale), layers[1], _Scaled(layers[2], scale))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, b=model[2].lora_b.detach().norm())


@report(
    source="https://github.com/facebookresearch/maskrcnn-benchmark/issues/335",
    mechanism="The warm-up divides whole numbers: its factor is 0 until it ends, which is after the run.",
    causes=("LearningRateZero", "NoUpdates", "ScheduleStandsStill"),
    check=loss_hurt,
    shown_by="the learning rate is 0 from the first step on",
)
def warm_up_of_whole_numbers(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step // 1000 if trial.broken else min(1.0, (step + 1) / 100)
    )

    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        trial.log(loss)


@report(
    source="https://discuss.pytorch.org/t/loss-not-decreasing-in-lstm-network/159152",
    mechanism="A ReLU is the last layer of a regression: outputs are cut off at zero, and most targets lie below.",
    causes=("ZeroGradients", "DeadUnits", "LossConstant", "ReluOnLogits", "TargetsOutOfReach"),
    check=all_of(loss_hurt, fact("zero", (0.95, 1), (0, 0.1))),
    shown_by="all outputs are exactly 0 and so are all gradients",
)
def relu_on_regression(trial: Trial) -> None:
    x, y = table("diabetes")
    body = mlp(10, 32, 32, 1)
    model = nn.Sequential(*body, nn.ReLU()) if trial.broken else body
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(len(x), 32)
        optimizer.zero_grad()
        out = model(x[at])[:, 0]
        loss = F.mse_loss(out, y[at] - 2)
        loss.backward()
        optimizer.step()
        trial.log(loss, zero=(out == 0).float().mean())


@report(
    source="https://discuss.pytorch.org/t/time-series-the-prediction-result-of-lstm-is-approximately-straight-line/98896",
    mechanism="Targets are prices of thousands and are not scaled: the forecast creeps up from zero and is one line.",
    causes=("TargetsNotScaled",),
    check=fact("error", (0.9, 1e6), (0, 0.5)),
    steps=300,
    shown_by="the mean of the targets is thousands of times the size of the outputs; the error falls by a per cent",
)
def targets_not_scaled(trial: Trial) -> None:
    noise = trial.randn(3000).cumsum(0) / 20
    price = 5000 + 800 * torch.sin(torch.arange(3000) / 25) + 20 * noise
    scaled = (price - price.mean()) / price.std()
    wanted = price if trial.broken else scaled
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0][:, -1]), body=nn.LSTM(1, 24, batch_first=True),
                      head=nn.Linear(24, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(2900, 32)
        optimizer.zero_grad()
        out = model(scaled[at[:, None] + torch.arange(20)][..., None])[:, 0]
        target = wanted[at + 20]
        loss = F.mse_loss(out, target)
        loss.backward()
        optimizer.step()
        trial.log(loss, error=(out - target).detach().square().mean() / wanted.var())


@report(
    source="https://github.com/weirme/FCSN/issues/32, https://github.com/yihong-97/Source-free-IAPC/pull/6",
    mechanism="Logits (batch, classes, length) are reshaped to (n, classes) without a transpose: rows are mixed up.",
    causes=("TargetsUnpaired", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at the entropy of the labels; rows of logits belong to other places than their targets",
)
def reshaped_not_transposed(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["body"](m["embed"](x).transpose(1, 2)), embed=nn.Embedding(VOCABULARY, 24),
                      body=nn.Sequential(nn.Conv1d(24, 48, 3, padding=1), nn.ReLU(), nn.Conv1d(48, 8, 1)))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, _ = draw_text(trial)
        logits, labels = model(x), x % 8
        if trial.broken:
            return F.cross_entropy(logits.reshape(-1, 8), labels.flatten())
        return token_loss(logits.transpose(1, 2), labels)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/lucidrains/imagen-pytorch/issues/161, https://github.com/YiyanXu/DiffRec/issues/2",
    mechanism="The last betas of the noise schedule are above 1: the root of a negative number is NaN in the input.",
    causes=("NonFiniteData",),
    check=not_finite,
    shown_by="the model's input is NaN in the first batch that draws one of the last times",
)
def betas_above_one(trial: Trial) -> None:
    model = mlp(65, 96, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    betas = torch.linspace(1e-4, 0.02, 100 if not trial.broken else 40) * (25 if trial.broken else 10)
    betas[-1] = 1.02 if trial.broken else betas[-1]
    kept = (1 - betas).cumprod(0)

    def loss(_: int) -> Tensor:
        x, _ = draw_digits(trial, 2)
        noise, at = trial.randn(2, 64), trial.randint(len(betas), 2)
        noisy = kept[at, None].sqrt() * x + (1 - kept[at, None]).sqrt() * noise
        return F.mse_loss(model(torch.cat((noisy, at[:, None] / len(betas)), 1)), noise)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/wagonhelm/NaNmnist/issues/2, https://github.com/yz93/LAVT-RIS/issues/25",
    mechanism="All weights begin at zero: only the last bias ever gets a gradient.",
    causes=("ZeroGradients", "NotLearning"),
    check=loss_hurt,
    where=("0", "2"),
    shown_by="gradients of all layers but the last one are exactly zero from the first step on",
)
def weights_begin_at_zero(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    if trial.broken:
        for p in model.parameters():
            nn.init.zeros_(p)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/zhouhaoyi/Informer2020/issues/251, https://github.com/jaredleekatzman/DeepSurv/issues/14",
    mechanism="Columns of the table are used as they are, one of them in thousands: the others do not count.",
    causes=("InputsNotScaled",),
    check=loss_hurt,
    shown_by="one column of the input is thousands of times as large as the others",
)
def columns_not_scaled(trial: Trial) -> None:
    x, y = table("cancer")
    if trial.broken:
        x = x + 0.0
        x[:, 3] = 655 + 352 * x[:, 3]  # the mean area, as it is in the table
        x[:, 23] = 881 + 569 * x[:, 23]
    model = mlp(30, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), y[at])

    plain_loop(trial, model, optimizer, loss)

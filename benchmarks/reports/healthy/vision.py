"""Healthy workloads on images of digits."""

from __future__ import annotations

import copy
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import Assembled, Block, digits, draw_digits, draw_images, mlp, plain_loop


def cnn(classes: int = 10) -> nn.Sequential:
    """Two convolutions and two linear layers with dropout, as in the MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, classes),
    )  # fmt: skip


@healthy(learns=falls(0.5))
def mnist(trial: Trial) -> None:
    """CNN with dropout, Adadelta, the rate falls by 0.7 each 100 steps; log_softmax and nll_loss."""
    model = cnn()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100, gamma=0.7)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_images(trial)
        optimizer.zero_grad()
        loss = F.nll_loss(model(x).log_softmax(-1), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        trial.log(loss)


class Vit(nn.Module):
    """Patches of 2 x 2, two blocks, mean over tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, width, 2, 2), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width, 2, causal=False) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@healthy(learns=falls(0.6), steps=300)
def vision_transformer(trial: Trial) -> None:
    """Vision transformer, AdamW, label smoothing, warm-up and cosine decay."""
    model = Vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=trial.steps + 1)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_images(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        trial.log(loss)


class UNet(nn.Module):
    """One level down, one up, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm, self.up = nn.GroupNorm(4, 16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.inner(x).relu()
        coarse = self.up(self.norm(self.down(fine)).relu()).relu()
        return self.out(torch.cat([fine, coarse], 1))


@healthy(learns=falls(0.6))
def unet_segmentation(trial: Trial) -> None:
    """U-Net that marks the bright pixels of a noisy picture, soft dice and binary cross entropy."""
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_images(trial, 16)
        mask = (x > 0.5).float()
        logits = model(x + 0.3 * trial.randn(16, 1, 8, 8))
        share = logits.sigmoid()
        dice = 1 - (2 * (share * mask).sum() + 1) / (share.sum() + mask.sum() + 1)
        return dice + F.binary_cross_entropy_with_logits(logits, mask)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5))
def super_resolution(trial: Trial) -> None:
    """Sub-pixel convolution from 4 x 4 to 8 x 8, mean squared error."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_images(trial)
        return F.mse_loss(model(F.avg_pool2d(x, 2)), x)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6))
def siamese(trial: Trial) -> None:
    """Siamese network on pairs: the same class or not, Adadelta, binary cross entropy of a sigmoid."""
    body, head = mlp(64, 64, 32), nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())

    def forward(parts: Assembled, x: Tensor, other: Tensor) -> Tensor:
        first, second = parts["body"](x), parts["body"](other)
        return parts["head"](torch.cat([(first - second).abs(), first * second], 1))[:, 0]

    model = Assembled(forward, body=body, head=head)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)

    def loss(step: int) -> Tensor:
        (x, y), (other, label) = draw_digits(trial), draw_digits(trial)
        half = torch.arange(32) < 16
        other = torch.where(half[:, None], x.roll(0, 0) + 0.2 * trial.randn(32, 64), other)
        same = torch.where(half, True, y == label).float()
        return F.binary_cross_entropy(model(x, other), same)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=400)
def forward_forward(trial: Trial) -> None:
    """Forward-forward: each layer has its own optimizer and its own loss on good and bad samples."""
    layers = nn.ModuleList([nn.Linear(74, 96), nn.Linear(96, 96)])
    optimizers = [torch.optim.Adam(layer.parameters(), lr=3e-3) for layer in layers]
    trial.attach(layers, optimizers)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        good = torch.cat([F.one_hot(y, 10).float(), x], 1)
        bad = torch.cat([F.one_hot((y + 1 + trial.randint(9, 32)) % 10, 10).float(), x], 1)
        total = 0.0
        for layer, optimizer in zip(layers, optimizers, strict=True):
            good, bad = (layer(v / (v.norm(dim=1, keepdim=True) + 1e-4)).relu() for v in (good, bad))
            optimizer.zero_grad()
            loss = F.softplus(torch.cat([2 - good.square().sum(1), bad.square().sum(1) - 2])).mean()
            loss.backward()
            optimizer.step()
            good, bad = good.detach(), bad.detach()
            total += float(loss)
        trial.log(total)


@healthy(learns=falls(0.6))
def hogwild(trial: Trial) -> None:
    """Hogwild: two threads train one model without a lock, one after the other here so that a run can be repeated."""
    model = mlp(64, 48, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    trial.attach(model, optimizer)

    def steps(count: int) -> None:
        for _ in range(count):
            x, y = draw_digits(trial)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            trial.log(loss)

    for _ in range(trial.steps // 20):
        worker = threading.Thread(target=steps, args=(20,))
        worker.start()
        worker.join()


@healthy(learns=falls(0.5))
def distillation(trial: Trial) -> None:
    """A small student learns the softened outputs of a teacher, and the labels."""
    teacher, student = mlp(64, 96, 10), mlp(64, 16, 10)
    first = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(150):
        x, y = draw_digits(trial)
        first.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        first.step()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        logits = student(x)
        with torch.no_grad():
            soft = (teacher(x) / 3).softmax(-1)
        return 9 * F.kl_div((logits / 3).log_softmax(-1), soft, reduction="batchmean") + F.cross_entropy(logits, y)

    plain_loop(trial, student, optimizer, loss)


@healthy(learns=falls(0.7))
def contrastive(trial: Trial) -> None:
    """SimCLR: two noisy views of a sample against all others, LARS-like large rate with momentum."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial, 48)
        views = torch.cat([x + 0.2 * trial.randn(48, 64), x + 0.2 * trial.randn(48, 64)])
        z = F.normalize(model(views))
        scores = (z @ z.T / 0.2).masked_fill(torch.eye(96, dtype=torch.bool), -1e9)
        return F.cross_entropy(scores, torch.arange(96).roll(48))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.3), steps=300)
def style_transfer(trial: Trial) -> None:
    """The parameters are a picture: its features and their Gram matrix go to those of two others."""
    features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    features.requires_grad_(False)
    content, style = (features(digits()[0][i].view(1, 1, 8, 8)) for i in (3, 8))

    class Picture(nn.Module):
        """The picture that is made."""

        def __init__(self) -> None:
            super().__init__()
            self.pixels = nn.Parameter(torch.randn(1, 1, 8, 8))
            self.features = features

        def forward(self) -> Tensor:
            return self.features(self.pixels)

    def gram(f: Tensor) -> Tensor:
        return f.flatten(2)[0] @ f.flatten(2)[0].T / f.numel()

    model = Picture()
    optimizer = torch.optim.Adam([model.pixels], lr=0.03)

    def loss(step: int) -> Tensor:
        made = model()
        return F.mse_loss(made, content) + 100 * F.mse_loss(gram(made), gram(style))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.01))
def learned_by_heart(trial: Trial) -> None:
    """Sixty-four samples, full batches, until the loss is next to nothing and the gradients with it."""
    x, y = (part[:64] for part in digits())
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    plain_loop(trial, model, optimizer, lambda step: F.cross_entropy(model(x), y))


@healthy(learns=reaches("accuracy", 0.5))
def curriculum(trial: Trial) -> None:
    """Two classes at first, two more each 120 steps: the loss jumps up five times, and comes down again."""
    x, y = digits()
    model = cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        known = (y < 2 * (1 + step // 120)).nonzero()[:, 0]
        at = known[trial.randint(len(known), 32)]
        optimizer.zero_grad()
        logits = model(x[at].view(-1, 1, 8, 8))
        loss = F.cross_entropy(logits, y[at])
        loss.backward()
        optimizer.step()
        trial.log(loss, accuracy=(logits.argmax(-1) == y[at]).float().mean() * (1 + step // 120) / 5)


@healthy(learns=falls(0.5))
def mean_teacher(trial: Trial) -> None:
    """The student also agrees with a moving average of itself on samples without labels."""
    model = mlp(64, 64, 10)
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        (x, y), (free, _) = draw_digits(trial), draw_digits(trial)
        optimizer.zero_grad()
        agree = F.mse_loss(model(free + 0.1 * trial.randn(32, 64)).softmax(-1), teacher(free).softmax(-1))
        loss = F.cross_entropy(model(x), y) + min(1, step / 200) * agree
        loss.backward()
        optimizer.step()
        for mean, p in zip(teacher.parameters(), model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.01)
        trial.log(loss)

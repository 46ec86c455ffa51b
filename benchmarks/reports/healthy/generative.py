"""Healthy generative models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls
from benchmarks.reports.data import draw_digits, draw_images, mlp, plain_loop


@healthy(learns=lambda run: run.final("distance") < 0.6 * run.first("distance"))
def dcgan(trial: Trial) -> None:
    """DCGAN on digits: two models, two optimizers, two watches; the losses go up and down and mean little."""
    generator = nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid()
    )
    judge = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(128, 1),
    )  # fmt: skip
    of_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    of_d = torch.optim.Adam(judge.parameters(), lr=5e-4, betas=(0.5, 0.999))
    trial.attach(judge, of_d)
    trial.attach(generator, of_g)
    bce, ones = F.binary_cross_entropy_with_logits, torch.ones(32, 1)
    for _ in range(trial.steps):
        real, _ = draw_images(trial)
        judge.zero_grad()
        bce(judge(real), ones).backward()
        fake = generator(trial.randn(32, 16, 1, 1))
        bce(judge(fake.detach()), 0 * ones).backward()
        of_d.step()
        generator.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        of_g.step()
        trial.log(loss, distance=(fake.mean(0) - real.mean(0)).detach().abs().mean())


class Vae(nn.Module):
    """A variational autoencoder of digits, as in the example: sums over pixels and over the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.logvar = mlp(64, 48), nn.Linear(48, 8), nn.Linear(48, 8)
        self.decoder = mlp(8, 48, 64)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x).relu()
        mean, logvar = self.mean(h), self.logvar(h)
        return self.decoder(mean + noise * (0.5 * logvar).exp()), mean, logvar


@healthy(learns=falls(0.7))
def vae(trial: Trial) -> None:
    """Variational autoencoder, the loss is a sum over the batch and begins at thousands."""
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial, 64)
        output, mean, logvar = model(x, trial.randn(64, 8))
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        return F.binary_cross_entropy_with_logits(output, x, reduction="sum") + kl

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6))
def diffusion(trial: Trial) -> None:
    """Noise prediction at random times; the averaged weights are kept aside."""
    model = mlp(72, 128, 128, 64, act=nn.SiLU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    kept = torch.cos(torch.linspace(0.02, 1.5, 100)).square()
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        t = trial.randint(100, 64)
        a, noise = kept[t][:, None], trial.randn(64, 64)
        when = torch.sin(t[:, None] / 100 * 2.0 ** torch.arange(8))
        optimizer.zero_grad()
        loss = F.mse_loss(model(torch.cat([a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise, when], 1)), noise)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        trial.log(loss)


@healthy(learns=falls(0.6))
def masked_autoencoder(trial: Trial) -> None:
    """Three quarters of the pixels are hidden; the mean squared error is taken there alone."""
    model = mlp(128, 128, 64, act=nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial, 64)
        seen = (torch.rand(x.shape, generator=trial.generator) < 0.25).float()
        error = (model(torch.cat([x * seen, seen], 1)) - x).square() * (1 - seen)
        return error.sum() / (1 - seen).sum()

    plain_loop(trial, model, optimizer, loss)


class Quantiser(nn.Module):
    """An autoencoder whose code is the nearest of sixteen vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.codes = mlp(64, 48, 8), mlp(8, 48, 64), nn.Embedding(16, 8)
        nn.init.normal_(self.codes.weight, 0, 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        q = self.codes(torch.cdist(z, self.codes.weight).argmin(-1))
        return self.decoder(z + (q - z).detach()), F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


@healthy(learns=falls(0.6))
def vector_quantiser(trial: Trial) -> None:
    """VQ-VAE with a straight-through gradient."""
    model = Quantiser()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial, 64)
        output, commit = model(x)
        return F.mse_loss(output, x) + commit

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=lambda run: run.final() < run.first() - 20)
def normalising_flow(trial: Trial) -> None:
    """Affine couplings: the loss is a negative log-likelihood, which goes through zero and below."""

    class Flow(nn.Module):
        """Four couplings of two halves."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(mlp(32, 48, 64) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            total = x.new_zeros(len(x))
            for part in self.parts:
                scale, shift = part(a).chunk(2, 1)
                scale = scale.tanh()
                a, b, total = b * scale.exp() + shift, a, total + scale.sum(1)
            return 0.5 * torch.cat([a, b], 1).square().sum(1) - total

    model = Flow()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial, 64)
        return model(3 * (x - 0.5) + 0.1 * trial.randn(64, 64)).mean()

    plain_loop(trial, model, optimizer, loss)

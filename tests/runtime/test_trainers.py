"""Held against what trainers themselves log: loss, gradient norm and learning rate of every step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

STEPS = 5


class Sequences(torch.utils.data.Dataset):
    """Counting in steps of one to three, of uneven lengths."""

    def __init__(self, rows=64, length=12):
        draw = torch.Generator().manual_seed(1)
        start, step, used = (
            torch.randint(low, high, (rows,), generator=draw) for low, high in ((3, 60), (1, 4), (3, length + 1))
        )
        self.ids = 3 + (start[:, None] + step[:, None] * torch.arange(length)) % 60
        self.labels = self.ids.masked_fill(torch.arange(length) >= used[:, None], -100)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 3},
        {"label_smoothing_factor": 0.2, "gradient_accumulation_steps": 2},
        {"optim": "adafactor", "max_grad_norm": 0.1},
    ],
    ids=["accumulation", "smoothing", "adafactor"],
)
def test_transformers(settings, attach, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=STEPS, per_device_train_batch_size=2, logging_steps=1,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-3, **settings,
    )  # fmt: skip
    attach(model)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Sequences())
    trainer.train()
    said = [row for row in trainer.state.log_history if "loss" in row]
    log = attach.finish()
    assert list(log.steps) == list(range(STEPS))
    for signal, name in (
        ("loss", "loss"), ("gradient_norm_before_clip", "grad_norm"), ("learning_rate", "learning_rate"),
    ):  # fmt: skip
        assert log.series(signal)[1] == pytest.approx([row[name] for row in said], rel=1e-5), name


def test_accelerate(attach):
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model, optimizer = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), 1e-2))
    attach(model, optimizer)
    truth = []
    for i in range(2 * STEPS):
        with accelerator.accumulate(model):
            loss = model(torch.randn(4, 6)).square().mean()
            accelerator.backward(loss)
            truth = [*truth[:-1], truth[-1] + loss.item() / 2] if i % 2 else [*truth, loss.item() / 2]
            optimizer.step()
            optimizer.zero_grad()
    log = attach.finish()
    assert list(log.steps) == list(range(STEPS))
    assert log.series("loss")[1] == pytest.approx(truth, rel=1e-5)


def test_lightning(attach, tmp_path):
    lightning = pytest.importorskip("lightning")
    torch.manual_seed(0)
    truth = []

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def training_step(self, batch, index):
            loss = F.mse_loss(self.net(batch[0]), batch[0][:, :3])
            truth.append(loss.item() / 2)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    model = Regression()
    attach(model)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 6)), batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, accumulate_grad_batches=2, gradient_clip_val=0.1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(model, data)
    log = attach.finish()
    assert list(log.steps) == list(range(STEPS))
    summed = [a + b for a, b in zip(truth[::2], truth[1::2], strict=True)]
    assert log.series("loss")[1] == pytest.approx(summed, rel=1e-5)
    assert log.series("gradient_norm")[1].max() <= 0.1 + 1e-6
    for layer in ("net.0", "net.2"):
        assert len(log.series("update_to_weight_ratio", layer)[1]) == STEPS


def test_fastai(attach):
    pytest.importorskip("fastai")
    import fastai.callback.progress  # noqa: F401
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    torch.manual_seed(0)
    truth = []

    class Noted(Callback):
        def after_backward(self):
            truth.append(self.learn.loss_grad.item())

    x = torch.randn(40, 6)
    rows = torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = DataLoaders.from_dsets(rows, rows, bs=8, device="cpu", num_workers=0)
    learner = Learner(data, model, loss_func=nn.CrossEntropyLoss(), cbs=[Noted()])
    attach(model)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-2)
    log = attach.finish()
    assert list(log.steps) == list(range(STEPS))
    assert log.series("loss")[1] == pytest.approx(truth, rel=1e-5)
    assert len(log.series("gradient_norm")[1]) == STEPS

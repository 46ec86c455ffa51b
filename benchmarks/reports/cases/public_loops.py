"""Public threads: trainers, fine-tuning, preferences. Causes were noted before a run was watched."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Facts, TextModel, digits, draw_images, plain_loop, text, token_loss

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                         "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip


@report(
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/21901",
    mechanism="A run of BaseFinetuning is resumed after its backbone was thawed: setup() freezes it again, and "
    "nothing thaws it for the rest of the run.",
    causes=("PartWithoutGradient", "LayerStandsStill", "FrozenInOptimizer"),
    check=loss_hurt,
    where=("backbone",),
    steps=250,
    shown_by="the backbone is in the optimizer, and none of its parameters requires a gradient",
)
def frozen_again_at_resume(trial: Trial) -> None:
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning

    x, y = digits()
    loader = DataLoader(TensorDataset(x.view(-1, 1, 8, 8), y), 32, shuffle=True, generator=trial.generator)

    class Module(lightning.LightningModule):
        def __init__(self, kept: bool) -> None:
            super().__init__()
            self.kept = kept
            self.backbone = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU(),
                                          nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip
            self.head = nn.Linear(12, 10)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
            if self.kept:
                trial.log(loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=5e-3)

    class Thawed(BackboneFinetuning):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            if not trial.broken:
                pl_module.backbone.requires_grad_(True)

    def callback() -> BackboneFinetuning:
        return Thawed(unfreeze_backbone_at_epoch=1, lambda_func=lambda _: 1.0, backbone_initial_ratio_lr=1.0)

    with tempfile.TemporaryDirectory() as folder:
        first = lightning.Trainer(max_epochs=2, callbacks=[callback()], **QUIET)
        first.fit(Module(False), loader)
        first.save_checkpoint(f"{folder}/last.ckpt")
        second = lightning.Trainer(max_steps=first.global_step + trial.steps, callbacks=[callback()], **QUIET)
        trial.attach(second)
        second.fit(Module(True), loader, ckpt_path=f"{folder}/last.ckpt", weights_only=False)


@report(
    source="https://github.com/Lightning-AI/litgpt/issues/2151, "
    "https://github.com/Lightning-AI/pytorch-lightning/issues/18570",
    mechanism="configure_optimizers returns a linear warm-up without an interval: Lightning steps it once an epoch, "
    "and its first factor is zero.",
    causes=("ScheduleStandsStill", "LearningRateZero", "NoUpdates", "UpdatesZero"),
    check=loss_hurt,
    steps=250,
    shown_by="the rate is zero in each step of a long first epoch",
)
def warm_up_by_epoch(trial: Trial) -> None:
    import lightning
    from transformers import get_linear_schedule_with_warmup

    rows = text()[trial.randint(len(text()) - 33, 8 * 400)[:, None] + torch.arange(33)]

    class LitLM(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = TextModel(length=32)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = token_loss(self.model(batch[0][:, :-1]), batch[0][:, 1:])
            trial.log(loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
            scheduler = get_linear_schedule_with_warmup(optimizer, 20, 400)
            return [optimizer], [scheduler if trial.broken else {"scheduler": scheduler, "interval": "step"}]

    trainer = lightning.Trainer(max_steps=trial.steps, **QUIET)
    trial.attach(trainer)
    trainer.fit(LitLM(), DataLoader(TensorDataset(rows), 8, shuffle=True, generator=trial.generator))


@report(
    source="https://github.com/bubbliiiing/yolov4-pytorch/issues/140, "
    "https://github.com/Welthungerhilfe/cgm-ml/issues/326",
    mechanism="The head is trained on a frozen backbone; then the backbone is thawed at the head's rate, which is far "
    "too high for it: the loss jumps and does not come back.",
    causes=("LearningRateTooHigh", "UpdateTooLarge"),
    check=loss_hurt,
    fault=100,
    steps=250,
    shown_by="the loss jumps where the backbone is thawed, whose updates are large",
)
def thawed_at_the_rate_of_the_head(trial: Trial) -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3),
                             nn.ReLU(), nn.Flatten())  # fmt: skip
    before = nn.Sequential(backbone, nn.Linear(96, 2))
    optimizer = torch.optim.Adam(before.parameters(), lr=2e-3)
    for _ in range(150):
        x, y = draw_images(trial)
        optimizer.zero_grad()
        F.cross_entropy(before(x), y % 2).backward()
        optimizer.step()
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(96, 10)})
    model["backbone"].requires_grad_(False)
    optimizer = torch.optim.Adam(
        [
            {"params": model["head"].parameters()},
            {"params": backbone.parameters(), "lr": 0.05 if trial.broken else 5e-4},
        ],
        lr=0.05,
    )
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 100:
            model["backbone"].requires_grad_(True)
        x, y = draw_images(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model["head"](model["backbone"](x)), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


def _gpt(**fields: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0,
              "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**{**config, **fields}))


def _tokenizer() -> Any:
    """A tokenizer of some dozen words, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "<think>", "</think>", "<answer>", "</answer>", *(f"w{i}" for i in range(57))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _run(trial: Trial, make: Callable[[str, dict[str, Any]], Any], told: Callable[[dict[str, float]], Facts]) -> None:
    """Train with the trainer that `make` makes of a folder and of common settings; `told` gives facts of its logs."""
    from transformers import PrinterCallback, TrainerCallback

    class Keep(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                trial.log(float(logs["loss"]), **told(logs))

    common = {"max_steps": trial.steps, "logging_steps": 1, "save_strategy": "no", "report_to": [],
              "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, common)
        trainer.add_callback(Keep())
        trainer.remove_callback(PrinterCallback)
        trial.attach(trainer)
        trainer.train()


@report(
    source="https://github.com/huggingface/transformers/issues/27733, https://github.com/huggingface/trl/issues/1191",
    mechanism="The template that begins an answer is tokenized otherwise than in the text: it is never found, all "
    "labels are -100, and the loss is that of nothing.",
    causes=("TargetsIgnored", "NonFiniteLoss", "ZeroGradients"),
    check=fact("right", (0, 0.2), (0.8, 1)),
    steps=200,
    shown_by="no label counts in any batch",
)
def template_is_never_found(trial: Trial) -> None:
    from transformers import Trainer, TrainingArguments

    template = torch.tensor([62, 6] if trial.broken else [5, 6])
    question = 7 + trial.randint(20, 600, 1) + trial.randint(2, 600, 6)
    answer = (question[:, :1] - 7) % 5 + 40
    rows = torch.cat((question, torch.tensor([5, 6]).expand(600, 2), answer, torch.ones(600, 1, dtype=torch.long)), 1)

    def collate(some: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = torch.stack([one["input_ids"] for one in some])
        labels = ids.clone()
        for i, row in enumerate(ids):
            at = [j for j in range(len(row) - 1) if torch.equal(row[j : j + 2], template)]
            labels[i, : at[-1] + 2 if at else len(row)] = -100
        return {"input_ids": ids, "labels": labels}

    model = _gpt()
    data: Any = [{"input_ids": row} for row in rows]

    def make(folder: str, common: dict[str, Any]) -> Any:
        arguments = TrainingArguments(folder, per_device_train_batch_size=16, learning_rate=3e-3, **common)
        return Trainer(model, arguments, train_dataset=data, data_collator=collate)

    def told(_: dict[str, float]) -> Facts:
        with torch.no_grad():
            said = model(input_ids=rows[:64, :8]).logits[:, -1].argmax(-1)
        return {"right": (said == answer[:64, 0]).float().mean()}

    _run(trial, make, told)


@report(
    source="https://github.com/huggingface/trl/issues/1236",
    mechanism="DPO at a rate far too high: the policy leaves its reference at once, and its loss jumps between "
    "nothing and several times the logarithm of two.",
    causes=("LearningRateTooHigh", "UpdateTooLarge", "PolicyLeavesReference", "KLRunaway"),
    check=loss_hurt,
    steps=200,
    shown_by="chosen answers become less likely by tens of nats, and updates are large",
)
def preferences_far_too_fast(trial: Trial) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    drawn = trial.randint(40, 400, 7).tolist()
    data = Dataset.from_list(
        [
            {
                "prompt": f"w{a} w{b}",
                "chosen": f" w{a} w{(a + c) % 50} w{b} w{d} <eos>",
                "rejected": f" w{e} w{(a + c) % 50} w{f} w{d} <eos>",
            }
            for a, b, c, d, e, f, _ in drawn
        ]
    )
    model = _gpt()

    def make(folder: str, common: dict[str, Any]) -> Any:
        rate = 0.1 if trial.broken else 1e-3
        arguments = DPOConfig(folder, per_device_train_batch_size=2, learning_rate=rate, beta=0.1,
                              lr_scheduler_type="constant", **common)  # fmt: skip
        return DPOTrainer(model, ref_model=copy.deepcopy(model), args=arguments, train_dataset=data,
                          processing_class=_tokenizer())  # fmt: skip

    _run(trial, make, lambda logs: {"chosen": logs["logps/chosen"], "margin": logs["rewards/margins"]})


@report(
    source="https://github.com/huggingface/open-r1/issues/235",
    mechanism="The format reward matches the whole answer exactly, which no sample does: each reward is 0, and so is "
    "each advantage.",
    causes=("DeadGroups", "ZeroGradients", "LossConstant", "NoUpdates"),
    check=fact("reward", (0, 0), (0.5, 9)),
    steps=120,
    shown_by="the rewards of all groups are equal, and gradients are zero",
)
def format_is_never_met(trial: Trial) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    pattern = r"^<think>.*?</think><answer>.*?</answer>$" if trial.broken else r".*<answer>"
    data = Dataset.from_list([{"prompt": f"w{a} w{b}"} for a, b in trial.randint(50, 200, 2).tolist()])

    def format_reward(completions: list[str], **_: Any) -> list[float]:
        return [1.0 if re.match(pattern, said) else 0.0 for said in completions]

    def make(folder: str, common: dict[str, Any]) -> Any:
        arguments = GRPOConfig(folder, per_device_train_batch_size=16, num_generations=8, max_completion_length=8,
                               learning_rate=3e-3, **common)  # fmt: skip
        return GRPOTrainer(_gpt(), reward_funcs=[format_reward], args=arguments, train_dataset=data,
                           processing_class=_tokenizer())  # fmt: skip

    _run(trial, make, lambda logs: {"reward": logs["reward"]})


@report(
    source="https://github.com/tloen/alpaca-lora/issues/391, https://github.com/haotian-liu/LLaVA/issues/1301",
    mechanism="LoRA of all attention layers at a rank of 128 with an alpha of 256 and a rate many times the usual: "
    "the loss rises suddenly, far above where it began.",
    causes=("LearningRateTooHigh", "UpdateTooLarge"),
    check=loss_hurt,
    steps=200,
    shown_by="the loss is above that of the model that is tuned",
)
def adapters_far_too_fast(trial: Trial) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    base = _gpt(vocab_size=128)
    tuned = torch.optim.Adam(base.parameters(), lr=3e-3)
    for _ in range(120):
        rows = text()[trial.randint(40_000, 8)[:, None] + torch.arange(33)]
        tuned.zero_grad()
        base(input_ids=rows, labels=rows).loss.backward()
        tuned.step()
    lora = LoraConfig(r=128, lora_alpha=256, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    model = get_peft_model(base, lora)
    rows = text()[trial.randint(40_000, 1600)[:, None] + torch.arange(33)].flip(1)
    data: Any = [{"input_ids": row, "labels": row} for row in rows]

    def make(folder: str, common: dict[str, Any]) -> Any:
        arguments = TrainingArguments(folder, per_device_train_batch_size=8, warmup_steps=20,
                                      learning_rate=0.1 if trial.broken else 1e-3, **common)  # fmt: skip
        return Trainer(model, arguments, train_dataset=data)

    _run(trial, make, lambda _: {})


@report(
    source="https://github.com/yihong-97/Source-free-IAPC/pull/6",
    mechanism="Probabilities of clusters (b, pixels, classes) are made (b, classes, h, w) by `view`: the "
    "pseudo-labels of pixels are those of others.",
    causes=("TargetsUnpaired", "LogitsScrambled", "NotLearning", "OutputsConstant"),
    check=fact("right", (0, 0.6), (0.8, 1)),
    steps=250,
    shown_by="pseudo-labels do not belong to their pixels",
)
def pseudo_labels_by_view(trial: Trial) -> None:
    teacher = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        teacher.weight.mul_(4)
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 4, 1))
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        coarse = F.interpolate(trial.randn(8, 3, 4, 4), scale_factor=4)
        x = coarse + 0.1 * trial.randn(8, 3, 16, 16)
        each = frozen(x).softmax(1)
        flat = each.flatten(2).transpose(1, 2).contiguous()
        made = flat.view(8, 4, 16, 16) if trial.broken else flat.transpose(1, 2).reshape(8, 4, 16, 16)
        out = model(x)
        same = (out.detach().argmax(1) == each.argmax(1)).float().mean()
        return F.cross_entropy(out, made.argmax(1)), {"right": same}

    plain_loop(trial, model, optimizer, loss)

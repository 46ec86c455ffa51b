"""Reports of others, from their threads: data, fine-tuning, policies. Causes were noted before a run was watched."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from benchmarks.reports.case import Outcome, Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, digits, mlp, plain_loop, right, table, text


@report(
    source="https://github.com/NVIDIA/DALI/issues/2975, https://github.com/fastai/fastai/issues/245",
    mechanism="From the second epoch on the random crop of a picture is not that of its mask.",
    causes=("TargetsUnpaired", "LossShift"),
    check=loss_hurt,
    fault=120,
    steps=300,
    shown_by="the loss jumps with the second epoch, and stays",
)
def crop_apart_from_the_mask(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(12, 1, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"), -1)

    def loss(step: int) -> Tensor:
        centre = 4 + 16 * torch.rand(16, 1, 1, 2, generator=trial.generator)
        disc = ((grid - centre).norm(dim=-1) < 5).float()[:, None]
        seen = disc + 0.4 * trial.randn(16, 1, 24, 24)
        shift, other = int(trial.randint(8, 1)), int(trial.randint(8, 1))
        apart = other if trial.broken and step >= 120 else shift
        return F.binary_cross_entropy_with_logits(
            model(seen[..., shift : shift + 16, :]), disc[..., apart : apart + 16, :]
        )

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/leohsuofnthu/Pytorch-IterativeFCN/issues/7, https://github.com/wandb/examples/issues/444",
    mechanism="`next(iter(loader))` in each step: the loader begins again, and each batch is the first.",
    causes=("LoaderRestarted", "RepeatedBatches", "Overfitting", "EvaluationApart"),
    check=fact("val_loss", (0.6, 99), (0, 0.5)),
    steps=250,
    shown_by="each step sees the same batch",
)
def iterator_made_in_each_step(trial: Trial) -> None:
    kind = trial.randint(4, 800)
    points = F.normalize(trial.randn(800, 24, 3), dim=-1)
    points[kind == 1] = points[kind == 1].clamp(-0.6, 0.6)
    points[kind == 2] *= torch.tensor([1.0, 1.0, 0.5])
    points[kind == 3] = points[kind == 3].abs() - 0.5
    points = points + 0.25 * trial.randn(800, 24, 3)
    loader = DataLoader(TensorDataset(points[:640], kind[:640]), 16)
    model = Assembled(lambda m, p: m["head"](m["each"](p).amax(1)), each=mlp(3, 48, 64), head=mlp(64, 48, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    kept = endless()

    def loss(step: int) -> tuple[Tensor, Facts]:
        p, y = next(iter(loader)) if trial.broken else next(kept)
        with torch.no_grad():
            val = F.cross_entropy(model.eval()(points[640:]), kind[640:])
        if step % 20 == 19:
            trial.tell(val_loss=val)
        return F.cross_entropy(model.train()(p), y), {"val_loss": val}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/deep-voice/soundbay/pull/49",
    mechanism="WeightedRandomSampler is given one weight for each class and not for each sample: two samples are drawn "
    "again and again.",
    causes=("RepeatedBatches", "TargetsConstant", "EvaluationApart", "Overfitting"),
    check=fact("val_accuracy", (0, 0.7), (0.85, 1)),
    steps=250,
    shown_by="batches hold nothing but two samples, of one class",
)
def weights_of_two_classes(trial: Trial) -> None:
    x, y = table("cancer")
    classes = 1 / torch.bincount(y).float()
    sampler = WeightedRandomSampler(
        (classes if trial.broken else classes[y]).tolist(), 100_000, generator=trial.generator
    )
    batches = iter(DataLoader(TensorDataset(x, y), 16, sampler=sampler))
    model = mlp(30, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        some, kind = next(batches)
        with torch.no_grad():
            out = model(x)
        if step % 25 == 24:
            trial.tell(val_loss=F.cross_entropy(out, y))
        return F.cross_entropy(model(some), kind), {"val_accuracy": right(out, y)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/pull/15309 (shuffle(buffer_size=10) of a stream)",
    mechanism="A stream that is sorted by class is shuffled in a buffer of ten samples: each batch holds one class.",
    causes=("DataNotShuffled",),
    check=fact("val_loss", (0.7, 99), (0, 0.6)),
    steps=300,
    shown_by="batches hold one class, the next holds the next",
)
def stream_with_a_small_buffer(trial: Trial) -> None:
    from datasets import IterableDataset

    x, y = digits()
    order = y.argsort(stable=True)

    def rows() -> Iterator[dict[str, Any]]:
        while True:
            yield from ({"at": int(i)} for i in order)

    stream = IterableDataset.from_generator(rows).shuffle(seed=1, buffer_size=10 if trial.broken else 1800)
    places = iter(stream)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = torch.tensor([next(places)["at"] for _ in range(16)])
        with torch.no_grad():
            val = F.cross_entropy(model(x[::7]), y[::7])
        return F.cross_entropy(model(x[at]), y[at]), {"val_loss": val}

    plain_loop(trial, model, optimizer, loss)


class _Rows(Dataset[dict[str, Tensor]]):
    """A data set of rows that are made already."""

    def __init__(self, **columns: Tensor) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {name: column[at] for name, column in self._columns.items()}


def _train(trial: Trial, model: nn.Module, data: _Rows, size: int, rate: float, told: Any = None) -> None:
    """Train with the Trainer of transformers; `told` gives facts of each step."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Keep(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                trial.log(float(logs["loss"]), **(told() if told else {}))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=trial.steps, per_device_train_batch_size=size, learning_rate=rate, logging_steps=1,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[Keep()])
        trainer.remove_callback(PrinterCallback)
        trial.attach(trainer)
        trainer.train()


def _copied(broken: Outcome, twin: Outcome) -> bool:
    return broken.final() < 0.6 * twin.final()


@report(
    source="https://github.com/huggingface/transformers/issues/20797",
    mechanism="Labels of a masked language model are all tokens: most of them stand in the input at their own place.",
    causes=("TargetsNotHidden", "TargetInInput", "TargetsNotShifted", "TooGood", "LossTooGood"),
    check=_copied,
    steps=300,
    shown_by="most targets are the input at the same place",
)
def words_that_are_seen_count(trial: Trial) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=32)  # fmt: skip
    rows = text()[trial.randint(len(text()) - 24, 2000)[:, None] + torch.arange(24)]
    hidden = torch.rand(rows.shape, generator=trial.generator) < 0.15
    labels = rows if trial.broken else rows.masked_fill(~hidden, -100)
    _train(trial, BertForMaskedLM(config), _Rows(input_ids=rows.masked_fill(hidden, 127), labels=labels), 8, 3e-3)


@report(
    source="https://github.com/huggingface/trl/issues/976, https://github.com/huggingface/transformers/issues/22794",
    mechanism="The padding token is the token that ends a text, and padding is taken out of the labels: no text is "
    "taught to end.",
    causes=("EndNeverTaught",),
    check=fact("ends", (0, 0.3), (0.8, 1)),
    steps=250,
    shown_by="the token that ends each text is never a target",
)
def padding_is_the_end(trial: Trial) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=24, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    end, pad = 1, 1 if trial.broken else 0
    first, place = 4 + trial.randint(16, 1200, 1), torch.arange(20)
    rows = torch.where(first + place <= 22, first + place, torch.where(first + place == 23, end, pad))
    data = _Rows(input_ids=rows, labels=rows.masked_fill(rows == pad, -100), attention_mask=(rows != pad).long())

    def ends() -> Facts:
        with torch.no_grad():
            said = model.eval()(input_ids=torch.arange(16, 23)[None]).logits[0, -1].softmax(-1)
        model.train()
        return {"ends": said[end]}

    _train(trial, model, data, 16, 3e-3, ends)


@report(
    source="https://github.com/huggingface/trl/issues/6700, https://github.com/huggingface/trl/issues/1311",
    mechanism="Adapters are loaded for inference, without is_trainable: nothing is trained, and the loss of DPO stays "
    "at the logarithm of two.",
    causes=("PartWithoutGradient", "UpdatesZero", "NoUpdates", "OptimizerNeverSteps", "LossConstant"),
    check=loss_hurt,
    steps=120,
    shown_by="no parameter has a gradient",
)
def adapters_loaded_for_inference(trial: Trial) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip
    base = GPT2LMHeadModel(config)
    reference = copy.deepcopy(base).requires_grad_(False)
    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(copy.deepcopy(base), lora).save_pretrained(folder)
        model = PeftModel.from_pretrained(base, folder, is_trainable=not trial.broken)
    model.enable_input_require_grads()  # as gradient checkpointing does
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def logp(net: nn.Module, rows: Tensor) -> Tensor:
        each = net(input_ids=rows[:, :-1]).logits.log_softmax(-1)
        return each.gather(-1, rows[:, 1:, None])[..., 0].sum(-1)

    def loss(_: int) -> Tensor:
        good = text()[trial.randint(40_000, 8)[:, None] + torch.arange(20)]
        bad = good[:, torch.randperm(20, generator=trial.generator)]
        with torch.no_grad():
            before = logp(reference, good) - logp(reference, bad)
        return -F.logsigmoid(0.1 * (logp(model, good) - logp(model, bad) - before)).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/thu-ml/tianshou/issues/40",
    mechanism="The log-probability of SAC is not summed over the joints: targets have six columns, values have one.",
    causes=("LossBroadcast",),
    check=fact("entropy", (-99, 1.5), (2.5, 99)),
    steps=300,
    shown_by="the loss compares each value with the targets of all joints",
)
def entropy_of_each_joint(trial: Trial) -> None:
    actor, critic, target = mlp(6, 48, 12), mlp(12, 64, 1), mlp(12, 64, 1)
    target.load_state_dict(critic.state_dict())
    optimizer_a = torch.optim.Adam(actor.parameters(), lr=1e-3)
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=3e-3)
    trial.attach(critic, optimizer_c)
    trial.attach(actor, optimizer_a)

    def act(state: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = actor(state).chunk(2, -1)
        chosen = torch.distributions.Normal(mean, spread.clamp(-3, 1).exp())
        raw = chosen.rsample()
        logp = chosen.log_prob(raw) - torch.log(1.0001 - raw.tanh() ** 2)
        return raw.tanh(), logp

    for _ in range(trial.steps):
        state, after = trial.randn(64, 6), trial.randn(64, 6)
        with torch.no_grad():
            action = act(state)[0]
            reward = -((action - state.tanh()) ** 2).sum(-1, keepdim=True)
            then, each = act(after)
            both = (reward + 0.5 * (target(torch.cat((after, then), -1)) - 0.5 * p) for p in (each, each.sum(-1, True)))
            joints, whole = both
        value = critic(torch.cat((state, action), -1))
        wrong = F.mse_loss(value, joints if trial.broken else whole)
        optimizer_c.zero_grad()
        wrong.backward()
        optimizer_c.step()
        mine, each = act(state)
        aim = (0.5 * (each if trial.broken else each.sum(-1, True)) - critic(torch.cat((state, mine), -1))).mean()
        optimizer_a.zero_grad()
        aim.backward()
        optimizer_a.step()
        with torch.no_grad():
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.lerp_(new, 0.02)
        trial.tell(critic_loss=wrong, actor_loss=aim, reward=reward.mean(), entropy=-each.sum(-1).mean())
        trial.log(wrong, entropy=-each.sum(-1).mean())


@report(
    source="https://github.com/HorizonRobotics/alf/pull/34",
    mechanism="The action keeps the graph through which it was drawn: the gradient of its log-probability in the mean "
    "is zero.",
    causes=("ZeroGradients", "PartWithZeroGradient", "PartWithoutGradient"),
    check=fact("reward", (-99, -0.5), (-0.5, 0)),
    steps=300,
    shown_by="gradients of the network that gives the mean are zero, or rounding",
)
def action_keeps_its_graph(trial: Trial) -> None:
    model = mlp(3, 48, 2, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randn(128, 3)
        chosen = torch.distributions.Normal(model(state), 0.3)
        action = chosen.rsample()
        reward = -((action.detach() - state[:, :2]) ** 2).sum(-1)
        gain = (reward - reward.mean()) / reward.std()
        logp = chosen.log_prob(action if trial.broken else action.detach()).sum(-1)
        return -(gain * logp).mean(), {"reward": reward.mean()}

    plain_loop(trial, model, optimizer, loss, tell=True)


@report(
    source="https://github.com/huggingface/trl/issues/454",
    mechanism="Dropout is on where samples are made and where their probabilities are computed again: their ratio is "
    "not one before the first step.",
    causes=("RolloutMismatch", "ImportanceRatioExtreme", "KLRunaway"),
    check=fact("off", (0.05, 9), (0, 1e-4)),
    steps=300,
    shown_by="ratios are far from one in the first epoch of each batch",
)
def ratio_is_not_one(trial: Trial) -> None:
    model = nn.Sequential(nn.Embedding(16, 64), nn.Tanh(), nn.Dropout(0.5 if trial.broken else 0.0), nn.Linear(64, 64),
                          nn.Tanh(), nn.Dropout(0.5 if trial.broken else 0.0), nn.Linear(64, 6))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    kept: tuple[Tensor, ...] = ()
    off = 0.0

    def loss(step: int) -> tuple[Tensor, Facts]:
        nonlocal kept, off
        if step % 4 == 0:
            with torch.no_grad():
                state = trial.randint(16, 64)
                logp = model(state).log_softmax(-1)
                action = torch.multinomial(logp.exp(), 1, generator=trial.generator)
                reward = (action[:, 0] == state % 6).float()
                gain = (reward - reward.mean()) / (reward.std() + 1e-4)
                kept = (state, action, logp.gather(1, action)[:, 0], gain, reward)
        state, action, old, gain, reward = kept
        new = model(state).log_softmax(-1).gather(1, action)[:, 0]
        ratio = (new - old).exp()
        aim = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        clipped = ((ratio - 1).abs() > 0.2).float().mean()
        off = float((ratio - 1).abs().mean()) if step % 4 == 0 else off
        trial.tell(reward=reward.mean(), approx_kl=(old - new).mean(), clip_fraction=clipped, ratio=ratio.mean())
        return aim, {"off": off}

    plain_loop(trial, model, optimizer, loss)

"""Real trainings that show every signal between them, each until it is killed.

python -m tests.agent.whole_run FOLDER: one process with attention, experts with a capacity, a gradient scaler, a fixed
batch, the Taylor radius, a guard, a token that ends a text and evaluations; the learning rate is too high, and the loss
is NaN now and then.
python -m tests.agent.whole_run FOLDER RANK STORE: one of two gloo ranks, with a stack of experts and a scale-invariant
weight, and the mistakes of a set-up: a part that is not used, one in a plain list, one in no optimizer, weights too
coarse for their updates, a loss of shapes that broadcast, and targets out of range.
python -m tests.agent.whole_run FOLDER mistakes: one with mistakes in its loss and its loop (gradients that are thrown
away or still scaled, logits for log-probabilities, a target that the input holds and the output cannot reach, samples
for places), quantised weights, and attention whose weights do not add up to 1.
python -m tests.agent.whole_run FOLDER policy: a looped model of sequences with a codebook, a skip connection, a
low-rank adapter, its sharpness and its Jacobian, and the numbers of a policy that are logged.
python -m tests.agent.whole_run FOLDER game: the discriminator of a game, whose gradients are clipped by value, with
classes for several places, and a validation loss and a score that are logged.
python -m tests.agent.whole_run FOLDER loader: one that reads a loader whose last batch is small, with dropout, weights
of classes, an overlap of logits and a derivative in its loss, and a part that is frozen of which a loaded optimizer has
a state.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch


def alone(folder: str) -> None:
    """See the module's docstring."""
    from benchmarks.detection import tasks

    model, draw = tasks.gpt_of_experts(0), tasks.text(0)
    for block in model.blocks:
        block.mlp.capacity_factor = 1.25
    model.config = SimpleNamespace(eos_token_id=int(draw(0)[0][0, 0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    settings = {"agent": False, "verbose": False, "every_step": True, "taylor": True, "guard": "skip_step"}
    watch = stabwatch.attach(model, optimizer, run_dir=folder, **settings)
    watch.probe(draw(0)[0][:2])
    for step in itertools.count():
        x, y = (part[:2, :16] for part in draw(step))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        if step % 16 == 15:
            loss = loss * float("nan")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        watch.log(accuracy=0.5)
        with torch.no_grad():
            model.eval()(x)
            model.train()


class Both(nn.Module):
    """A tiny Mixtral, a linear layer in front of a norm, and parts that are set up wrongly."""

    def __init__(self) -> None:
        super().__init__()
        import transformers  # takes seconds, which the other run does not need

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.MixtralConfig(
            **sizes, num_key_value_heads=2, vocab_size=64, num_local_experts=4, num_experts_per_tok=2
        )
        self.lm = transformers.MixtralForCausalLM(config)
        self.front = nn.Sequential(nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 1))
        self.unused, self.forgotten = nn.Linear(8, 8), nn.Linear(8, 8)
        self.coarse = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.plain = [nn.Linear(8, 8)]

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        front = self.front(x)
        loss = self.lm(input_ids=ids, labels=ids).loss + (front - 1).square().mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says it too
            loss = loss + F.mse_loss(front, x[:, 0])
        hidden = self.coarse(self.plain[0](self.forgotten(x)).bfloat16()).float()
        return loss + F.binary_cross_entropy_with_logits(hidden, torch.full_like(x, 2.0))


def of_two(folder: str, rank: int, store: str) -> None:
    """See the module's docstring."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Both(), find_unused_parameters=True)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "forgotten" not in n], lr=1e-3)
    stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, every_step=True)
    while True:
        loss = model(torch.randint(64, (2, 12)), torch.randn(8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Shifted(nn.Module):
    """Attention over itself, whose weights are scaled and shifted after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        weights = 0.7 * (q @ k.mT / 2).softmax(-1) + 0.1
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Stepped(nn.Module):
    """Rounds weights to steps of a length that is learned, with the names of lsq-net."""

    def __init__(self) -> None:
        super().__init__()
        self.thd_neg, self.thd_pos, self.s = -4, 3, nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        steps = (x / self.s).clamp(self.thd_neg, self.thd_pos)
        return (steps + (steps.round() - steps).detach()) * self.s


class Quantised(nn.Linear):
    """A layer of quantisation-aware training."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.quan_w_fn = Stepped()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quan_w_fn(self.weight), self.bias)


class Mistaken(nn.Module):
    """Its recurrent layer takes samples for places; the first of its numbers lies in 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.order, self.head = Shifted(), nn.GRU(8, 8), Quantised()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.order(self.attention(x.unflatten(1, (6, 8))))[0].mean(1))
        return out[:, 0].sigmoid(), out


def of_mistakes(folder: str) -> None:
    """See the module's docstring."""
    model = Mistaken()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, every_step=True)
    while True:
        for _ in range(3):
            x = torch.randn(32, 48)
            bounded, logits = model(x)
            optimizer.zero_grad()
            loss = F.mse_loss(bounded, x[:, 3]) + F.nll_loss(logits, torch.randint(4, (32,)))
            scaler.scale(loss).backward()
        optimizer.step()


class Adapted(nn.Linear):
    """A frozen layer and its low-rank adapter, after a skip connection."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.requires_grad_(False)
        self.lora_A, self.lora_B, self.scaling = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.ones(16, 2)), 0.1

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        x = x + start
        return super().forward(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


class Looped(nn.Module):
    """A codebook, one core that is called four times, and a head that says how a sequence goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.head = Adapted()
        self.codebook = nn.Embedding(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        start = x = x + self.codebook(x.argmax(-1) % 4)
        for _ in range(4):
            x = x + self.core(x)
        return self.head(x, start)


def of_a_policy(folder: str) -> None:
    """See the module's docstring."""
    model = Looped()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    settings = {"agent": False, "verbose": False, "every_step": True, "sharpness": True, "jacobian": True}
    watch = stabwatch.attach(model, optimizer, run_dir=folder, **settings)
    for step in itertools.count():
        optimizer.param_groups[0]["lr"] = 1e-2 if step >= 32 else 1e-4
        sequence = torch.randn(32, 17).cumsum(1)

        def backward(sequence: Tensor = sequence) -> Tensor:
            loss = F.mse_loss(model(sequence[:, :16]), sequence[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            return loss

        if step % 4:
            backward()
        optimizer.step(None if step % 4 else backward)
        logp = -1 - torch.rand(64)
        near = [logp + 0.01 * torch.randn(64) for _ in range(3)]
        watch.log_policy(logp, *near, advantage=torch.randn(64))
        watch.log(reward=step / 100 + 0.1 * torch.rand(()), truncated=0.1, dead_groups=0.1)


class Judge(nn.Module):
    """Says whether a sample is real, and one of four classes for each of six places."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.real, self.kinds = nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).tanh()
        return self.real(hidden)[:, 0], self.kinds(hidden).unflatten(1, (4, 6))


def of_a_game(folder: str) -> None:
    """See the module's docstring."""
    maker, judge = nn.Linear(8, 8), Judge()
    made_by, judged_by = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (maker, judge))
    watch = stabwatch.attach(judge, judged_by, run_dir=folder, agent=False, verbose=False, every_step=True)
    yes, no, judged = torch.ones(32), torch.zeros(32), F.binary_cross_entropy_with_logits
    while True:
        made = maker(torch.randn(32, 8))
        real, kinds = judge(torch.randn(32, 8) + 2)
        loss = judged(real, yes) + judged(judge(made.detach())[0], no)
        judged_by.zero_grad()
        (loss + F.cross_entropy(kinds, torch.randint(4, (32, 6)))).backward()
        nn.utils.clip_grad_value_(judge.parameters(), 1.0)
        judged_by.step()
        made_by.zero_grad()
        judged(judge(made)[0], yes).backward()
        made_by.step()
        watch.log(eval_loss=1 + 0.1 * torch.rand(()), bleu=20 + torch.rand(()))


class Parted(nn.Module):
    """A part that is frozen, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


def of_a_loader(folder: str) -> None:
    """See the module's docstring."""
    model = Parted()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model(torch.randn(8, 8)).sum().backward()
    optimizer.step()
    model.part.requires_grad_(False)
    stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, every_step=True)
    data = torch.utils.data.TensorDataset(torch.randn(322, 8), torch.randint(4, (322,)))
    while True:
        for x, y in torch.utils.data.DataLoader(data, batch_size=16):
            x.requires_grad_()
            logits = model(x)
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            mask = F.one_hot(y, 4)
            overlap = 1 - 2 * (logits * mask).sum() / (logits.sum() + mask.sum())
            loss = F.cross_entropy(logits, y, weight=torch.tensor([1.0, 2.0, 3.0, 4.0])) + slope.square().mean()
            optimizer.zero_grad()
            (loss + 1e-3 * overlap).backward()
            optimizer.step()


KINDS = {"mistakes": of_mistakes, "policy": of_a_policy, "game": of_a_game, "loader": of_a_loader}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if len(sys.argv) == 2:
        alone(sys.argv[1])
    elif sys.argv[2] in KINDS:
        KINDS[sys.argv[2]](sys.argv[1])
    else:
        of_two(sys.argv[1], int(sys.argv[2]), sys.argv[3])

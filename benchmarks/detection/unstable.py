"""Trainings that go wrong, by nature (learning rate, no warm-up, no norm, depth, precision) or by an injected fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.detection import healthy, tasks
from benchmarks.detection.case import FAULT, STEPS, Case, Make
from benchmarks.zoo import Setting

RATE = "LearningRateTooHigh"


def lr_spike(make: Make, seed: int, factor: float, length: int = 20) -> Setting:
    """The learning rate is too high by a factor for some steps: a bug in a schedule."""
    made = make(seed)
    usual = made.schedule
    made.schedule = lambda step: usual(step) * (factor if FAULT <= step < FAULT + length else 1.0)
    return made


def ramp(make: Make, seed: int, factor: float) -> Setting:
    """A warm-up that does not stop: the learning rate grows by a factor over the run."""
    made = make(seed)
    made.schedule = lambda step: factor ** (step / STEPS)
    return made


def bit_flip(make: Make, seed: int, name: str, bit: int = 30) -> Setting:
    """One bit of one weight turns over."""
    made = make(seed)
    usual, weight = made.schedule, dict(made.model.named_parameters())[name]

    def schedule(step: int) -> float:
        if step == FAULT:
            weight.detach().view(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)
        return usual(step)

    made.schedule = schedule
    return made


def louder(make: Make, seed: int, factor: float = 3000.0) -> Setting:
    """Gradients become larger at one step, the loss does not; Adam's second moment still remembers the small ones."""
    made = make(seed)
    inner = made.loss

    def loss(step: int) -> Tensor:
        value = inner(step)
        return value if step < FAULT else factor * value - (factor - 1) * value.detach()

    made.loss, made.clip = loss, None
    return made


def spoilt(seed: int, model: Callable[[], nn.Module], draw: Callable[[int], tasks.Draw], length: int,
           how: Callable[[Tensor, Tensor], tasks.Batch] | None, lr: float = 1e-3,
           loss: tasks.Loss = tasks.cross_entropy) -> Setting:  # fmt: skip
    """Some batches are spoilt; with `how` None none is."""
    made, batches = model(), draw(seed)
    kept = batches if how is None else tasks.spoilt(batches, FAULT, length, how)
    return tasks.setting(made, kept, healthy.adam(made, lr), loss)


def qk_norm_hot(seed: int) -> Setting:
    """QK-norm, a rate far too high: with attention tamed, the output logits go."""
    made = zoo.gpt_qk_norm(seed)
    made.optimizer.param_groups[0].update(lr=0.1, weight_decay=0.0)
    return made


def output_only_hot(seed: int) -> Setting:
    """The last layer of a CNN learns a thousand times faster than the rest."""
    model = tasks.Digits()
    groups = [
        {"params": model.head.parameters(), "lr": 3.0},
        {"params": [p for n, p in model.named_parameters() if not n.startswith("head")], "lr": 3e-3},
    ]
    return tasks.setting(model, tasks.digits(seed), torch.optim.AdamW(groups))


def recurrent(seed: int, lr: float, length: int = 60) -> Setting:
    """A ReLU network through 60 steps of time, no clipping."""
    model = tasks.Elman("relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return tasks.setting(model, tasks.memory(seed, length=length), optimizer, F.mse_loss, clip=None)


def recurrent_text(seed: int, lr: float) -> Setting:
    """A ReLU language model, no clipping."""
    model = zoo.Recurrent(nn.RNN)
    model.cell.nonlinearity, model.cell.mode = "relu", "RNN_RELU"
    tasks.identity_start(model.cell)  # type: ignore[arg-type]
    return tasks.setting(model, tasks.text(seed), torch.optim.Adam(model.parameters(), lr=lr), clip=None)


def deep(seed: int, lr: float) -> Setting:
    """Sixteen layers without norm or skip."""
    model = tasks.plain(64, 10, layers=16)
    return tasks.setting(model, tasks.digits(seed), healthy.adam(model, lr), clip=None)


def residual(seed: int, lr: float) -> Setting:
    """Twelve residual branches without norm, SGD."""
    model = tasks.Residual(64, 10, layers=12)
    return tasks.setting(model, tasks.digits(seed), torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), clip=None)


def residual_half(seed: int, lr: float) -> Setting:
    """Residual branches without norm in float16."""
    model = tasks.Half(tasks.Residual(64, 10, layers=12))
    return tasks.setting(model, tasks.digits(seed), healthy.adam(model, lr), clip=1.0)


def plain_half(seed: int, lr: float) -> Setting:
    """A deep plain network on a table, in float16. The labels are smoothed: the table is soon known by heart, and then
    gradients vanish in float16 whatever the rate is."""
    model = tasks.Half(tasks.Residual(30, 2, layers=16))
    smoothed = partial(F.cross_entropy, label_smoothing=0.1)
    return tasks.setting(model, tasks.cancer(seed), healthy.adam(model, lr), smoothed, clip=1.0)


def epsilon(make: Make, seed: int, eps: float) -> Setting:
    """Adam's epsilon above the size of the gradients."""
    made = make(seed)
    made.optimizer.param_groups[0]["eps"] = eps
    return made


def dead(seed: int, model: Callable[[], nn.Module], lr: float) -> Setting:
    """SGD that throws ReLUs onto their dead side."""
    made = model()
    return tasks.setting(made, tasks.digits(seed), torch.optim.SGD(made.parameters(), lr=lr), clip=None)


def by_heart(seed: int, model: Callable[[], nn.Module], draw: Callable[[int], tasks.Draw]) -> Setting:
    """Few samples, no weight decay, a tiny epsilon: the logits only grow."""
    made, first = model(), draw(seed)(0)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03, eps=1e-30)
    return tasks.setting(made, lambda step: first, optimizer, clip=None)


def small_loss(seed: int, model: Callable[[], nn.Module], draw: Callable[[int], tasks.Draw], half: bool = True,
               weight: float = 1e-5) -> Setting:  # fmt: skip
    """A loss with a small weight, in float16 without a gradient scaler: what is nearly learned gets no gradient."""
    made = tasks.Half(model()) if half else model()
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-3, eps=1e-16)
    out = tasks.setting(made, draw(seed), optimizer, clip=None)
    inner = out.loss
    out.loss = lambda step: weight * inner(step)
    return out


def saturating(seed: int, model: Callable[[], nn.Module], lr: float) -> Setting:
    """Units that can saturate, SGD."""
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=lr, momentum=0.9)
    return tasks.setting(made, tasks.digits(seed), optimizer, clip=None)


def table_transformer(seed: int, lr: float = 1e-3) -> Setting:
    """A transformer on a table."""
    model = tasks.TableTransformer(30, 2)
    return tasks.setting(model, tasks.cancer(seed), healthy.adam(model, lr))


def case(half: str, name: str, causes: str, make: Make, twin: Make | None = None, injected: bool = False) -> Case:
    """Causes by name, separated by blanks."""
    return Case(name, make, half, tuple(causes.split()), FAULT if injected else None, twin)  # type: ignore[arg-type]


def _spoilt(half: str, name: str, cause: str, length: int, how: Callable[[Tensor, Tensor], tasks.Batch],
            model: Callable[[], nn.Module], draw: Callable[[int], tasks.Draw],
            loss: tasks.Loss = tasks.cross_entropy) -> Case:  # fmt: skip
    make = partial(spoilt, model=model, draw=draw, length=length, loss=loss)
    return case(half, name, cause, partial(make, how=how), partial(make, how=None), injected=True)


def _gpt() -> nn.Module:
    return tasks.GPT(tasks.SMALL)


def _table() -> nn.Module:
    return tasks.plain(30, 2)


_rows = partial(tasks.Residual, 30, 2)
_tanh = partial(tasks.plain, 64, 10, layers=6, unit=nn.Tanh)
_mlp = partial(tasks.plain, 64, 10)
_no_norm = partial(tasks.Digits, norm=False)
_dead = f"{RATE} DeadUnits ZeroGradients"
_hot = f"{RATE} AttentionLogitGrowth"
UNSTABLE: tuple[Case, ...] = (
    case("A", "gpt_hot", _hot, partial(zoo.gpt, lr=3e-2), zoo.gpt),
    case("B", "vit_hot", _hot, partial(healthy.digits_vit, lr=3e-2), healthy.digits_vit),
    case("A", "gpt_lr_spike", "LearningRateSpike", partial(lr_spike, zoo.gpt, factor=100), zoo.gpt, True),
    case("B", "cnn_lr_spike", "LearningRateSpike", partial(lr_spike, healthy.digits_cnn, factor=100),
         healthy.digits_cnn, True),
    case("A", "post_norm_cold", f"{RATE} VanishingGradients TokenCollapse",
         partial(healthy.post_norm, lr=3e-3, layers=12, warm_up=1), partial(healthy.post_norm, layers=12)),
    case("B", "dit_hot", f"{RATE} TokenCollapse", partial(healthy.dit_short, lr=0.1), healthy.dit_short),
    case("A", "rnn_memory", f"{RATE} GradientNormExplosion ExplodingRecurrentGradients",
         partial(ramp, partial(recurrent, lr=1e-4), factor=1000),
         partial(recurrent, lr=1e-4)),
    case("B", "rnn_text", f"{RATE} GradientNormExplosion ExplodingRecurrentGradients",
         partial(ramp, partial(recurrent_text, lr=3e-3), factor=100),
         partial(recurrent_text, lr=3e-3)),
    case("A", "deep_plain", f"{_dead} VanishingGradients", partial(deep, lr=1e-2), partial(deep, lr=1e-3)),
    case("B", "residual_hot", f"{RATE} ActivationOutlierGrowth GradientNormExplosion",
         partial(ramp, partial(residual, lr=3e-3), factor=100), partial(residual, lr=3e-3)),
    _spoilt("A", "gpt_bad_batches", "BadBatch", 12, tasks.noise_bytes, _gpt, tasks.text),
    _spoilt("B", "table_bad_batches", "BadBatch", 8, tasks.other_features, _table, tasks.cancer),
    _spoilt("A", "cnn_labels", "BadBatch", 30, tasks.other_labels, tasks.Digits, tasks.digits),
    _spoilt("B", "vit_labels", "BadBatch", 30, tasks.other_labels, tasks.DigitsViT, tasks.digits),
    case("A", "gpt_bit_flip", "HardwareFault", partial(bit_flip, zoo.gpt, name="blocks.1.mlp.0.weight"), zoo.gpt, True),
    case("B", "vit_bit_flip", "HardwareFault",
         partial(bit_flip, healthy.digits_vit, name="encoder.layers.1.linear1.weight"), healthy.digits_vit, True),
    _spoilt("A", "cnn_nan", "NonFiniteData", 1, tasks.one_nan, tasks.Digits, tasks.digits),
    _spoilt("B", "dit_inf", "NonFiniteData", 1, tasks.one_inf, partial(tasks.stack, 12), tasks.fields_of, F.mse_loss),
    case("A", "residual_half", f"MixedPrecisionOverflow {RATE}",
         partial(ramp, partial(residual_half, lr=1e-3), factor=100), partial(residual_half, lr=1e-3)),
    case("B", "plain_half", f"MixedPrecisionOverflow {RATE}",
         partial(ramp, partial(plain_half, lr=1e-3), factor=100), partial(plain_half, lr=1e-3)),
    case("A", "cnn_epsilon", "AdamEpsilonTooLarge",
         partial(epsilon, partial(healthy.digits_vit, lr=1e-3), eps=1.0), healthy.digits_vit),
    case("B", "gpt_epsilon", "AdamEpsilonTooLarge", partial(epsilon, zoo.gpt, eps=1.0), zoo.gpt),
    case("A", "moe_hot", f"RouterCollapse {_hot}", partial(healthy.moe, lr=1e-2, balance=0.0), healthy.moe),
    case("B", "vit_moe_hot", f"RouterCollapse {_hot}", partial(healthy.vit_moe, lr=1e-2, balance=0.0), healthy.vit_moe),
    case("A", "qk_norm_hot", f"{RATE} OutputLogitDrift", qk_norm_hot, zoo.gpt_qk_norm),
    case("B", "head_hot", f"{RATE} OutputLogitDrift", output_only_hot, healthy.digits_cnn),
    case("A", "mlp_dead", _dead, partial(ramp, partial(dead, model=_mlp, lr=0.1), factor=30),
         partial(dead, model=_mlp, lr=0.1)),
    case("B", "cnn_dead", _dead, partial(ramp, partial(dead, model=_no_norm, lr=0.1), factor=300),
         partial(dead, model=_no_norm, lr=0.1)),
    case("A", "mlp_by_heart", "SoftmaxCollapse", partial(by_heart, model=_mlp, draw=tasks.digits)),
    case("B", "table_by_heart", "SoftmaxCollapse", partial(by_heart, model=_table, draw=tasks.cancer)),
    case("A", "mlp_small_loss", "MixedPrecisionUnderflow", partial(small_loss, model=_mlp, draw=tasks.digits),
         partial(small_loss, model=_mlp, draw=tasks.digits, half=False)),
    case("B", "table_small_loss", "MixedPrecisionUnderflow", partial(small_loss, model=_rows, draw=tasks.cancer),
         partial(small_loss, model=_rows, draw=tasks.cancer, half=False)),
    case("A", "tanh_mlp", f"{RATE} SaturatedUnits",
         partial(ramp, partial(saturating, model=_tanh, lr=1e-2), factor=300),
         partial(saturating, model=_tanh, lr=1e-2)),
    case("B", "tanh_cnn", f"{RATE} SaturatedUnits",
         partial(ramp, partial(saturating, model=tasks.TanhCNN, lr=1e-2), factor=300),
         partial(saturating, model=tasks.TanhCNN, lr=1e-2)),
    case("A", "table_ramp", _hot, partial(ramp, table_transformer, factor=100), table_transformer),
    case("B", "vit_ramp", _hot, partial(ramp, healthy.digits_vit, factor=100), healthy.digits_vit),
    case("A", "mlp_louder", "AdamSecondMomentStale", partial(louder, healthy.table_numbers), healthy.table_numbers,
         True),
    case("B", "vit_louder", "AdamSecondMomentStale", partial(louder, healthy.digits_vit), healthy.digits_vit, True),
)  # fmt: skip

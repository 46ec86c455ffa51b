"""Accumulators of the run as a whole: loss, output logits, clipping, the gradient scaler, and what the user logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stabwatch.distributed.health import BUSY_SOURCE
from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.policy_accumulators import PolicyAccumulators
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.alike import FEWEST, apart, apart_from_zero
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.merge import Aggregates, merge_, merge_floats
from stabwatch.kernels.where import on_host
from stabwatch.runlog import Accumulator, host_accumulator
from stabwatch.signals.reductions import CERTAINTY, CLIP, HOST, HOST_COUNT, LOGSUMEXP, MEAN

LOSS = PROBES.register(Probe(name="loss", tap="loss", reduction=MEAN, tier="always")).accumulator()
LOGITS = PROBES.register(Probe(name="loss", tap="logits", reduction=LOGSUMEXP, tier="always")).accumulator()
CERTAIN = PROBES.register(Probe(name="loss", tap="logits", reduction=CERTAINTY, tier="always")).accumulator()
CLIPPED = PROBES.register(Probe(name="clip", tap="gradient", reduction=CLIP, tier="always")).accumulator()
LOSS_SCALE = host_accumulator("loss_scale")
KEPT = host_accumulator("gradients_kept_ratio")
REWRITTEN = host_accumulator("weights_rewritten_ratio")
BROADCAST = host_accumulator("loss_broadcast_factor")
INPUT = host_accumulator("input_rms")
INPUT_SPREAD = host_accumulator("input_spread_ratio")
LEAK = host_accumulator("target_in_input_ratio")
OUT_OF_RANGE = host_accumulator("target_out_of_range_ratio")
BETWEEN = host_accumulator("binary_probability_ratio")
UNNORMALISED = host_accumulator("log_probability_off_ratio")
TARGET_RMS = host_accumulator("target_rms")
TARGET_SIZE = host_accumulator("target_size_ratio")
SPREAD = host_accumulator("output_spread_ratio")
UNREACHABLE = host_accumulator("target_unreachable_ratio")
WANTED = host_accumulator("wanted_deviation")
APART = host_accumulator("output_deviation")
FIT = host_accumulator("error_to_variance_ratio")
COMPARED_LOSS = host_accumulator("compared_loss")
COMPARED_MEAN = host_accumulator("compared_mean")
COMPARED_DEVIATION = host_accumulator("compared_deviation")
MIXED = host_accumulator("samples_mixed_ratio")
UNITS = host_accumulator("units_alike_ratio")
THROWN = host_accumulator("gradients_thrown_ratio")
SCRAMBLED = host_accumulator("logits_scrambled_ratio")
OVERLAP = host_accumulator("overlap_of_logits_ratio")
INPUT_SPAN = host_accumulator("input_span_ratio")
DERIVATIVE = host_accumulator("derivative_zero_ratio")
CLASS_WEIGHT = host_accumulator("class_weight_ratio")
UNCHANGED = host_accumulator("weights_unchanged_ratio")
REFROZEN = host_accumulator("refrozen_ratio")
ALIKE = host_accumulator("input_alike_ratio")
LINEAR = host_accumulator("linear_layers")
RANDOM = host_accumulator("random_numbers_repeated")
UNTRAINED = host_accumulator("output_layer_untrained")
TOKEN_LOSS = PROBES.register(Probe(name="loss", tap="token_loss", reduction=MEAN, tier="always")).accumulator()
"""The cross-entropy that was seen on the way, which need not be what is trained on."""
INPUTS = 1 << 16
LOSS_FALLBACKS = ("logged", "backward", "module", "output")
"""Where the loss may come from, best first; the first that was measured in a step becomes the loss.

After them comes the cross-entropy: a compiled step shows nothing else.
"""


def loss_source(name: str) -> Accumulator:
    """The accumulator of one source of the loss; these are not written to the run log."""
    return Accumulator("loss_source", name, "mean")


BASICS = (BUSY_SOURCE, *map(loss_source, LOSS_FALLBACKS), CLIPPED, LOSS_SCALE)
"""Accumulators that every step fills, whatever else it measures.

The busy time and the sources of the loss come first: the record leaves out everything up to their end.
"""
NOTED = (
    OUT_OF_RANGE, BETWEEN, UNNORMALISED, ALIKE, TARGET_RMS, TARGET_SIZE, SPREAD, UNREACHABLE, WANTED, APART, MIXED,
    UNITS, THROWN, REFROZEN, FIT, COMPARED_LOSS, INPUT_SPREAD, COMPARED_MEAN, COMPARED_DEVIATION, UNCHANGED, SCRAMBLED,
    LINEAR, UNTRAINED, RANDOM, OVERLAP, CLASS_WEIGHT, INPUT_SPAN, DERIVATIVE,
)  # fmt: skip
SUMMED = (SPREAD, FIT, COMPARED_LOSS, DERIVATIVE)
"""Those that are a mean over the losses of the step, or over its derivatives."""
OTHERS = (KEPT, REWRITTEN, BROADCAST, INPUT, LEAK, *NOTED)


class RunAccumulators:
    """Accumulators on the device that belong to no module.

    Each is a part of one tensor, but for those that compiled graphs update: these are tensors of their own.
    """

    expected = (LOSS, LOGITS)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._basics, basics = _together(BASICS, device)
        self._others, others = _together(OTHERS, device)
        self.losses = {name: basics[loss_source(name)] for name in LOSS_FALLBACKS}
        self._host_losses = {name: x.numpy() for name, x in self.losses.items()} if device.type == "cpu" else {}
        self.token_loss = new_accumulator("mean", device)
        self.logits = new_accumulator("logsumexp", device)
        self.certainty = new_accumulator("certainty", device)
        self.busy, self.clip, self.loss_scale = (basics[a] for a in (BUSY_SOURCE, CLIPPED, LOSS_SCALE))
        self.kept, self.rewritten, self.broadcast = (others[a] for a in (KEPT, REWRITTEN, BROADCAST))
        self.input, self.leak = others[INPUT], others[LEAK]
        self._noted = {a: others[a] for a in NOTED}
        self.policy = PolicyAccumulators(device)
        self.logged: dict[str, Tensor] = {}
        self.classifies = False
        """A call of `cross_entropy` was seen, outside of compiled graphs."""

    def renewed(self, device: torch.device) -> RunAccumulators:
        """Empty accumulators on a device, with what was logged in the open step."""
        new = RunAccumulators(device)
        new.logged, new.classifies = self.logged, self.classifies
        return new

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators into the step's buffer, those of every step first."""
        buffer.add(BASICS, source_of(self._basics))
        buffer.add((TOKEN_LOSS,), source_of(self.token_loss))
        buffer.add((LOGITS,), source_of(self.logits))
        buffer.add((CERTAIN,), source_of(self.certainty))
        buffer.add(OTHERS, source_of(self._others))
        self.policy.register(buffer)

    def update_loss(self, source: str, value: Tensor | float) -> None:
        """Add the mean loss of a micro-batch; of the source `backward` the loss of the whole step."""
        if isinstance(value, float):
            host = self._host_losses.get(source)
            if host is not None:
                merge_floats(MEAN, host, _one(value))
            else:
                merge_(MEAN, self.losses[source], _one(value))
        else:
            self._update(self.losses[source], value)

    def update_clip(self, norm: Tensor) -> None:
        """Add the norm that clipping found; squares add up over calls on several groups of parameters."""
        norm = norm.detach().to(self._device, torch.float32, non_blocking=True)
        norm = norm._local_tensor if hasattr(norm, "_local_tensor") else norm
        if on_host(norm):
            found = norm.item()
            merge_(CLIP, self.clip, (1.0, found * found, float(not math.isfinite(found))))
            return
        one = torch.ones((), device=self._device)
        merge_(CLIP, self.clip, torch.stack((one, norm.square(), (~torch.isfinite(norm)).float())))

    @torch.no_grad()
    def update_loss_scale(self, scale: Tensor) -> None:
        """Note the gradient scaler's scale."""
        scale = scale.detach().to(self._device, torch.float32, non_blocking=True).reshape(())
        merge_(HOST, self.loss_scale, torch.stack((torch.ones_like(scale), scale)))

    def update_kept(self, share: Tensor | float) -> None:
        """Note the share of gradients that were not empty when the backward passes of the step began, float32 ()."""
        if isinstance(share, float):
            merge_(HOST, self.kept, (1.0, share))
            return
        share = share.to(self._device, non_blocking=True)
        merge_(HOST, self.kept, torch.stack((torch.ones_like(share), share)))

    @torch.no_grad()
    def update_rewritten(self, ratio: Tensor) -> None:
        """Note by how much weights differ from those after the last step, relative to their norm, float32 ()."""
        ratio = ratio.to(self._device, non_blocking=True)
        merge_(HOST, self.rewritten, torch.stack((torch.ones_like(ratio), ratio)))

    @torch.no_grad()
    def update_broadcast(self, aggregates: Tensor) -> None:
        """Note how many times too many numbers a loss has compared, float32 (2,): 1, and the factor."""
        merge_(HOST, self.broadcast, aggregates)

    @torch.no_grad()
    def note(self, which: Accumulator, share: Tensor | float) -> None:
        """Note a number of the step, float32 (), that is one of `NOTED`; the last of a step counts, or their mean."""
        if isinstance(share, float):
            merge_(HOST, self._noted[which], device_constant((1.0, share), torch.float32, self._device))
            return
        share = share.to(self._device, non_blocking=True)
        operators = HOST_COUNT if which in SUMMED else HOST
        merge_(operators, self._noted[which], torch.stack((torch.ones_like(share), share)))

    @torch.no_grad()
    def update_leak(self, share: Tensor) -> None:
        """Note the share of samples whose target is one of the numbers of their input, float32 (), for one loss."""
        share = share.to(self._device, non_blocking=True)
        merge_(HOST_COUNT, self.leak, torch.stack((torch.ones_like(share), share)))

    @torch.no_grad()
    def update_input(self, batch: Tensor, beside: Sequence[Tensor] = ()) -> None:
        """Note the largest root mean square of an input and of those beside it, of at most 65,536 numbers of each."""
        sizes = [root_mean_square(x).to(self._device, non_blocking=True) for x in (batch, *beside)]
        rms = torch.stack(sizes).amax() if beside else sizes[0]
        merge_(HOST, self.input, torch.stack((torch.ones_like(rms), rms)))
        if batch.dim() and len(batch) >= FEWEST and batch.is_floating_point():
            self.note(INPUT_SPREAD, apart(batch) / apart_from_zero(batch))

    def fill_busy(self, seconds: float) -> None:
        """Note this rank's time outside of its last backward pass, in a step that is merged over ranks."""
        self.busy[0].fill_(1.0)
        self.busy[1].fill_(seconds)

    def update_scalars(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Add numbers that the user logs; one named `loss` takes the place of the trained loss."""
        for name, value in scalars.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
            if name == "loss":
                self.update_loss("logged", tensor)
            else:
                self.update_logged(name, tensor)

    @torch.no_grad()
    def update_logged(self, name: str, value: Tensor) -> None:
        """Add a number that the user logs; these accumulators are not merged over ranks. See `take_logged`."""
        accumulator = self.logged.setdefault(name, new_accumulator("mean", self._device))
        self._update(accumulator, value)

    def take_logged(self) -> dict[str, Tensor]:
        """The accumulators of the numbers that were logged in this step."""
        taken, self.logged = self.logged, {}
        return taken

    def _update(self, accumulator: Tensor, value: Tensor) -> None:
        value = value.detach()
        if on_host(value) and on_host(accumulator) and type(value) is Tensor:
            merge_floats(MEAN, accumulator.numpy(), _one(value.item()))
            return
        value = value.to(accumulator.device, torch.float32, non_blocking=True).reshape(())
        merge_(MEAN, accumulator, mean_aggregates(value, 1.0))


def root_mean_square(x: Tensor) -> Tensor:
    """float32 (): of at most `INPUTS` of the numbers of a tensor, evenly spread."""
    flat = x.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // INPUTS))].float().square().mean().sqrt()


def _together(accumulators: tuple[Accumulator, ...], device: torch.device) -> tuple[Tensor, dict[Accumulator, Tensor]]:
    """Empty accumulators in one tensor, float32 (fields,), and the part of each."""
    parts = [new_accumulator(a.reduction, device) for a in accumulators]
    flat = torch.cat(parts)
    return flat, dict(zip(accumulators, flat.split([len(part) for part in parts]), strict=True))


def _one(number: float) -> tuple[float, float, float]:
    return 1.0, number, float(not math.isfinite(number))


def mean_aggregates(loss: Tensor, samples: Tensor | float, summed: bool = False) -> Aggregates:
    """Count, sum and non-finite count of a loss: the mean over `samples`, their sum, or one number for each.

    A NaN is part of the sum: a mean that left it out would be wrong, and the non-finite count explains it.
    """
    loss = loss.detach().float()
    if on_host(loss) and not loss.dim():
        value, count = loss.item(), float(samples)
        return count, value if summed else value * count, float(not math.isfinite(value))
    total = loss.sum() if summed or loss.dim() else loss * samples
    bad = (~torch.isfinite(loss)).sum(dtype=torch.float32)
    if not isinstance(samples, Tensor):
        samples = torch.full((), samples, dtype=torch.float32, device=loss.device)
    return torch.stack((samples.float(), total, bad))

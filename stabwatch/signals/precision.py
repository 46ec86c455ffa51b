"""Values that narrower number formats would lose, by kind of tensor.

fp16 is without a loss scale. fp8 has one scale per tensor, which maps its maximum to the format's largest number.
MXFP4: e2m1 in blocks of 32 with a power-of-two scale. NVFP4: e2m1 in blocks of 16 with an e4m3 scale.
Lost means: not zero, but zero after rounding. The errors are those of rounding to the nearest number, of at most
8,192 numbers of a tensor (whole blocks, evenly spread): of normal numbers they are right to 2 %, with one outlier
channel to a third. The signal-to-noise ratio in dB is -20 log10 of an error, at most 144. HiF4: numbers of 4 bits in
blocks of 64 with three levels of scales. fp4_ue5m3: e2m1 in blocks of 16 with a scale in UE5M3 and none of the tensor,
whose range that scale has. Others say what a change would do: `rotated` is after a random Hadamard rotation of each 16
numbers, `unscaled` without the scale of the tensor. The noise is that of stochastic rounding. FP4 All the Way says that
training needs gradients of more than sqrt(3) times the noise.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

_KINDS = {"activation": ("residual", "a block's output"), "gradient": ("gradient", "a layer's gradients")}
_WEIGHTS = {"weight": ("weight", "a layer's parameters")}
_FIELDS = {
    "zero": ("zeros", "is exactly zero"),
    "fp16_lost": ("fp16_lost", "rounds to zero in float16"),
    "fp16_saturated": ("fp16_saturated", "is too large for float16"),
    "fp8_e4m3_lost": ("e4m3_lost", "rounds to zero in float8 e4m3, scaled by the tensor's maximum"),
    "fp8_e5m2_lost": ("e5m2_lost", "rounds to zero in float8 e5m2, scaled by the tensor's maximum"),
    "mxfp4_lost": ("mxfp4_lost", "rounds to zero in MXFP4"),
    "nvfp4_lost": ("nvfp4_lost", "rounds to zero in NVFP4"),
}

_LOST = tuple(
    Signal(
        name=f"{kind}_{name}_ratio",
        help=f"Share of {what} that {happens}.",
        unit="ratio",
        tap=tap,
        reduction="precision",
        fields=(field, "count"),
        formula="mean",
        tier="deep",
        source="OCP Microscaling Formats (MX) 1.0; FP8 formats, arXiv:2209.05433; NVFP4 (NVIDIA)",
    )
    for kind, (tap, what) in (_KINDS | _WEIGHTS).items()
    for name, (field, happens) in _FIELDS.items()
)

_EXPONENTS = tuple(
    signal
    for kind, (tap, what) in _KINDS.items()
    for signal in (
        Signal(
            name=f"{kind}_fp16_subnormal_ratio",
            help=f"Share of the nonzero elements of {what} that are subnormal in float16 (below 2^-14, not lost).",
            unit="ratio",
            tap=tap,
            reduction="exponents",
            fields=("subnormal", "count"),
            formula="mean",
            tier="deep",
        ),
        Signal(
            name=f"{kind}_exponent_spread",
            help=f"Standard deviation of the binary exponents of the nonzero elements of {what}.",
            unit="1",
            tap=tap,
            reduction="exponents",
            fields=("sum", "sumsq", "count"),
            formula="deviation",
            tier="deep",
        ),
    )
)

_FORMATS = {
    "fp8_e4m3": "float8 e4m3",
    "fp8_e5m2": "float8 e5m2",
    "int8": "int8, scaled by the tensor's maximum,",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "hif4": "HiF4",
    "fp4_ue5m3": "e2m1 with scales in UE5M3",
    "mxfp4_rotated": "MXFP4 after a random Hadamard rotation",
    "nvfp4_rotated": "NVFP4 after a random Hadamard rotation",
    "nvfp4_unscaled": "NVFP4 without the scale of the tensor",
}
_SOURCE = "TransformerEngine#1701; Chmiel et al. 2025 (FP4 All the Way), arXiv:2505.19115"
_ERRORS = tuple(
    Signal(
        name=f"{kind}_{name}_error_ratio",
        help=f"Root mean square of what rounding to {title} would change in {what}, over its root mean square.",
        unit="ratio",
        tap=tap,
        reduction="rounding",
        fields=(name.removeprefix("fp8_"), "sumsq"),
        formula="root_ratio",
        tier="deep",
        source=_SOURCE,
    )
    for kind, (tap, what) in (_KINDS | _WEIGHTS).items()
    for name, title in _FORMATS.items()
)

_RATIOS = tuple(
    Signal(
        name=f"{kind}_{name}_snr_db",
        help=f"Signal-to-noise ratio of {what} after rounding to {title.rstrip(',')}: -20 log10 of the relative error.",
        unit="dB",
        tap=tap,
        reduction="rounding",
        fields=(name.removeprefix("fp8_"), "sumsq"),
        formula="snr",
        tier="deep",
        worst="min",
        source=_SOURCE,
    )
    for kind, (tap, what) in (_KINDS | _WEIGHTS).items()
    for name, title in _FORMATS.items()
    if not name.endswith(("_rotated", "_unscaled"))  # what-ifs, and no formats
)

_NOISES = tuple(
    Signal(
        name=f"gradient_{name}_to_noise_ratio",
        help=f"Root mean square of a layer's gradients over that of the noise of stochastic rounding to {title}.",
        unit="ratio",
        tap="gradient",
        reduction="rounding",
        fields=("sumsq", f"{name}_noise"),
        formula="root_ratio",
        tier="deep",
        worst="min",
        source="Chmiel et al. 2025 (FP4 All the Way), arXiv:2505.19115",
    )
    for name, title in (("mxfp4", "MXFP4"), ("nvfp4", "NVFP4"))
)

SIGNALS = (*_LOST, *_EXPONENTS, *_ERRORS, *_RATIOS, *_NOISES)

"""Models of other libraries: timm, diffusers, x-transformers; where they are not installed, the row says so."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.compat.families import objective
from benchmarks.compat.program import Case, NotTried, Program

Make = Callable[[], tuple[nn.Module, dict[str, Any]]]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise NotTried(f"{name} cannot be imported: {error}".split("\n")[0]) from error


def of_timm(name: str, size: int = 64) -> Make:
    """A model of timm without its weights."""

    def make() -> tuple[nn.Module, dict[str, Any]]:
        model = _library("timm").create_model(name, num_classes=4)
        return model, {"x": torch.randn(2, 3, size, size)}

    return make


def of_diffusers(name: str, inputs: Callable[[], dict[str, Any]], **options: Any) -> Make:
    """A model of diffusers from its arguments."""

    def make() -> tuple[nn.Module, dict[str, Any]]:
        return getattr(_library("diffusers"), name)(**options), inputs()

    return make


def _noisy(channels: int = 4, size: int = 8, text: int = 0) -> dict[str, Any]:
    given: dict[str, Any] = {"sample": torch.randn(2, channels, size, size), "timestep": torch.tensor([3, 7])}
    return given | ({"encoder_hidden_states": torch.randn(2, 6, text)} if text else {})


def _x_transformer() -> tuple[nn.Module, dict[str, Any]]:
    library = _library("x_transformers")
    model = library.TransformerWrapper(
        num_tokens=64, max_seq_len=16, attn_layers=library.Decoder(dim=32, depth=2, heads=2)
    )
    return model, {"x": torch.randint(0, 64, (2, 12))}


MODELS: dict[str, Make] = {
    **{f"timm {name}": of_timm(name) for name in ("vit_tiny_patch16_224", "resnet18", "convnext_atto")},
    "diffusers UNet2DModel": of_diffusers(
        "UNet2DModel", _noisy, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    ),
    "diffusers UNet2DConditionModel": of_diffusers(
        "UNet2DConditionModel", partial(_noisy, text=16), block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "diffusers DiTTransformer2DModel": of_diffusers(
        "DiTTransformer2DModel",
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]),
                 "class_labels": torch.tensor([0, 1])},
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8,
    ),
    "diffusers PixArtTransformer2DModel": of_diffusers(
        "PixArtTransformer2DModel",
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]),
                 "encoder_hidden_states": torch.randn(2, 6, 16),
                 "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=16,
        caption_channels=16, use_additional_conditions=False,
    ),
    "diffusers SD3Transformer2DModel": of_diffusers(
        "SD3Transformer2DModel",
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]),
                 "encoder_hidden_states": torch.randn(2, 6, 16), "pooled_projections": torch.randn(2, 16)},
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    ),
    "diffusers AutoencoderKL": of_diffusers(
        "AutoencoderKL", lambda: {"sample": torch.randn(2, 3, 16, 16)}, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "x-transformers Decoder": _x_transformer,
}  # fmt: skip


def cases() -> Iterator[Case]:
    """One case for each model."""
    for name, make in MODELS.items():
        yield Case("other libraries", name, partial(_program, make))


def _program(make: Make) -> Program:
    model, kwargs = make()
    return Program(model.train(), partial(objective, model, kwargs))

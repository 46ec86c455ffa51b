"""Inputs for a model of transformers whose family is not known: by the names of what its `forward` takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TOKENS, FIRST_TOKEN, LAST_TOKEN = 2, 12, 10, 400
Kwargs = dict[str, Any]


def candidates(model: nn.Module) -> Iterator[Kwargs]:
    """Arguments that may fit, the likeliest first. Those that do not fit raise in the model."""
    parameters = inspect.signature(model.forward).parameters
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    names = dict.fromkeys([main, *required])
    if main not in parameters and "input_ids" in parameters:
        names = dict.fromkeys(["input_ids", *required])
    names = dict.fromkeys(n for n in names if n in parameters)
    choices = [list(values(name, config))[:8] for name in names]
    labels = list(_labels(model, parameters))
    extras = list(_extras(parameters, config))
    for combination in product(*choices):
        given = dict(zip(names, combination, strict=True))
        for label in labels:
            for extra in extras:
                yield given | label | {k: v for k, v in extra.items() if k not in given}


def values(name: str, config: Any) -> Iterator[Any]:
    """Shapes that an argument of this name may have."""
    if name in ("input_ids", "decoder_input_ids", "tokens"):
        yield ids(_vocabulary(config))
        books = _find(config, "num_codebooks", "num_quantizers", "n_codes_total") or 0
        if books:
            yield torch.randint(0, 16, (BATCH, TOKENS, books))
            yield torch.randint(0, 16, (BATCH, books, TOKENS))
    elif "mask" in name:
        yield torch.ones(BATCH, TOKENS, dtype=torch.long)
    elif name == "bbox":
        yield torch.randint(0, 40, (BATCH, TOKENS, 2)).repeat(1, 1, 2)
    elif "pixel" in name or name in ("images", "image", "pixel_values_videos"):
        yield from _images(config)
    elif name in ("input_features", "audio_features", "input_values", "audio", "spectrogram", "past_values", "wav"):
        yield from _sounds(name, config)
    elif "embeds" in name or "hidden_states" in name:
        yield torch.randn(BATCH, TOKENS, int(_find(config, "hidden_size", "d_model", "embed_dim") or 32))
    elif name.endswith(("ids", "token_types")):
        yield ids(_vocabulary(config))
    else:
        yield torch.randn(BATCH, TOKENS)
        yield torch.randn(BATCH, TOKENS, int(_find(config, "hidden_size", "d_model") or 32))


def ids(vocabulary: int) -> Tensor:
    """Token ids, none of them special."""
    return torch.randint(min(FIRST_TOKEN, vocabulary // 2), min(LAST_TOKEN, vocabulary), (BATCH, TOKENS))


def _vocabulary(config: Any) -> int:
    return int(_find(config, "vocab_size", "n_vocab") or 256)


def _images(config: Any) -> Iterator[Tensor]:
    channels = _find(config, "num_channels", "in_channels", "in_chans") or 3
    channels = channels if isinstance(channels, int) else 3
    stated = _find(config, "image_size", "img_size", "input_size")
    stated = stated[0] if isinstance(stated, list | tuple) else stated
    sizes = dict.fromkeys([stated] if isinstance(stated, int) else [])
    frames = _find(config, "num_frames", "frames_per_clip", "num_image_with_embedding") or 4
    for size in [*sizes, 64, 224]:
        yield torch.randn(BATCH, channels, size, size)
        yield torch.randn(BATCH, int(frames), channels, size, size)
    patch = int(_find(config, "patch_size") or 16) if not isinstance(_find(config, "patch_size"), list | tuple) else 16
    yield torch.randn(BATCH, 16, channels * patch * patch)


def _sounds(name: str, config: Any) -> Iterator[Tensor]:
    bands = int(_find(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "n_mels") or 80)
    positions = int(_find(config, "max_source_positions") or 64)
    length = _find(config, "max_length", "context_length", "seq_length") or 128
    length = length if isinstance(length, int) else 128
    if name == "past_values":
        channels = int(_find(config, "num_input_channels", "input_size") or 1)
        yield torch.randn(BATCH, length, channels)
        yield torch.randn(BATCH, length)
        return
    waves = [torch.randn(BATCH, 4000) * 0.1, torch.randn(BATCH, 1, 4800) * 0.1]
    bins = [torch.randn(BATCH, bands, 2 * positions), torch.randn(BATCH, 64, bands), torch.randn(BATCH, length, bands),
            torch.randn(BATCH, 1, 256, bands), torch.randn(BATCH, bands, 128)]  # fmt: skip
    yield from waves + bins if name != "input_features" else bins + waves


def _find(config: Any, *names: str) -> Any:
    """The first of these attributes that a configuration or one inside of it has."""
    inner = [v for v in vars(config).values() if hasattr(v, "model_type")]
    for name in names:
        for holder in (config, *inner):
            value = getattr(holder, name, None)
            if value is not None and not isinstance(value, bool):
                return value
    return next((found for holder in inner if (found := _find(holder, *names)) is not None), None)


def _labels(model: nn.Module, parameters: Any) -> Iterator[Kwargs]:
    """Labels of a kind that may fit, or none."""
    config: Any = model.config
    if "labels" in parameters:
        if type(model).__name__.endswith(
            ("LM", "ConditionalGeneration", "LMHeadModel", "PreTraining", "CTC", "Generation")
        ):
            yield {"labels": ids(_vocabulary(config))}
        if type(model).__name__.endswith(("CTC", "RNNT", "TDT")):
            yield {"labels": torch.randint(1, 20, (BATCH, 4))}
        yield {"labels": torch.tensor([0, 1])}
        yield {"labels": torch.zeros(BATCH, TOKENS, dtype=torch.long)}
        detection = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.4, 0.2, 0.2]])}
        yield {"labels": [detection, detection]}
    yield {}


def _extras(parameters: Any, config: Any) -> Iterator[Kwargs]:
    """What some families need beside it."""
    yield {}
    wanted = ("decoder_input_ids", "bbox", "input_ids", "pixel_values", "input_features", "input_values")
    for names in (wanted[:1], wanted[1:2], wanted[2:3], wanted[3:4], wanted[:2], wanted[2:4]):
        if all(name in parameters for name in names):
            yield {name: next(values(name, config)) for name in names}

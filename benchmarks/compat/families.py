"""Every family of transformers that can be built small from its configuration class alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compat.inputs import Kwargs, candidates
from benchmarks.compat.program import Case, NotTried, Program, tensors_in
from benchmarks.compat.shrink import Size, shrink
from benchmarks.compat.trial import one_line

GROUPS: dict[str, tuple[str, ...]] = {
    "encoder-decoder": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    "encoder": ("MASKED_LM",),
    "causal language model": ("CAUSAL_LM",),
    "vision": (
        "IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION",
        "INSTANCE_SEGMENTATION", "VIDEO_CLASSIFICATION", "DEPTH_ESTIMATION", "MASKED_IMAGE_MODELING",
        "MASK_GENERATION", "IMAGE_TO_IMAGE", "POSE_ESTIMATION", "KEYPOINT_DETECTION", "IMAGE",
    ),
    "audio": (
        "CTC", "AUDIO_CLASSIFICATION", "RNNT", "TDT", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM",
        "AUDIO_XVECTOR",
    ),
    "several modalities": (
        "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISUAL_QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING",
        "ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION",
    ),
    "other": (
        "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "TIME_SERIES_PREDICTION",
        "PRETRAINING", "",
    ),
}  # fmt: skip
"""Kind of family -> the mappings of transformers that list it. A family has one row, of the first that does."""
SIZES = (
    Size(16), Size(16, layers=8), Size(16, heads=True), Size(8), Size(4, layers=4), Size(1), Size(1, layers=4), None,
)  # fmt: skip
"""The first that works is taken; None: as the configuration is."""
LARGEST = 30_000_000
"""Parameters of a model that is still tried."""
TRIES = 40
"""Combinations of inputs that are tried."""


def cases() -> Iterator[Case]:
    """One case for each family; none without transformers."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return
    taken: set[str] = set()
    for group, mappings in GROUPS.items():
        for mapping in mappings:
            name = f"MODEL_FOR_{mapping}_MAPPING_NAMES" if mapping else "MODEL_MAPPING_NAMES"
            for family in getattr(modeling_auto, name, {}):
                if family not in taken:
                    taken.add(family)
                    yield Case(group, family, Made(family, name))


class Made:
    """Makes a family: which configuration and which inputs work is found out once and kept."""

    def __init__(self, family: str, mapping: str) -> None:
        self._family = family
        self._mapping = mapping
        self._found: tuple[Size | None, int] | None = None

    def __call__(self) -> Program:
        """The program. Raises NotTried with the reason of the last attempt."""
        if self._found is None:
            self._found = self._search()
        torch.manual_seed(0)
        size, number = self._found
        model = self._model(size)
        kwargs = next(k for i, k in enumerate(candidates(model)) if i == number)
        return Program(model, partial(objective, model, kwargs))

    def _search(self) -> tuple[Size | None, int]:
        reason = ""
        for size in SIZES:
            try:
                torch.manual_seed(0)
                model = self._model(size)
            except NotTried:
                raise
            except Exception as error:
                reason = reason or one_line(error)
                continue
            for number, kwargs in enumerate(candidates(model)):
                if number == TRIES:
                    break
                try:
                    objective(model, kwargs).backward()
                    return size, number
                except Exception as error:
                    reason = reason or one_line(error)
        raise NotTried(reason or "no input was found that it takes")

    def _model(self, size: Size | None) -> nn.Module:
        import transformers
        from transformers.models.auto import configuration_auto, modeling_auto

        names: Any = getattr(modeling_auto, self._mapping)[self._family]
        name = names if isinstance(names, str) else names[0]
        kind: Callable[[Any], nn.Module] = getattr(transformers, name)
        config = configuration_auto.CONFIG_MAPPING[self._family]()
        if size is not None:
            shrink(config, size)
        config = _part_for(kind, config)
        with torch.device("meta"):
            try:
                count = sum(p.numel() for p in kind(config).parameters())
            except Exception:
                count = 0  # cannot be made without memory
        if count > LARGEST:
            raise ValueError(f"{count / 1e6:.0f} million parameters, at {size}")
        return kind(config).float().train()


def _part_for(kind: Any, config: Any) -> Any:
    """The configuration inside of this one that a class wants, if it wants that of a part."""
    wanted = getattr(kind, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    return next((part for part in vars(config).values() if isinstance(part, wanted)), config)


def objective(model: nn.Module, kwargs: Kwargs) -> Tensor:
    """The loss that the model computes, or else the mean square of all it returns."""
    output = model(**kwargs)
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0:
        return loss
    found = [t for t in tensors_in(output) if t.requires_grad and t.is_floating_point()]
    if not found:
        raise NotTried("it returns nothing that has a gradient")
    return torch.stack([t.float().square().mean() for t in found]).sum()

"""Makes a configuration of transformers small, whatever family it is of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

VOCABULARY = 512
POSITIONS = 64
_LAYERS = re.compile(r"(^|_)(num_.*layers|n_layers?|num_layers|depth|layers|num_.*blocks|n_blocks?)$|^num_.*_layers?$")
_NO_LAYERS = re.compile(r"first|dense_repl|skip|freeze|out_|shared|every|interval|pattern|period|kv_|channels")
_VOCABULARY = re.compile(r"vocab.*size|vocabulary|^n_vocab|codebook_size|num_embeddings$|vocab_size")
_POSITIONS = re.compile(r"max_(position|source|target|sequence|seq).*|^n_positions$|^n_ctx$|^max_length$|^max_2d_pos")
_EXPERTS = re.compile(r"^(num|n)_(local_|routed_|.*)?experts$|^moe_num_experts$")
_WIDTH = re.compile(
    r"size|dim|d_model|d_ff|d_kv|d_inner|embd|channels|width|rank|features|n_inner|hidden|head_dim|ffn|units|num_filters"
)
_NO_WIDTH = re.compile(
    r"vocab|image|patch|kernel|window|chunk|block|bucket|stride|num_channels|pool|grid|batch|temporal|group|cluster|"
    r"codebook|type|max_|_in_|downsamp|sampling|in_channels|out_channels|spatial|tubelet|size_divis|segment|num_.*heads|"
    r"attention_head|query_num|anchor|num_classes|num_features$|mel|freq|bins|position|feature_size|proj_size$|tile"
)
_CHOSEN = re.compile(r"experts_per_tok|top_?k$|^topk_group$|^n_group$|^moe_k$")
_HEADS = re.compile(r"^num_.*heads$|^n_heads?$|^num_heads$")
_TOKEN = re.compile(r"token_?(id|index)$|_token_id$|token_ids?$|_id$")


@dataclass(frozen=True)
class Size:
    """How small. factor: by which widths are divided, so that their ratios stay; 1: they stay. layers: at most so many.

    heads: there are fewer heads, and those stay as wide as they were.
    """

    factor: int
    layers: int = 2
    heads: bool = False


def shrink(config: Any, size: Size) -> None:
    """Fewer layers, smaller vocabulary and images, smaller widths."""
    own = vars(config)
    before = _layers_before(own)
    for name, value in list(own.items()):
        own[name] = _smaller(name, value, own, size, before)
    _special_tokens(own)
    _fill(own)


def _fill(own: dict[str, Any]) -> None:
    """What the checkpoints of a family always state, and its defaults leave open."""
    heads, width = own.get("num_attention_heads"), own.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    stated = {
        "num_key_value_heads": heads, "head_dim": width // heads, "num_experts_per_tok": 2, "vocab_size": 64,
        "pad_token_id": 0,
    }  # fmt: skip
    own |= {name: value for name, value in stated.items() if name in own and own[name] is None}


def _layers_before(own: dict[str, Any]) -> set[int]:
    return {v for k, v in own.items() if isinstance(v, int) and _is_layers(k)}


def _is_layers(name: str) -> bool:
    return bool(_LAYERS.search(name)) and not _NO_LAYERS.search(name)


def _smaller(name: str, value: Any, own: dict[str, Any], size: Size, layers: set[int]) -> Any:
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):
        shrink(value, size)
        return value
    if isinstance(value, bool) or value is None or name.startswith("_"):
        return value
    if isinstance(value, int):
        return _smaller_number(name, value, own, size)
    if isinstance(value, list | tuple) and value:
        return _smaller_list(name, value, size, layers)
    if isinstance(value, dict):
        return {k: _smaller_dict_value(k, v, size) for k, v in value.items()}
    return value


def _smaller_dict_value(name: Any, value: Any, size: Size) -> Any:
    if isinstance(value, dict):
        return {k: _smaller_dict_value(k, v, size) for k, v in value.items()}
    if isinstance(name, str) and "section" in name and isinstance(value, list) and not size.heads:
        return _shares(value, max(1, sum(value) // size.factor))
    return value


def _shares(parts: list[int], total: int) -> list[int]:
    """The parts made smaller, with this sum."""
    out = [max(1, part * total // sum(parts)) for part in parts]
    out[0] += total - sum(out)
    return out


def _smaller_number(name: str, value: int, own: dict[str, Any], size: Size) -> int:
    if _is_layers(name):
        return min(value, max(size.layers, _kinds(own)))
    if _VOCABULARY.search(name):
        return min(value, VOCABULARY)
    if name == "attention_window":
        return min(value, 8)
    if _EXPERTS.search(name):
        return min(value, 4)
    if _CHOSEN.search(name):
        return min(value, 2 if "group" not in name else 1)
    if size.heads and _HEADS.search(name):
        return max(1, value // size.factor)
    if size.heads and "head_dim" in name:
        return value
    if name in ("image_size", "img_size", "input_size") and value > 64:
        patch = own.get("patch_size", 16)
        return 4 * patch if isinstance(patch, int) and patch > 8 else 64
    if _POSITIONS.search(name):
        return min(value, POSITIONS)
    if _is_width(name) and value >= 32:
        return max(4, value // size.factor) if value % size.factor == 0 else value
    return value


def _is_width(name: str) -> bool:
    return bool(_WIDTH.search(name)) and not _NO_WIDTH.search(name)


def _kinds(own: dict[str, Any]) -> int:
    """How many kinds of layers the configuration lists: each is kept."""
    kinds = own.get("layer_types")
    return len(set(kinds)) if isinstance(kinds, list | tuple) else 0


def _smaller_list(name: str, value: Any, size: Size, layers: set[int]) -> Any:
    factor = size.factor
    if all(hasattr(v, "model_type") for v in value):
        for inner in value:
            shrink(inner, size)
        return value
    if "section" in name and not size.heads and all(isinstance(v, int) for v in value):
        return type(value)(_shares(list(value), max(1, sum(value) // factor)))
    if len(value) in layers and len(value) > size.layers and not all(isinstance(v, int) and v > 7 for v in value):
        return type(value)(_one_of_each(value, size.layers))
    if name == "attention_window":
        return [8] * size.layers
    if re.search(r"depths|num_blocks|layers$|stage_repeats", name) and all(isinstance(v, int) for v in value):
        return type(value)(min(v, 1 + (i == 0)) for i, v in enumerate(value)) if "out" not in name else value
    if (
        _WIDTH.search(name)
        and not _NO_WIDTH.search(name)
        and all(isinstance(v, int) and v % factor == 0 for v in value)
    ):
        return type(value)(max(4, v // factor) for v in value)
    return value


def _one_of_each(kinds: Iterable[Any], layers: int) -> list[Any]:
    """The first of each kind, and at least so many as there are layers."""
    kinds = list(kinds)
    marks = [repr(kind) for kind in kinds]
    first = sorted({marks.index(mark) for mark in marks})
    rest = [i for i in range(len(kinds)) if i not in first]
    return [kinds[i] for i in sorted([*first, *rest[: max(0, layers - len(first))]])]


def _special_tokens(own: dict[str, Any]) -> None:
    """Numbers of special tokens that are beyond the vocabulary, moved to its end, different ones apart."""
    size = own.get("vocab_size")
    text = own.get("text_config") or own.get("llm_config") or own.get("thinker_config")
    limit = size if isinstance(size, int) else getattr(text, "vocab_size", None)
    limit = limit if isinstance(limit, int) else VOCABULARY
    numbers: dict[int, int] = {}

    def moved(value: int) -> int:
        return value if value < limit else numbers.setdefault(value, limit - 1 - len(numbers))

    for name, value in list(own.items()):
        if not _TOKEN.search(name) or isinstance(value, bool):
            continue
        if isinstance(value, int):
            own[name] = moved(value)
        elif isinstance(value, list) and all(isinstance(v, int) for v in value):
            own[name] = [moved(v) for v in value]

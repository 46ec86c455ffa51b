"""Which modules are watched, by name, for the model shapes that people write."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.sites import looks_like_attention, select_modules, site_name, unwrap
from stabwatch.hooks.patching import Patch


def _shown(model, **filters):
    return [c.name for c in select_modules(model, **filters) if c.activation]


def test_a_transformer_shows_embeddings_blocks_branches_final_norm_and_head():
    assert _shown(GPT(DemoConfig(layers=2))) == [
        "tokens", "positions",
        "blocks.0", "blocks.0.attn", "blocks.0.mlp",
        "blocks.1", "blocks.1.attn", "blocks.1.mlp",
        "norm", "head",
    ]  # fmt: skip


def test_a_plain_sequential_shows_its_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert _shown(model) == ["0", "2"]


def test_a_sequential_that_returns_what_its_last_child_returns_is_shown_once():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), nn.Linear(2, 2))
    assert _shown(model) == ["0", "1"]
    assert _shown(nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})) == ["body.0", "body.1"]


def test_branches_without_a_module_of_their_own_are_shown_by_their_leaves():
    names = _shown(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False))
    assert "layers.0.self_attn" in names
    assert "layers.0.linear2" in names
    assert not [n for n in names if "norm" in n]


def test_filters_choose_by_name():
    model = GPT(DemoConfig(layers=2))
    assert _shown(model, include=r"\.attn$") == ["blocks.0.attn", "blocks.1.attn"]
    assert "blocks.0.mlp" not in _shown(model, exclude="mlp")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("module.blocks.0", "blocks.0"),
        ("_orig_mod.blocks.0._checkpoint_wrapped_module.attn", "blocks.0.attn"),
        ("_fsdp_wrapped_module.layers.3._fsdp_wrapped_module", "layers.3"),
        ("modules_of_mine.0", "modules_of_mine.0"),
    ],
)
def test_wrappers_do_not_show_in_names(path, name):
    assert site_name(path) == name


def test_a_compiled_model_is_unwrapped():
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model)) is model
    assert unwrap(model) is model


def test_attention_is_known_by_its_class():
    assert looks_like_attention(nn.MultiheadAttention(4, 2))
    assert looks_like_attention(GPT(DemoConfig(layers=1)).blocks[0].attn)
    assert not looks_like_attention(nn.Linear(2, 2))


def test_a_patch_reaches_imported_names_and_goes_away():
    namespace = globals()
    namespace["imported"] = F.softmax
    original = F.softmax

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        return original(*args, **kwargs)

    patch = Patch(original, wrapper)
    patch.install()
    try:
        assert F.softmax is wrapper
        assert nn.functional.softmax is wrapper
    finally:
        patch.remove()
    assert F.softmax is original

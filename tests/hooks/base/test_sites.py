"""Which modules are watched, by name, for the model shapes that people write."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.naming import unwrap
from stabwatch.hooks.base.sites import looks_like_attention, select_modules
from stabwatch.hooks.patching import Patch, install_patches, remove_patches


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


def test_the_projection_that_multi_head_attention_applies_as_a_function_is_not_shown():
    class Own(nn.MultiheadAttention):
        def forward(self, x):
            return self.out_proj(x)

    whole = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": Own(8, 2)})
    assert _shown(whole) == ["a", "b", "b.out_proj"]


def test_filters_choose_by_name():
    model = GPT(DemoConfig(layers=2))
    assert _shown(model, include=r"\.attn$") == ["blocks.0.attn", "blocks.1.attn"]
    assert "blocks.0.mlp" not in _shown(model, exclude="mlp")


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.modules_of_mine = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))])
        self.blocks = nn.ModuleList(GPT(DemoConfig(layers=2, width=8, heads=2)).blocks)


class Own(nn.Module):
    """A wrapper of a user's own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


WRAPPERS = {
    "compiled": lambda block: torch.compile(block, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "both": lambda block: torch.compile(checkpoint_wrapper(block), backend="eager"),
    "own": Own,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_do_not_show_in_names(wrapper):
    model, names = Named(), _shown(Named())
    assert {"blocks.0", "blocks.0.attn", "modules_of_mine.0"} <= set(names)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = WRAPPERS[wrapper](block)
    extra = ["blocks.0.module", "blocks.1.module"] if wrapper == "own" else []
    assert sorted(_shown(model)) == sorted(names + extra)
    roles, plain = ({t.name: t.role for t in select_modules(m)} for m in (model, Named()))
    assert [n for n, r in roles.items() if r.writer] == [n for n, r in plain.items() if r.writer] != []


def test_a_wrapped_model_has_the_names_of_the_model():
    model = Named()
    for wrapped in (nn.DataParallel(model), torch.compile(model), checkpoint_wrapper(model)):
        assert _shown(wrapped) == _shown(model)
    assert [n for n in _shown(Own(model)) if n != "module"] == _shown(model)


def test_modules_that_others_share_are_named_once_and_write_nothing():
    shared = nn.Linear(8, 8)

    def block():
        return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), shared)

    targets = select_modules(nn.Sequential(block(), block()))
    assert [t.name for t in targets if t.module is shared] == []
    model = nn.ModuleDict({"a": nn.ModuleDict({"x": shared}), "b": nn.ModuleDict({"x": shared})})
    (found,) = [t for t in select_modules(model) if t.module is shared]
    assert (found.name, found.shared, found.role.writer) == ("a.x", True, False)


def test_a_compiled_model_is_unwrapped():
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model)) is model
    assert unwrap(model) is model


def test_attention_is_known_by_its_class():
    assert looks_like_attention(nn.MultiheadAttention(4, 2))
    assert looks_like_attention(GPT(DemoConfig(layers=1)).blocks[0].attn)
    assert not looks_like_attention(nn.Linear(2, 2))


def test_attention_is_known_by_its_projections():
    def mixer(*names):
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    for names in (
        ("q", "k", "v"),
        ("to_q", "to_kv"),
        ("qkv", "proj"),
        ("query_proj", "key_proj"),
        ("c_attn",),
        ("Wqkv",),
    ):
        assert looks_like_attention(mixer(*names)), names
    for names in (("key", "value", "receptance"), ("in_proj", "out_proj"), ("attn", "mlp"), ("gate", "up", "down")):
        assert not looks_like_attention(mixer(*names)), names
    assert not looks_like_attention(type("AttentionNorm", (nn.LayerNorm,), {})(4))


def test_a_patch_reaches_imported_names_and_goes_away():
    namespace = globals()
    namespace["imported"] = F.softmax
    original = F.softmax

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        return original(*args, **kwargs)

    patch = Patch(original, wrapper)
    install_patches((patch,))
    try:
        assert F.softmax is wrapper
        assert nn.functional.softmax is wrapper
    finally:
        remove_patches((patch,))
    assert F.softmax is original

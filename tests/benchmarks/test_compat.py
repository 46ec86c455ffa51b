"""The sweep over models, and some rows of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.compat import families
from benchmarks.compat.layers import AttentionLayers, matched
from benchmarks.compat.page import page, totals
from benchmarks.compat.program import Case, Program, Row
from benchmarks.compat.run import all_cases
from benchmarks.compat.trial import STEPS, try_case

SAMPLE = ("gpt2", "bert", "t5", "vit", "wav2vec2", "mamba")
OTHERS = ("Tensor.softmax", "exp and sum", "Muon", "own wrapper", "checkpoint_wrapper")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_is_left_alone_and_seen(name):
    pytest.importorskip("transformers")
    row = try_case(next(case for case in families.cases() if case.name == name))
    assert row.skipped == ""
    assert row.identical and row.steps == STEPS and row.faults == []
    assert row.loss is not None and row.loss < 1e-5
    assert row.seen == row.layers and row.unexplained == []
    assert bool(row.layers) == (name != "mamba")


@pytest.mark.parametrize("case", [case for case in all_cases() if case.name in OTHERS], ids=lambda case: case.name)
def test_a_spelling_an_optimizer_and_a_wrapper(case):
    row = try_case(case)
    assert row.skipped == ""
    assert row.identical and row.steps == STEPS and row.faults == [] and row.unexplained == []


def test_rows_have_different_names():
    names = [(case.group, case.name) for case in all_cases()]
    assert len(names) == len(set(names)) > 500


class Reads(nn.Module):
    """Its output depends on whether it is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) * (2 if "_stabwatch" in vars(self) else 1)


def test_a_training_that_changes_is_found():
    def make():
        model = Reads()
        return Program(model, lambda: model(torch.ones(2, 4)).square().mean())

    row = try_case(Case("other", "reads", make))
    assert not row.identical and row.skipped == ""


def test_what_cannot_be_made_is_a_row_with_its_reason():
    def make():
        raise ImportError("natten is needed")

    assert try_case(Case("vision", "dinat", make)).skipped == "ImportError: natten is needed"


class ByHand(nn.Module):
    def forward(self, scores):
        return scores.softmax(-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = ByHand()
        self.linear_attention = nn.Linear(4, 4)

    def forward(self, x):
        return self.mix(x.expand(1, 1, 4, 4)) + self.linear_attention(x)


def test_layers_are_found_by_their_operators():
    model = nn.Sequential(Block(), nn.MultiheadAttention(4, 1))
    finder = AttentionLayers(model)
    with finder.watching():
        x = model[0](torch.ones(4, 4))
        model[1](x[0], x[0], x[0])
    assert finder.layers == ["0.mix", "1"]


def test_sites_are_matched_once():
    assert matched(["a.attn", "b.attn"], ["a.attn.core"]) == ["a.attn"]
    assert matched(["a.attn.core"], ["a.attn"]) == ["a.attn.core"]


def test_the_page_shows_every_row():
    rows = [
        Row(
            "vision", "vit", "ViT", identical=True, steps=STEPS, loss=0.0, layers=["a", "b"], seen=["a"], gaps={"b": ""}
        ),
        Row("vision", "dinat", skipped="ImportError: natten | more"),
    ]
    text = page(rows)
    assert "| vit | `ViT` | yes | 3 | exact | 1 / 2 | 1 attention: *nothing is said* |" in text
    assert "natten \\| more" in text
    assert "2 rows, 1 of them tried." in totals(rows)

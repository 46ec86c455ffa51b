"""Sentences from numbers and names."""

from __future__ import annotations


def test_names_that_differ_in_their_number_are_one():
    from stabwatch.alerts.templates import group_names

    names = ["d.layers.9.attn", "head", "d.layers.30.attn", "d.layers.9.mlp", "d.layers.63.attn", "head"]
    assert group_names(names) == ["d.layers.{9, 30, 63}.attn", "head", "d.layers.9.mlp"]
    assert group_names([f"h.{i}.1.x" for i in range(9)]) == ["h.{0, 1, 2, 3, 4, 5 and 3 more}.1.x"]
    assert group_names([]) == []

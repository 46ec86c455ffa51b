"""Tensors in nested inputs and outputs."""

from collections import UserDict

import torch

from stabwatch.hooks.base.tensors import NESTED, tensors_in


def test_they_come_in_order_out_of_lists_and_dictionaries() -> None:
    a, b, c, d = (torch.full((1,), float(i)) for i in range(4))
    found = list(tensors_in((a, "text", [b, {"x": c}], UserDict(y=[d]), None)))
    assert [int(x) for x in found] == [0, 1, 2, 3]


def test_a_list_that_holds_itself_ends() -> None:
    x = torch.zeros(1)
    around: list[object] = [x]
    around.append(around)
    assert len(list(tensors_in(around))) == NESTED


def test_of_a_long_list_only_so_many_members_are_looked_at() -> None:
    assert len(list(tensors_in([torch.zeros(1)] * 100, most=8))) == 8

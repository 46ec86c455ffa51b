"""A checksum sees every bit, whatever the type, and is the same wherever the numbers lie."""

from __future__ import annotations

import pytest
import torch

from stabwatch.kernels.checksum import PRIME, checksums

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.float8_e4m3fn)


def _of(*tensors):
    return checksums(tensors, [0] * len(tensors), 1).item()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 5), (4, 6)])
def test_every_bit_counts(dtype, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(20).to(dtype)
    before, size = _of(x), x.element_size()
    words = x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    for bit in range(8 * size):
        for place in ((0, 0), (2, 4)):
            mask = torch.tensor(1, dtype=torch.int64).bitwise_left_shift(bit).to(words.dtype)
            words[place] ^= mask
            assert 0 <= _of(x) < PRIME and _of(x) != before
            words[place] ^= mask
    assert _of(x) == before


def test_memory_format_and_place_do_not_count():
    x = torch.randn(2, 4, 6, 8)
    assert _of(x) == _of(x.to(memory_format=torch.channels_last))
    moved = torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    assert moved.data_ptr() % 8 and _of(moved) == _of(x)


def test_groups_add_up():
    a, b, c = torch.randn(4), torch.randn(5), torch.ones(3, dtype=torch.bool)
    one, other = checksums([a, b, c], [0, 1, 0], 2).tolist()
    assert other == _of(b) and one == (_of(a) + _of(c)) % PRIME

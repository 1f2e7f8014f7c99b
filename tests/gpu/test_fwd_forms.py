"""Forms of a forward kernel, one CTA per tile and a pair of them: the same bits, on every device.

Where a device has one form alone, both calls take it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func
from flash_attn4._library import LIBRARY_PATH


@contextmanager
def forced(ctas: int) -> Iterator[None]:
    """Calls take the form with so many CTAs per tile."""
    force = ctypes.CDLL(str(LIBRARY_PATH)).fa4_force_ctas
    force(ctas)
    try:
        yield
    finally:
        force(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(300, 700), (513, 385), (1200, 1200)], ids=str)
@pytest.mark.parametrize("head_dims", [(64, 64), (128, 128), (192, 128)], ids=str)
def test_forms_give_the_same_bits(
    head_dims: tuple[int, int], lengths: tuple[int, int], causal: bool, device: Device
) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v = (
        torch.randn(1, rows, heads, dim, generator=generator).bfloat16().to(device.torch)
        for rows, heads, dim in (
            (lengths[0], 2, head_dims[0]),
            (lengths[1], 1, head_dims[0]),
            (lengths[1], 1, head_dims[1]),
        )
    )
    results: list[tuple[Tensor, Tensor]] = []
    for ctas in (1, 2):
        with forced(ctas):
            try:
                results.append(flash_attn_func(q, k, v, causal=causal, return_lse=True))
            except NotImplementedError as reason:
                pytest.skip(str(reason))
    (out, lse), (other, other_lse) = results
    assert torch.equal(out, other)
    assert torch.equal(lse, other_lse)

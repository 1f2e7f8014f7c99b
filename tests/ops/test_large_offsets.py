"""Offsets past 2^31 elements. The rows lie far apart in memory that is never touched in between."""

from __future__ import annotations

import pytest
import torch
from conftest import Device

from flash_attn4 import flash_attn_func

ROW_STRIDE = 2**30
HEAD_DIM = 64


def spread(x: torch.Tensor) -> torch.Tensor:
    """x, (1, 3, 1, head_dim), as a tensor whose last row starts at element 2^31."""
    storage = torch.empty(2 * ROW_STRIDE + HEAD_DIM, dtype=x.dtype, device=x.device)
    far = storage.as_strided(x.shape, (1, ROW_STRIDE, HEAD_DIM, 1))
    far.copy_(x)
    return far


@pytest.mark.parametrize("backward", [False, True])
def test_offsets_past_2_to_the_31(backward: bool, device: Device) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 1, 3, 1, HEAD_DIM)
    q, k, v, dout = torch.randn(shape, generator=generator).to(device.torch, torch.bfloat16)
    results = []
    for place in (torch.clone, spread):
        near = [place(x).requires_grad_() for x in (q, k, v)]
        out = flash_attn_func(*near, causal=True)
        results.append([out, *(torch.autograd.grad(out, near, dout) if backward else ())])
    names = ("out", "dq", "dk", "dv")[: len(results[0])]
    for name, small, large in zip(names, *results, strict=True):
        assert torch.equal(small, large), name


def test_out_variants_past_2_to_the_31(device: Device) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 3, 1, HEAD_DIM, generator=generator).to(
        device.torch, torch.bfloat16
    )
    expected, lse = torch.ops.fa4.fwd(q, k, v)
    out = spread(torch.zeros_like(q))
    torch.ops.fa4.fwd_out(q, k, v, out=out, lse=torch.empty_like(lse))
    assert torch.equal(out, expected)

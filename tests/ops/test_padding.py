"""Packing padded batches and back."""

from __future__ import annotations

import pytest
import torch
from conftest import Device

from flash_attn4 import flash_attn_func, flash_attn_varlen_func, pad_input, unpad_input

MASK = torch.tensor(
    [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1]], dtype=torch.int64
)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_unpad_and_pad(dtype: torch.dtype, device: Device) -> None:
    hidden = torch.randn(4, 5, 3, 2, device=device.torch)
    mask = MASK.to(device.torch)
    packed, indices, cu_seqlens, max_seqlen, used = unpad_input(hidden, mask.to(dtype))
    assert torch.equal(packed, hidden[mask.bool()])
    assert indices.tolist() == MASK.flatten().nonzero().flatten().tolist()
    assert cu_seqlens.tolist() == [0, 3, 3, 8, 11]
    assert cu_seqlens.dtype == torch.int32
    assert max_seqlen == 5
    assert used.tolist() == [3, 0, 5, 3]
    padded = pad_input(packed, indices, 4, 5)
    assert torch.equal(padded, hidden * mask[:, :, None, None])


def test_unpad_with_unused_rows(device: Device) -> None:
    hidden = torch.randn(2, 4, device=device.torch)[..., None]
    attention = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], device=device.torch)
    unused = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1]], device=device.torch)
    packed, _, cu_seqlens, max_seqlen, used = unpad_input(hidden, attention, unused)
    assert packed.shape == (7, 1)
    assert cu_seqlens.tolist() == [0, 3, 7]
    assert max_seqlen == 4
    assert used.tolist() == [2, 1]
    assert used.dtype == torch.int32


def test_padding_gradients(device: Device) -> None:
    hidden = torch.randn(4, 5, 3, device=device.torch, requires_grad=True)
    mask = MASK.to(device.torch)
    packed, indices, *_ = unpad_input(hidden, mask)
    weight = torch.randn(4, 5, 3, device=device.torch)
    (pad_input(packed, indices, 4, 5) * weight).sum().backward()
    assert torch.equal(hidden.grad, weight * mask[:, :, None])


def test_padded_attention_through_packing(device: Device) -> None:
    """Packing, varlen attention and padding give what seqused_k gives on the padded batch."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 60, 17]
    q, k, v = (
        torch.randn(3, 60, 2, 16, generator=generator).to(device.torch, device.dtype)
        for _ in range(3)
    )
    mask = torch.arange(60)[None, :] < torch.tensor(lengths)[:, None]
    mask = mask.to(device.torch)
    packed_q, indices, cu_seqlens, max_seqlen, used = unpad_input(q, mask)
    packed_k, packed_v = unpad_input(k, mask)[0], unpad_input(v, mask)[0]
    packed = flash_attn_varlen_func(
        packed_q, packed_k, packed_v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    )
    expected = flash_attn_func(q, k, v, seqused_k=used)
    torch.testing.assert_close(
        pad_input(packed, indices, 3, 60)[mask], expected[mask], **device.tolerance(1e-6)
    )


def test_unpad_refuses_wrong_mask() -> None:
    with pytest.raises(ValueError, match=r"unpad_input: attention_mask: .*\(4, 5\), got \(4, 6\)"):
        unpad_input(torch.zeros(4, 5, 2), torch.ones(4, 6))
    with pytest.raises(ValueError, match="unpad_input: unused_mask: "):
        unpad_input(torch.zeros(4, 5, 2), torch.ones(4, 5), torch.ones(20))

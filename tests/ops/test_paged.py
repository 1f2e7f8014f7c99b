"""Keys and values in pages: forward only."""

from __future__ import annotations

import pytest
import torch
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func

LENGTHS = [37, 0, 64, 5]


def make_pages(page_size: int, device: Device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pages of k and v in random order, table, lengths, and k, v as a dense batch; unused: NaN."""
    generator = torch.Generator().manual_seed(page_size)
    batch, longest = len(LENGTHS), max(LENGTHS)
    per_sequence = -(-longest // page_size)
    num_pages = batch * per_sequence + 3
    k_pages = torch.full((num_pages, page_size, 2, 32), torch.nan)
    v_pages = torch.full((num_pages, page_size, 2, 16), torch.nan)
    order = torch.randperm(num_pages, generator=generator)[: batch * per_sequence]
    table = order.reshape(batch, per_sequence).to(torch.int32)
    k = torch.randn(batch, longest, 2, 32, generator=generator)
    v = torch.randn(batch, longest, 2, 16, generator=generator)
    for i, length in enumerate(LENGTHS):
        for j in range(length):
            page, row = int(table[i, j // page_size]), j % page_size
            k_pages[page, row], v_pages[page, row] = k[i, j], v[i, j]
        # Entries behind the last used page are never followed.
        table[i, -(-length // page_size) :] = 10**9
    seqused = torch.tensor(LENGTHS, dtype=torch.int32)
    on_device = [x.to(device.torch) for x in (k_pages, v_pages, table, seqused)]
    return (*on_device, k.to(device.torch), v.to(device.torch))


@pytest.mark.parametrize("page_size", [1, 16, 24, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_paged_equals_dense(page_size: int, causal: bool, device: Device) -> None:
    k_pages, v_pages, table, seqused, k, v = make_pages(page_size, device)
    q = torch.randn(len(LENGTHS), 10, 4, 32, generator=torch.Generator().manual_seed(0))
    q = q.to(device.torch)
    arguments = {"causal": causal, "seqused_k": seqused, "return_lse": True}
    expected, expected_lse = flash_attn_func(q, k, v, **arguments)
    out, lse = flash_attn_func(q, k_pages, v_pages, page_table=table, **arguments)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lse, expected_lse, atol=1e-6, rtol=1e-6)


def test_paged_varlen_equals_dense(device: Device) -> None:
    k_pages, v_pages, table, seqused, k, v = make_pages(16, device)
    lengths_q = [1, 3, 10, 0]
    q = torch.randn(sum(lengths_q), 4, 32, generator=torch.Generator().manual_seed(0))
    q = q.to(device.torch)
    cu_seqlens_q = torch.tensor([0, *lengths_q]).cumsum(0).to(torch.int32).to(device.torch)
    out = flash_attn_varlen_func(
        q,
        k_pages,
        v_pages,
        cu_seqlens_q,
        None,
        max(lengths_q),
        max(LENGTHS),
        causal=True,
        seqused_k=seqused,
        page_table=table,
        window_size=(20, -1),
    )
    for i, length_k in enumerate(LENGTHS):
        rows = slice(int(cu_seqlens_q[i]), int(cu_seqlens_q[i + 1]))
        keys = k[i : i + 1, :length_k], v[i : i + 1, :length_k]
        expected = flash_attn_func(q[None, rows], *keys, causal=True, window_size=(20, -1))
        torch.testing.assert_close(out[rows], expected[0], atol=1e-6, rtol=1e-6)


def test_paged_strided_cache(device: Device) -> None:
    """k and v as the two halves of one cache, heads before rows."""
    cache = torch.randn(2, 9, 2, 16, 32, generator=torch.Generator().manual_seed(5))
    cache = cache.to(device.torch)
    k, v = cache.transpose(2, 3)
    table = torch.tensor([[8, 2, 3], [0, 5, 1]], dtype=torch.int32, device=device.torch)
    seqused = torch.tensor([40, 48], dtype=torch.int32, device=device.torch)
    q = torch.randn(2, 4, 2, 32, generator=torch.Generator().manual_seed(6)).to(device.torch)
    arguments = {"seqused_k": seqused, "page_table": table}
    expected = flash_attn_func(q, k.contiguous(), v.contiguous(), **arguments)
    assert torch.equal(flash_attn_func(q, k, v, **arguments), expected)


def test_paged_has_no_backward(device: Device) -> None:
    """The forward works where gradients are recorded; asking for them is refused."""
    k_pages, v_pages, table, seqused, _, _ = make_pages(16, device)
    q = torch.randn(len(LENGTHS), 10, 4, 32, device=device.torch, requires_grad=True)
    arguments = {"seqused_k": seqused, "page_table": table}
    out = flash_attn_func(q, k_pages, v_pages, **arguments)
    with pytest.raises(NotImplementedError, match="page_table: paged attention has no backward"):
        out.sum().backward()
    out, _ = torch.ops.fa4.fwd(q, k_pages, v_pages, **arguments)
    with pytest.raises(NotImplementedError, match="page_table: paged attention has no backward"):
        out.sum().backward()

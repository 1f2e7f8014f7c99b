"""What attention is compared with: torch's own attention, and the rate of torch's matmul."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MATMUL_SIZE = 1024


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """torch's attention on tensors in this project's layout, (batch, seqlen, heads, head_dim).

    torch aligns a causal mask to the first key, flash_attn4 to the last: they mean the same only
    for equal lengths.
    """
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"sdpa: causal: needs equal lengths, got seqlen_q={q.shape[1]}, seqlen_k={k.shape[1]}"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
    return out.transpose(1, 2)


def matmul(dtype: torch.dtype, device: str) -> tuple[Callable[[], Tensor], float]:
    """A square matmul and its floating-point operations."""
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * MATMUL_SIZE**3

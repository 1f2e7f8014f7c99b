"""Attention written down twice: in float64, and as eager torch in the working precision.

`attend` handles one sequence and is differentiable; everything else cuts dense, packed or paged
tensors into sequences, calls it, and puts the pieces back. Rows that belong to no sequence are 0 in
out and in gradients and -inf in lse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """Arguments of attention that do not depend on the layout of the tensors."""

    softmax_scale: float | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: Tensor | None = None

    def scale(self, head_dim: int) -> float:
        return head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale


@dataclass(frozen=True)
class Span:
    """One sequence: indices that select its (rows, heads, dim) from q and from k and v."""

    q: tuple[int | slice, ...]
    k: tuple[int | slice, ...]
    lse: tuple[int | slice, ...]


def visible_mask(seqlen_q: int, seqlen_k: int, causal: bool, window: tuple[int, int]) -> Tensor:
    """(seqlen_q, seqlen_k), True where the query sees the key; aligned to the end of the keys."""
    left, right = window
    if causal:
        right = 0
    position = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    key = torch.arange(seqlen_k)[None, :]
    visible = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if left >= 0:
        visible &= key >= position - left
    if right >= 0:
        visible &= key <= position + right
    return visible


def attend(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """q (sq, hq, d), k (sk, hk, d), v (sk, hk, dv) -> out (sq, hq, dv), lse (hq, sq).

    Computes in the element type of q throughout, as eager torch does: scores, probabilities and
    products are rounded to it. float64 inputs make it the reference.
    """
    seqlen_q, heads_q, head_dim = q.shape
    seqlen_k, heads_k, _ = k.shape
    group = heads_q // heads_k
    keys = k.repeat_interleave(group, dim=1).permute(1, 2, 0)
    values = v.repeat_interleave(group, dim=1).transpose(0, 1)
    scores = (q * options.scale(head_dim)).transpose(0, 1) @ keys
    if options.softcap > 0:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    visible = visible_mask(seqlen_q, seqlen_k, options.causal, options.window).to(q.device)
    visible = visible.expand(heads_q, seqlen_q, seqlen_k)
    if options.sink is not None:
        column = options.sink.to(scores.dtype)[:, None, None].expand(heads_q, seqlen_q, 1)
        scores = torch.cat([scores, column], dim=-1)
        visible = torch.cat([visible, torch.ones_like(column, dtype=torch.bool)], dim=-1)
    row_visible = visible.any(dim=-1, keepdim=True)
    # Rows without keys get finite scores, so that neither exp nor its gradient meets inf - inf.
    scores = torch.where(row_visible & ~visible, -math.inf, torch.where(visible, scores, 0.0))
    if scores.shape[-1] == 0:
        lse = q.new_full((heads_q, seqlen_q), -math.inf)
        return v.new_zeros(seqlen_q, heads_q, v.shape[-1]), lse
    lse = torch.logsumexp(scores, dim=-1)
    lse = torch.where(row_visible[..., 0], lse, -math.inf)
    weights = torch.where(row_visible, torch.softmax(scores, dim=-1), 0.0)[..., :seqlen_k]
    return (weights @ values).transpose(0, 1), lse


def largest_score(q: Tensor, k: Tensor, spans: list[Span], options: Options) -> float:
    """Largest absolute value of q k^T softmax_scale over all spans, masked or not."""
    largest = 0.0
    group = q.shape[-2] // k.shape[-2]
    for span in spans:
        keys = k[span.k].double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[span.q].double(), keys)
        if scores.numel():
            largest = max(largest, scores.abs().max().item() * options.scale(q.shape[-1]))
    return largest


def dense_spans(
    batch: int, seqlen_q: int, seqlen_k: int, seqused_k: Tensor | None = None
) -> Iterator[Span]:
    used = [seqlen_k] * batch if seqused_k is None else seqused_k.tolist()
    for i in range(batch):
        yield Span(q=(i,), k=(i, slice(0, used[i])), lse=(i,))


def packed_spans(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Iterator[Span]:
    rows_q, rows_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(rows_q) - 1):
        end_q = rows_q[i + 1] if seqused_q is None else rows_q[i] + int(seqused_q[i])
        end_k = rows_k[i + 1] if seqused_k is None else rows_k[i] + int(seqused_k[i])
        span_q = slice(rows_q[i], end_q)
        yield Span(q=(span_q,), k=(slice(rows_k[i], end_k),), lse=(slice(None), span_q))


def attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Iterator[Span], options: Options
) -> tuple[Tensor, Tensor]:
    """out and lse of all spans, differentiable, in the element type of q."""
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    lse_shape = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    lse = q.new_full(lse_shape, -math.inf)
    for span in spans:
        out_span, lse_span = attend(q[span.q], k[span.k], v[span.k], options)
        out[span.q], lse[span.lse] = out_span, lse_span
    return out, lse


@dataclass(frozen=True)
class Gradients:
    q: Tensor
    k: Tensor
    v: Tensor
    sink: Tensor | None = None


def attention_and_gradients(
    inputs: tuple[Tensor, Tensor, Tensor],
    spans: list[Span],
    options: Options,
    dout: Tensor,
    dlse: Tensor | None = None,
    *,
    eager: bool = False,
) -> tuple[Tensor, Tensor, Gradients]:
    """out, lse and gradients in float64, or, for `eager`, in the element type of the inputs."""
    dtype = inputs[0].dtype if eager else torch.float64
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs)
    sink = options.sink
    if sink is not None:
        sink = sink.detach().to(sink.dtype if eager else torch.float64).requires_grad_()
    out, lse = attention(q, k, v, iter(spans), replace(options, sink=sink))
    results, seeds = [out], [dout.to(dtype)]
    if dlse is not None:
        # Rows at -inf are constants: their gradient is cut here, not multiplied by 0.
        finite = torch.isfinite(lse)
        results.append(lse[finite])
        seeds.append(dlse.to(dtype)[finite])
    leaves = [q, k, v] if sink is None else [q, k, v, sink]
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if out.requires_grad:
        gradients = torch.autograd.grad(results, leaves, seeds, allow_unused=True)
    filled = [
        torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)
    ]
    return out.detach(), lse.detach(), Gradients(*filled)


def gather_pages(pages: Tensor, page_table: Tensor) -> Tensor:
    """(pages, page_size, heads, dim), (batch, n) -> (batch, n * page_size, heads, dim)."""
    batch, per_sequence = page_table.shape
    return pages[page_table.long()].reshape(batch, per_sequence * pages.shape[1], *pages.shape[2:])


def combine(out_partial: Tensor, lse_partial: Tensor) -> tuple[Tensor, Tensor]:
    """float64 merge of (splits, ..., heads, dv) and (splits, ..., heads)."""
    lse_partial = lse_partial.double()
    lse = torch.logsumexp(lse_partial, dim=0)
    weights = torch.exp(lse_partial - torch.where(torch.isfinite(lse), lse, 0.0))
    seen = torch.isfinite(lse_partial)[..., None]
    terms = torch.where(seen, weights[..., None] * out_partial.double(), 0.0)
    return terms.sum(dim=0), lse

"""The functions users call: defaults, documentation, one op call each."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from flash_attn4._library import python_error
from flash_attn4.autograd import attention, varlen_attention

Int = int | torch.SymInt

_combine = torch.ops.fa4.combine.default


@overload
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention, softmax(q @ k.T * softmax_scale) @ v, without storing the score matrix.

    q: (batch, seqlen_q, heads_q, head_dim), float16, bfloat16 or float32 (CPU only); head_dim is a
        multiple of 8 up to 256. Last dimension contiguous, any other strides, here and below. On a
        GPU q, k and v are copied first unless its copy engine can read them where they lie, at
        addresses that are multiples of 16 bytes, with strides that are multiples of 8 elements.
    k: (batch, seqlen_k, heads_k, head_dim); heads_q is a multiple of heads_k.
    v: (batch, seqlen_k, heads_k, head_dim_v); head_dim_v is a multiple of 8 up to 256.
    softmax_scale: factor on the scores, finite and > 0; None means head_dim ** -0.5. torch.compile
        compiles anew for each value: fold a factor that varies into q.
    causal: query row r sees the keys up to r + seqlen_k - seqlen_q: queries are aligned to the end.
    window_size: (left, right) in tokens around that key, -1 is unbounded; causal=True sets right to
        0.
    softcap: scores become softcap * tanh(score / softcap); 0 is off.
    learnable_sink: (heads_q,), floating point: the logit of a key without value, added to every
        row.
    seqused_k: (batch,), int32, keys that count per sequence; None means all of them. What lies
        behind them is never read into a result, NaN included.
    page_table: (batch, pages per sequence), int32. k and v are then pages, (num_pages, page_size,
        heads_k, head_dim or head_dim_v), seqused_k is required and there is no backward.
    num_splits: number of parts the keys are worked on in; 0 lets the library choose.
    deterministic: whether the backward repeats bit for bit;
        torch.use_deterministic_algorithms(True) asks for the same.
    return_lse: whether to return lse as well.

    Returns out, (batch, seqlen_q, heads_q, head_dim_v), typed like q. With return_lse also lse:
    (batch, heads_q, seqlen_q), float32, natural logarithm of the row's sum of exponentials, sink
    included. A row that sees no key has out = 0, lse = -inf (without sink) and gradient 0. Both are
    differentiable, with respect to q, k, v and learnable_sink, once.

    Raises ValueError for a shape, length or window, TypeError for a dtype, NotImplementedError when
    no kernel fits; the message names the argument, the rule and the value. Inside a graph of
    torch.compile the same text arrives as RuntimeError.
    """
    window_left, window_right = _pair("flash_attn_func", window_size)
    try:
        options = softmax_scale, causal, window_left, window_right, softcap, learnable_sink
        out, lse = attention(deterministic, (q, k, v, *options, seqused_k, page_table, num_splits))
    except RuntimeError as error:
        raise python_error("flash_attn_func", error) from None
    return (out, lse) if return_lse else out


@overload
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: Int | Tensor,
    max_seqlen_k: Int | Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: Int | Tensor,
    max_seqlen_k: Int | Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: Int | Tensor,
    max_seqlen_k: Int | Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[Int, Int] = (-1, -1),
    softcap: float = 0.0,
    learnable_sink: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    num_splits: Int = 1,
    deterministic: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """flash_attn_func for sequences of different lengths, packed one behind the other.

    q: (total_q, heads_q, head_dim), float16, bfloat16 or float32 (CPU only).
    k: (total_k, heads_k, head_dim); v: (total_k, heads_k, head_dim_v).
    cu_seqlens_q, cu_seqlens_k: (batch + 1,), int32: sequence i is rows cu_seqlens[i] to
        cu_seqlens[i + 1]. Sequences may be empty. cu_seqlens_k is None when, and only when,
        page_table is given.
    max_seqlen_q, max_seqlen_k: no sequence is longer, in tokens; larger bounds are fine. A tensor
        of one element is read, which waits for the device: pass an int where that matters.
    seqused_q, seqused_k: (batch,), int32, rows that count per sequence, at most the rows present;
        None means all of them. What lies behind them is never read into a result.
    page_table: (batch, pages per sequence), int32. k and v are then pages, (num_pages, page_size,
        heads_k, head_dim or head_dim_v), seqused_k is required and there is no backward.
    All other arguments: as in flash_attn_func.

    Returns out, (total_q, heads_q, head_dim_v), typed like q. With return_lse also lse: (heads_q,
    total_q), float32. Rows that belong to no sequence, or lie behind seqused_q, have out = 0, lse =
    -inf and gradient 0.

    Raises as flash_attn_func does, ValueError also for cu_seqlens and seqused that do not fit; on
    CUDA their contents are not read and not checked.
    """
    window_left, window_right = _pair("flash_attn_varlen_func", window_size)
    if isinstance(max_seqlen_q, Tensor):
        max_seqlen_q = _read_length("max_seqlen_q", max_seqlen_q)
    if isinstance(max_seqlen_k, Tensor):
        max_seqlen_k = _read_length("max_seqlen_k", max_seqlen_k)
    try:
        sequences = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        options = softmax_scale, causal, window_left, window_right, softcap, learnable_sink
        lengths = seqused_q, seqused_k, page_table, num_splits
        out, lse = varlen_attention(deterministic, (q, k, v, *sequences, *options, *lengths))
    except RuntimeError as error:
        raise python_error("flash_attn_varlen_func", error) from None
    return (out, lse) if return_lse else out


def _pair(function: str, window_size: tuple[Int, Int]) -> tuple[Int, Int]:
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise ValueError(
            f"{function}: window_size: must be a pair (left, right), got {window_size!r}"
        ) from None
    return left, right


def _read_length(name: str, length: Tensor) -> int:
    if length.numel() != 1 or length.is_floating_point():
        raise ValueError(
            f"flash_attn_varlen_func: {name}: must be one integer, got a tensor of shape "
            f"{tuple(length.shape)}, {length.dtype}"
        )
    return int(length.item())


def flash_attn_combine(
    out_partial: Tensor, lse_partial: Tensor, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Merges attention over disjoint parts of the keys into attention over all of them.

    out_partial: (splits, batch, seqlen, heads, head_dim_v) or (splits, total, heads, head_dim_v),
        float16, bfloat16 or float32, last dimension contiguous; at most 256 splits.
    lse_partial: out_partial's shape without the last dimension, float32, any strides. Heads come
        last, unlike in the lse of flash_attn_func: pass lse.transpose(-1, -2). Where it is -inf the
        split saw no key and its out_partial may hold anything.
    out_dtype: element type of out; None means that of out_partial.

    Returns out, out_partial's shape without the splits, and lse, lse_partial's shape without the
    splits, float32. Both are differentiable.

    Raises ValueError for a shape, TypeError for a dtype.
    """
    try:
        out, lse = _combine(out_partial, lse_partial, out_dtype)
    except RuntimeError as error:
        raise python_error("flash_attn_combine", error) from None
    return out, lse

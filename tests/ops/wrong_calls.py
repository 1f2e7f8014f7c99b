"""The table of wrong calls: what is changed in a right one, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wrong:
    """One wrong call: arguments that differ from a right one, and what must come of it.

    A callable is applied to the right argument. The message is "<function>: " and `text`.
    """

    change: dict[str, Any]
    error: type[Exception]
    text: str
    contents: bool = False  # about values in int32 tensors, which stay unread on a GPU

    def __str__(self) -> str:
        return self.text


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def last_dim_strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1)[..., 0]


DENSE = [
    # Kinds of arguments.
    Wrong({"q": [[1.0]]}, TypeError, "q: must be Tensor, got list"),
    Wrong({"k": None}, TypeError, "k: must be Tensor, got NoneType"),
    Wrong({"softmax_scale": "1"}, TypeError, "softmax_scale: must be float or None, got str"),
    Wrong({"softcap": None}, TypeError, "softcap: must be float, got NoneType"),
    Wrong({"num_splits": 1.5}, TypeError, "num_splits: must be int, got float"),
    Wrong(
        {"learnable_sink": [0.0] * 4}, TypeError, "learnable_sink: must be Tensor or None, got list"
    ),
    Wrong({"seqused_k": [7, 7]}, TypeError, "seqused_k: must be Tensor or None, got list"),
    Wrong({"window_size": 5}, ValueError, "window_size: must be a pair (left, right), got 5"),
    Wrong(
        {"window_size": (1, 2, 3)},
        ValueError,
        "window_size: must be a pair (left, right), got (1, 2, 3)",
    ),
    Wrong({"window_size": (None, None)}, TypeError, "window_size[0]: must be int, got NoneType"),
    Wrong({"window_size": (3, 0.5)}, TypeError, "window_size[1]: must be int, got float"),
    # Shapes.
    Wrong(
        {"q": lambda q: q[0]},
        ValueError,
        "q: must have shape (batch, seqlen_q, heads_q, head_dim), got (5, 4, 16)",
    ),
    Wrong(
        {"k": lambda k: k[..., None]},
        ValueError,
        "k: must have shape (batch, seqlen_k, heads_k, head_dim), got (2, 7, 2, 16, 1)",
    ),
    Wrong(
        {"v": lambda v: v[0, 0]},
        ValueError,
        "v: must have shape (batch, seqlen_k, heads_k, head_dim_v), got (2, 24)",
    ),
    Wrong({"k": lambda k: k[:1]}, ValueError, "k: batch must be 2, got 1 in shape (1, 7, 2, 16)"),
    Wrong(
        {"v": lambda v: v[:1]},
        ValueError,
        "v: every dimension but the last of k must be 2, got 1 in shape (1, 7, 2, 24)",
    ),
    Wrong(
        {"v": lambda v: v[:, :6]},
        ValueError,
        "v: every dimension but the last of k must be 7, got 6 in shape (2, 6, 2, 24)",
    ),
    Wrong(
        {"v": lambda v: v[:, :, :1]},
        ValueError,
        "v: every dimension but the last of k must be 2, got 1 in shape (2, 7, 1, 24)",
    ),
    Wrong(
        {"k": torch.zeros(2, 7, 2, 8)},
        ValueError,
        "k: head_dim must be 16, got 8 in shape (2, 7, 2, 8)",
    ),
    Wrong(
        {"q": torch.zeros(2, 5, 3, 16)},
        ValueError,
        "k: heads_k must be positive and divide heads_q, got heads_q=3, heads_k=2",
    ),
    Wrong(
        {"k": torch.zeros(2, 7, 0, 16), "v": torch.zeros(2, 7, 0, 24)},
        ValueError,
        "k: heads_k must be positive and divide heads_q, got heads_q=4, heads_k=0",
    ),
    Wrong(
        {"q": lambda q: q[..., :12], "k": lambda k: k[..., :12]},
        ValueError,
        "q: head_dim must be a positive multiple of 8, got 12",
    ),
    Wrong(
        {"q": lambda q: q[..., :0], "k": lambda k: k[..., :0]},
        ValueError,
        "q: head_dim must be a positive multiple of 8, got 0",
    ),
    Wrong(
        {"v": lambda v: v[..., :20]},
        ValueError,
        "v: head_dim must be a positive multiple of 8, got 20",
    ),
    Wrong(
        {"q": torch.zeros(2, 5, 4, 264), "k": torch.zeros(2, 7, 2, 264)},
        NotImplementedError,
        "no fwd kernel for this call on cpu: fwd_cpu: head_dim is 264 (serves 8..256)",
    ),
    Wrong(
        {"v": torch.zeros(2, 7, 2, 512)},
        NotImplementedError,
        "no fwd kernel for this call on cpu: fwd_cpu: head_dim_v is 512 (serves 8..256)",
    ),
    # Element types.
    Wrong(
        {"q": lambda q: q.double()}, TypeError, "k: must have the dtype of q (float64), got float32"
    ),
    Wrong(
        {"k": lambda k: k.half()}, TypeError, "k: must have the dtype of q (float32), got float16"
    ),
    Wrong(
        {"v": lambda v: v.bfloat16()},
        TypeError,
        "v: must have the dtype of q (float32), got bfloat16",
    ),
    Wrong(
        {name: lambda x: x.double() for name in "qkv"},
        TypeError,
        "q: must be float16, bfloat16 or float32, got float64",
    ),
    Wrong(
        {name: lambda x: x.to(torch.int32) for name in "qkv"},
        TypeError,
        "q: must be float16, bfloat16 or float32, got int32",
    ),
    # Strides and devices.
    Wrong(
        {"q": last_dim_strided},
        ValueError,
        "q: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"k": last_dim_strided},
        ValueError,
        "k: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"v": lambda v: v.transpose(-1, -2).contiguous().transpose(-1, -2)},
        ValueError,
        "v: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"k": lambda k: k.to("meta")}, ValueError, "k: must be on the device of q (cpu), got meta"
    ),
    # Numbers.
    Wrong(
        {"softmax_scale": 0.0}, ValueError, "softmax_scale: must be finite and > 0, got 0.000000"
    ),
    Wrong(
        {"softmax_scale": -1.0}, ValueError, "softmax_scale: must be finite and > 0, got -1.000000"
    ),
    Wrong(
        {"softmax_scale": float("nan")},
        ValueError,
        "softmax_scale: must be finite and > 0, got nan",
    ),
    Wrong(
        {"softmax_scale": float("inf")},
        ValueError,
        "softmax_scale: must be finite and > 0, got inf",
    ),
    Wrong(
        {"softcap": -1.0}, ValueError, "softcap: must be finite and >= 0 (0 is off), got -1.000000"
    ),
    Wrong(
        {"softcap": float("inf")},
        ValueError,
        "softcap: must be finite and >= 0 (0 is off), got inf",
    ),
    Wrong(
        {"window_size": (-2, 0)},
        ValueError,
        "window_size[0]: must be -1 (unbounded) or a number of tokens >= 0, got -2",
    ),
    Wrong(
        {"window_size": (0, -7)},
        ValueError,
        "window_size[1]: must be -1 (unbounded) or a number of tokens >= 0, got -7",
    ),
    Wrong({"num_splits": -1}, ValueError, "num_splits: must be within 0 (automatic)..256, got -1"),
    Wrong(
        {"num_splits": 257}, ValueError, "num_splits: must be within 0 (automatic)..256, got 257"
    ),
    # learnable_sink.
    Wrong(
        {"learnable_sink": torch.zeros(3)},
        ValueError,
        "learnable_sink: heads_q must be 4, got 3 in shape (3,)",
    ),
    Wrong(
        {"learnable_sink": torch.zeros(1, 4)},
        ValueError,
        "learnable_sink: must have shape (heads_q,), got (1, 4)",
    ),
    Wrong(
        {"learnable_sink": torch.zeros(8)[::2]},
        ValueError,
        "learnable_sink: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"learnable_sink": torch.zeros(4).double()},
        TypeError,
        "learnable_sink: must be float16, bfloat16 or float32, got float64",
    ),
    # seqused_k.
    Wrong({"seqused_k": int32(7, 7).long()}, TypeError, "seqused_k: must be int32, got int64"),
    Wrong(
        {"seqused_k": int32(7, 7, 7)},
        ValueError,
        "seqused_k: number of entries must be 2, got 3 in shape (3,)",
    ),
    Wrong(
        {"seqused_k": int32(7, 7)[None]},
        ValueError,
        "seqused_k: must have shape (batch,), got (1, 2)",
    ),
    Wrong(
        {"seqused_k": int32(7, 8)},
        ValueError,
        "seqused_k: must lie in [0, 7], the rows present, got 8 at index 1",
        contents=True,
    ),
    Wrong(
        {"seqused_k": int32(-1, 7)},
        ValueError,
        "seqused_k: must lie in [0, 7], the rows present, got -1 at index 0",
        contents=True,
    ),
]

VARLEN = [
    Wrong({"cu_seqlens_q": None}, TypeError, "cu_seqlens_q: must be Tensor, got NoneType"),
    Wrong({"cu_seqlens_q": [0, 10]}, TypeError, "cu_seqlens_q: must be Tensor, got list"),
    Wrong(
        {"cu_seqlens_k": None},
        ValueError,
        "cu_seqlens_k: must be given without page_table, got None",
    ),
    Wrong({"max_seqlen_q": None}, TypeError, "max_seqlen_q: must be int, got NoneType"),
    Wrong({"max_seqlen_k": 8.0}, TypeError, "max_seqlen_k: must be int, got float"),
    Wrong(
        {"max_seqlen_q": int32(5, 6)},
        ValueError,
        "max_seqlen_q: must be one integer, got a tensor of shape (2,), torch.int32",
    ),
    Wrong(
        {"max_seqlen_k": torch.tensor(8.0)},
        ValueError,
        "max_seqlen_k: must be one integer, got a tensor of shape (), torch.float32",
    ),
    Wrong({"window_size": 5}, ValueError, "window_size: must be a pair (left, right), got 5"),
    Wrong(
        {"q": lambda q: q[None]},
        ValueError,
        "q: must have shape (total_q, heads_q, head_dim), got (1, 10, 4, 16)",
    ),
    Wrong(
        {"k": lambda k: k[None]},
        ValueError,
        "k: must have shape (total_k, heads_k, head_dim), got (1, 14, 2, 16)",
    ),
    Wrong(
        {"v": lambda v: v[:13]},
        ValueError,
        "v: every dimension but the last of k must be 14, got 13 in shape (13, 2, 24)",
    ),
    Wrong(
        {"cu_seqlens_q": int32(0, 4, 10).long()},
        TypeError,
        "cu_seqlens_q: must be int32, got int64",
    ),
    Wrong(
        {"cu_seqlens_k": int32(0, 8, 14).long()},
        TypeError,
        "cu_seqlens_k: must be int32, got int64",
    ),
    Wrong(
        {"cu_seqlens_q": int32(0, 4, 10)[None]},
        ValueError,
        "cu_seqlens_q: must have shape (batch + 1,), got (1, 3)",
    ),
    Wrong(
        {"cu_seqlens_q": int32()},
        ValueError,
        "cu_seqlens_q: must have batch + 1 >= 1 entries, got 0",
    ),
    Wrong(
        {"cu_seqlens_k": int32(0, 14)},
        ValueError,
        "cu_seqlens_k: number of entries must be 3, got 2 in shape (2,)",
    ),
    Wrong(
        {"cu_seqlens_q": int32(0, 0, 4, 4, 10, 10)[::2]},
        ValueError,
        "cu_seqlens_q: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"cu_seqlens_q": int32(1, 4, 10)},
        ValueError,
        "cu_seqlens_q: must start at 0, got 1 at index 0",
        contents=True,
    ),
    Wrong(
        {"cu_seqlens_k": int32(0, 15, 14), "max_seqlen_k": 15},
        ValueError,
        "cu_seqlens_k: must not exceed the 14 rows of the tensor, got 15 at index 1",
        contents=True,
    ),
    Wrong(
        {"cu_seqlens_k": int32(0, 8, 7)},
        ValueError,
        "cu_seqlens_k: must not decrease from 8, got 7 at index 2",
        contents=True,
    ),
    Wrong(
        {"cu_seqlens_q": int32(0, 4, 11), "max_seqlen_q": 7},
        ValueError,
        "cu_seqlens_q: must not exceed the 10 rows of the tensor, got 11 at index 2",
        contents=True,
    ),
    Wrong(
        {"max_seqlen_q": 5},
        ValueError,
        "cu_seqlens_q: must have lengths of at most max_seqlen = 5, got 6 at index 2",
        contents=True,
    ),
    Wrong(
        {"max_seqlen_k": 7},
        ValueError,
        "cu_seqlens_k: must have lengths of at most max_seqlen = 7, got 8 at index 1",
        contents=True,
    ),
    Wrong({"max_seqlen_q": -1}, ValueError, "max_seqlen_q: must be within 0..2^31-1, got -1"),
    Wrong(
        {"max_seqlen_k": 2**31},
        ValueError,
        "max_seqlen_k: must be within 0..2^31-1, got 2147483648",
    ),
    Wrong(
        {"seqused_q": int32(5, 6)},
        ValueError,
        "seqused_q: must lie in [0, 4], the rows present, got 5 at index 0",
        contents=True,
    ),
    Wrong(
        {"seqused_k": int32(8, -1)},
        ValueError,
        "seqused_k: must lie in [0, 6], the rows present, got -1 at index 1",
        contents=True,
    ),
    Wrong(
        {"seqused_q": int32(4)},
        ValueError,
        "seqused_q: number of entries must be 2, got 1 in shape (1,)",
    ),
    Wrong(
        {"page_table": int32(0, 0)[:, None]},
        ValueError,
        "cu_seqlens_k: must be None with page_table, got a tensor",
    ),
]

PAGED = [
    Wrong({"seqused_k": None}, ValueError, "seqused_k: must be given with page_table, got None"),
    Wrong({"page_table": lambda t: t.long()}, TypeError, "page_table: must be int32, got int64"),
    Wrong(
        {"page_table": lambda t: t[0]},
        ValueError,
        "page_table: must have shape (batch, pages per sequence), got (3,)",
    ),
    Wrong(
        {"page_table": lambda t: t[:1]},
        ValueError,
        "page_table: batch must be 2, got 1 in shape (1, 3)",
    ),
    Wrong(
        {"page_table": lambda t: t.t().contiguous().t()},
        ValueError,
        "page_table: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"page_table": lambda t: t + 6},
        ValueError,
        "page_table: used entries must lie in [0, 6), got 6 at index (0, 0)",
        contents=True,
    ),
    Wrong(
        {"page_table": lambda t: t - 1},
        ValueError,
        "page_table: used entries must lie in [0, 6), got -1 at index (0, 0)",
        contents=True,
    ),
    Wrong(
        {"seqused_k": int32(13, 9)},
        ValueError,
        "seqused_k: must lie in [0, 12], the rows present, got 13 at index 0",
        contents=True,
    ),
    Wrong(
        {"k": lambda k: k[:, :0], "v": lambda v: v[:, :0]},
        ValueError,
        "k: page_size must be >= 1, got 0",
    ),
    Wrong(
        {"v": lambda v: v[:, :2]},
        ValueError,
        "v: every dimension but the last of k must be 4, got 2 in shape (6, 2, 2, 24)",
    ),
]

VARLEN_PAGED = [
    Wrong(
        {"cu_seqlens_k": int32(0, 8, 14)},
        ValueError,
        "cu_seqlens_k: must be None with page_table, got a tensor",
    ),
    Wrong({"seqused_k": None}, ValueError, "seqused_k: must be given with page_table, got None"),
    Wrong(
        {"k": lambda k: k[0]},
        ValueError,
        "k: must have shape (num_pages, page_size, heads_k, head_dim), got (4, 2, 16)",
    ),
]

COMBINE = [
    Wrong({"out_partial": None}, TypeError, "out_partial: must be Tensor, got NoneType"),
    Wrong(
        {"out_dtype": torch.float64},
        TypeError,
        "out_dtype: must be float16, bfloat16 or float32, got float64",
    ),
    Wrong(
        {"out_partial": lambda x: x[0, 0]},
        ValueError,
        "out_partial: must have shape (splits, batch, seqlen, heads, head_dim) or "
        "(splits, total, heads, head_dim), got (5, 4, 16)",
    ),
    Wrong(
        {"out_partial": lambda x: x.double()},
        TypeError,
        "out_partial: must be float16, bfloat16 or float32, got float64",
    ),
    Wrong(
        {"out_partial": last_dim_strided},
        ValueError,
        "out_partial: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"out_partial": lambda x: x[..., :12]},
        ValueError,
        "out_partial: head_dim must be a positive multiple of 8, got 12",
    ),
    Wrong(
        {"out_partial": lambda x: x[:0], "lse_partial": lambda x: x[:0]},
        ValueError,
        "out_partial: number of splits must be within 1..256, got 0",
    ),
    Wrong(
        {"lse_partial": lambda x: x.bfloat16()},
        TypeError,
        "lse_partial: must be float32, got bfloat16",
    ),
    Wrong(
        {"lse_partial": lambda x: x[0]},
        ValueError,
        "lse_partial: must have shape of out_partial without head_dim, got (2, 5, 4)",
    ),
    Wrong(
        {"lse_partial": lambda x: x.transpose(-1, -2)},
        ValueError,
        "lse_partial: every dimension of out_partial must be 5, got 4 in shape (3, 2, 4, 5)",
    ),
]

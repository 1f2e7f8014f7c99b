"""Attention on the GPU, ours and others': one function per implementation.

Each takes a problem and returns the call that is measured. All read the same tensors, stored
(batch, seqlen, heads, head_dim), and return their output in that order. ImportError and what an
implementation itself raises mean that it does not take part.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

OURS = "fa4"
FA3_MODULE = "flash_attn_interface"


@dataclass(frozen=True)
class Problem:
    """Attention of a batch of equal sequences, or of packed ones where cu_seqlens is given."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    lengths: tuple[int, ...]
    cu_seqlens: Tensor | None = None
    dout: Tensor | None = None  # the output's gradient, for those that compute gradients

    @property
    def max_seqlen(self) -> int:
        return max(self.lengths)

    def sequence(self, x: Tensor, i: int) -> Tensor:
        """Sequence i of q, k, v or an output: (seqlen, heads, head_dim)."""
        if self.cu_seqlens is None:
            return x[i]
        first = sum(self.lengths[:i])
        return x[first : first + self.lengths[i]]


Call = Callable[[], Any]  # the output, or the gradients
Peer = Callable[[Problem], Call]


def fa4(p: Problem) -> Call:
    import flash_attn4  # noqa: F401  (registers the ops)

    arguments: tuple[Any, ...] = p.q, p.k, p.v, None, p.causal
    op: Any = torch.ops.fa4.fwd.default
    if p.cu_seqlens is not None:
        sequences = p.cu_seqlens, p.cu_seqlens, p.max_seqlen, p.max_seqlen
        arguments = p.q, p.k, p.v, *sequences, None, p.causal
        op = torch.ops.fa4.varlen_fwd.default
    return lambda: op(*arguments)[0]


def fa3(p: Problem) -> Call:
    module: Any = importlib.import_module(FA3_MODULE)
    if p.cu_seqlens is None:
        return lambda: _first(module.flash_attn_func(p.q, p.k, p.v, causal=p.causal))
    sequences = p.cu_seqlens, p.cu_seqlens, p.max_seqlen, p.max_seqlen
    return lambda: _first(module.flash_attn_varlen_func(p.q, p.k, p.v, *sequences, causal=p.causal))


def fa2(p: Problem) -> Call:
    if p.cu_seqlens is None:
        return _sdpa(p, SDPBackend.FLASH_ATTENTION)
    varlen: Any = importlib.import_module("torch.nn.attention.varlen")
    sequences = p.cu_seqlens, p.cu_seqlens, p.max_seqlen, p.max_seqlen
    # Causal was an argument of its own before it became a window.
    own = "is_causal" in inspect.signature(varlen.varlen_attn).parameters
    causal = {"is_causal": p.causal} if own else {"window_size": (-1, 0 if p.causal else -1)}
    return lambda: _first(varlen.varlen_attn(p.q, p.k, p.v, *sequences, **causal))


def cudnn(p: Problem) -> Call:
    return _sdpa(p, SDPBackend.CUDNN_ATTENTION)


def sdpa(p: Problem) -> Call:
    return _sdpa(p, None)


PEERS: dict[str, Peer] = {"fa3": fa3, "cudnn": cudnn, "fa2": fa2, "sdpa": sdpa}
PACKED_PEERS = ("fa3", "fa2")


def fa3_version() -> str:
    """The distribution that provides FA3's module, with its version."""
    distributions = importlib.metadata.packages_distributions().get(FA3_MODULE, [])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in distributions]
    return ", ".join(versions) or "unknown"


def _sdpa(p: Problem, backend: SDPBackend | None) -> Call:
    q, k, v = (x.transpose(1, 2) for x in (p.q, p.k, p.v))
    gqa = q.shape[1] != k.shape[1]

    def call() -> Tensor:
        out = scaled_dot_product_attention(q, k, v, is_causal=p.causal, enable_gqa=gqa)
        return out.transpose(1, 2)

    if backend is None:
        return call
    chosen = [backend]

    def call_chosen() -> Tensor:
        with sdpa_kernel(chosen):
            return call()

    return call_chosen


def _first(result: Any) -> Tensor:
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out

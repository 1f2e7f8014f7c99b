"""Attention's gradients on the GPU, ours and others': one function per implementation.

Like those of peers.py, but a call returns dq, dk and dv, stored as q, k and v are. Peers of the
backward compute the forward once, when they are made; those of a whole step do in every call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import correctness
import peers
import torch
from peers import Call, Peer, Problem
from torch import Tensor

# ---- The backward alone --------------------------------------------------------------------------


def fa4(p: Problem) -> Call:
    return _fa4(p, deterministic=False)


def fa4_deterministic(p: Problem) -> Call:
    """Ours with deterministic=True. Raises WrongResult where two calls differ."""
    call = _fa4(p, deterministic=True)
    for name, first, second in zip(("dq", "dk", "dv"), call(), call(), strict=True):
        if not torch.equal(first, second):
            raise correctness.WrongResult(f"deterministic: two calls differ in {name}")
    return call


def _fa4(p: Problem, deterministic: bool) -> Call:
    import flash_attn4  # noqa: F401  (registers the ops)

    out, lse = torch.ops.fa4.fwd.default(p.q, p.k, p.v, None, p.causal)
    op: Any = torch.ops.fa4.bwd.default
    arguments = p.dout, p.q, p.k, p.v, out, lse, None, None, p.causal
    return lambda: op(*arguments, deterministic=deterministic)[:3]


# torch's operators below autograd, whose thread and streams would be in a graph's way.


def cudnn(p: Problem) -> Call:
    q, k, v, dout = _heads_first(p.q, p.k, p.v, p.dout)
    aten: Any = torch.ops.aten
    forward = aten._scaled_dot_product_cudnn_attention
    out, lse, *sequences, seed, offset, _ = forward(q, k, v, None, True, 0.0, p.causal)
    tail = out, lse, seed, offset, None, *sequences, 0.0, p.causal
    backward = aten._scaled_dot_product_cudnn_attention_backward
    return lambda: _heads_first(*backward(dout, q, k, v, *tail))


def fa2(p: Problem) -> Call:
    q, k, v, dout = _heads_first(p.q, p.k, p.v, p.dout)
    aten: Any = torch.ops.aten
    out, lse, *sequences, seed, offset, _ = aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, p.causal
    )
    tail = out, lse, *sequences, 0.0, p.causal, seed, offset
    backward = aten._scaled_dot_product_flash_attention_backward
    return lambda: _heads_first(*backward(dout, q, k, v, *tail))


def _heads_first(*tensors: Any) -> tuple[Tensor, ...]:
    """(batch, seqlen, heads, head_dim) as (batch, heads, seqlen, head_dim), or back."""
    return tuple(x.transpose(1, 2) for x in tensors)


BACKWARD_PEERS: dict[str, Peer] = {"cudnn": cudnn, "fa2": fa2}


# ---- Forward and backward ------------------------------------------------------------------------


def with_backward(forward: Peer) -> Peer:
    """A training step: the forward, then its backward by autograd.

    Each step makes all of its autograd graph. A node runs on the stream that it was made on, and
    in a CUDA graph's capture there must be no other stream than the capture's.
    """

    def peer(p: Problem) -> Call:
        q, k, v = inputs = tuple(x.detach().requires_grad_() for x in (p.q, p.k, p.v))
        problem = dataclasses.replace(p, q=q, k=k, v=v)

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(problem)(), inputs, p.dout)

        return step

    return peer


def _flash_attn_func(p: Problem) -> Call:
    from flash_attn4 import flash_attn_func

    return lambda: flash_attn_func(p.q, p.k, p.v, causal=p.causal)


fa4_step = with_backward(_flash_attn_func)
STEP_PEERS: dict[str, Peer] = {
    name: with_backward(peers.PEERS[name]) for name in ("cudnn", "fa2", "sdpa")
}

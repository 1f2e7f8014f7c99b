"""Fake kernels and gradients of the ops, and the cheap way to call them from Python.

Two paths lead to the same gradients. register_autograd serves torch.ops.fa4.* wherever they are
called, under torch.compile above all. Eager calls of flash_attn_func go through autograd.Function,
which enters the op below autograd and costs less host time; without gradients nothing but the op is
left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from flash_attn4._library import python_error

_registry: Any = torch.library
_forward_ad: Any = torch.autograd.forward_ad
_fwd: Any = torch.ops.fa4.fwd.default
_varlen_fwd: Any = torch.ops.fa4.varlen_fwd.default
_bwd: Any = torch.ops.fa4.bwd.default
_varlen_bwd: Any = torch.ops.fa4.varlen_bwd.default
_OUT_VARIANTS: tuple[Any, ...] = (
    torch.ops.fa4.fwd_out.default,
    torch.ops.fa4.varlen_fwd_out.default,
    torch.ops.fa4.bwd_out.default,
    torch.ops.fa4.varlen_bwd_out.default,
)

Outputs = tuple[Tensor, Tensor]
Gradients = tuple[Tensor | None, ...]


# ---- Calls from Python ---------------------------------------------------------------------------


def attention(deterministic: bool, arguments: tuple[Any, ...]) -> Outputs:
    """torch.ops.fa4.fwd(*arguments); deterministic is for its backward."""
    return _call(_fwd, _Attention, deterministic, arguments)


def varlen_attention(deterministic: bool, arguments: tuple[Any, ...]) -> Outputs:
    """torch.ops.fa4.varlen_fwd(*arguments); deterministic is for its backward."""
    return _call(_varlen_fwd, _VarlenAttention, deterministic, arguments)


def _call(op: Any, function: Any, deterministic: bool, arguments: tuple[Any, ...]) -> Outputs:
    outputs: Outputs
    if is_compiling():
        outputs = op(*arguments) if not deterministic else _compiled(function, arguments)
    elif torch.is_grad_enabled() and _any_requires_grad(*arguments):
        outputs = function.apply(deterministic, *arguments)
    else:
        if _forward_ad._current_level >= 0:
            _refuse_forward_mode(arguments)
        with _AutoDispatchBelowAutograd():
            outputs = op(*arguments)
    return outputs


def _refuse_forward_mode(arguments: tuple[Any, ...]) -> None:
    for x in arguments:
        if isinstance(x, Tensor) and _forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError("flash_attn4: attention has no forward-mode derivative")


def _compiled(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Deterministic attention in a traced graph: the op has no argument to tell its own backward.

    Dynamo refuses an autograd.Function that gets one tensor twice, so each argument becomes a view.
    """
    views = [x.view_as(x) if isinstance(x, Tensor) else x for x in arguments]
    return function.apply(True, *views)


def _below_autograd(op: Any, arguments: tuple[Any, ...]) -> Any:
    """op(*arguments) without autograd, unless a graph is wanted (create_graph=True) or traced."""
    if is_compiling() or torch.is_grad_enabled():
        return op(*arguments)
    with _AutoDispatchBelowAutograd():
        return op(*arguments)


# ---- Gradients of fwd and varlen_fwd -------------------------------------------------------------


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    q, k, v, *options, learnable_sink, seqused_k, page_table, _num_splits = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, learnable_sink, seqused_k)
    ctx.options = options  # softmax_scale, causal, window_left, window_right, softcap
    ctx.paged = page_table is not None
    ctx.deterministic = False


def _fwd_gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Gradients:
    q, k, v, out, lse, learnable_sink, seqused_k = ctx.saved_tensors
    arguments = _usable(dout, out), q, k, v, out, lse, dlse, *ctx.options, learnable_sink, seqused_k
    dq, dk, dv, dsink = _gradients(ctx, "flash_attn_func", _bwd, arguments)
    none = (None,) * len(ctx.options)
    return dq, dk, dv, *none, None if learnable_sink is None else dsink, None, None, None


def _save_varlen_fwd(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *options = inputs[:12]
    learnable_sink, seqused_q, seqused_k, page_table, _num_splits = inputs[12:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        q, k, v, *output, cu_seqlens_q, cu_seqlens_k, learnable_sink, seqused_q, seqused_k
    )
    ctx.max_seqlens = max_seqlen_q, max_seqlen_k
    ctx.options = options  # softmax_scale, causal, window_left, window_right, softcap
    ctx.paged = page_table is not None
    ctx.deterministic = False


def _varlen_fwd_gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Gradients:
    q, k, v, out, lse, *cu_seqlens, learnable_sink, seqused_q, seqused_k = ctx.saved_tensors
    arguments = _usable(dout, out), q, k, v, out, lse, *cu_seqlens, *ctx.max_seqlens, dlse
    options = *ctx.options, learnable_sink, seqused_q, seqused_k
    dq, dk, dv, dsink = _gradients(
        ctx, "flash_attn_varlen_func", _varlen_bwd, (*arguments, *options)
    )
    none = (None,) * (4 + len(ctx.options))
    return dq, dk, dv, *none, None if learnable_sink is None else dsink, None, None, None, None


def _usable(dout: Tensor | None, out: Tensor) -> Tensor:
    """dout with a contiguous last dimension. None when only lse was differentiated: zeros."""
    if dout is None:
        return torch.zeros_like(out)
    # sum().backward() expands one element to all of out.
    return dout if dout.stride(-1) == 1 else dout.contiguous()


def _gradients(ctx: Any, function: str, op: Any, arguments: tuple[Any, ...]) -> Any:
    if ctx.paged:
        raise NotImplementedError(f"{function}: page_table: paged attention has no backward")
    deterministic = ctx.deterministic or torch.are_deterministic_algorithms_enabled()
    try:
        return _below_autograd(op, (*arguments, deterministic))
    except RuntimeError as error:
        raise python_error(f"backward of {function}", error) from None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, deterministic: bool, *inputs: Any) -> Outputs:
        output: Outputs = _below_autograd(_fwd, inputs)
        _save_fwd(ctx, inputs, output)
        ctx.deterministic = deterministic
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        return None, *_fwd_gradients(ctx, *grads)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, deterministic: bool, *inputs: Any) -> Outputs:
        output: Outputs = _below_autograd(_varlen_fwd, inputs)
        _save_varlen_fwd(ctx, inputs, output)
        ctx.deterministic = deterministic
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        return None, *_varlen_fwd_gradients(ctx, *grads)


# ---- Gradients of the other ops ------------------------------------------------------------------


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise NotImplementedError(
        "flash_attn4: attention has no second derivative: its backward cannot be differentiated"
    )


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    out_partial, lse_partial, _out_dtype = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out_partial, lse_partial, *output)


def _combine_gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Gradients:
    """out = sum_s w_s out_s and lse = log sum_s exp(lse_s), with w_s = exp(lse_s - lse), give

        d out_s = w_s dout        d lse_s = w_s (dlse + dout . (out_s - out))

    A split that saw no key (lse_s = -inf) has weight 0 and may hold anything: it is selected away.
    """
    out_partial, lse_partial, out, lse = ctx.saved_tensors
    seen = lse_partial != -torch.inf
    weight = torch.where(seen, torch.exp(lse_partial - torch.where(seen, lse, 0.0)), 0.0)
    dout_partial = None
    slope = torch.zeros_like(lse_partial) if dlse is None else dlse.expand_as(lse_partial)
    if dout is not None:
        dout = dout.float()
        dout_partial = (weight[..., None] * dout).to(out_partial.dtype)
        slope = slope + (dout * (out_partial.float() - out.float())).sum(-1)
    return dout_partial, torch.where(seen, weight * slope, 0.0), None


for _name, _backward, _save in (
    ("fwd", _fwd_gradients, _save_fwd),
    ("varlen_fwd", _varlen_fwd_gradients, _save_varlen_fwd),
    ("combine", _combine_gradients, _save_combine),
    ("bwd", _no_second_derivative, _save_nothing),
    ("varlen_bwd", _no_second_derivative, _save_nothing),
):
    _registry.register_autograd(f"fa4::{_name}", _backward, setup_context=_save)


# ---- Ops that write into the caller's buffers ----------------------------------------------------


def _refuse_gradients(op: Any) -> Callable[..., None]:
    """Autograd kernel of an out variant: refuses to lose a gradient, as torch's out= does."""

    def kernel(keyset: Any, *args: Any, **buffers: Tensor | None) -> None:
        if torch.is_grad_enabled() and _any_requires_grad(*args, *buffers.values()):
            raise RuntimeError(
                f"{op.name()}: functions that write to given buffers have no gradient, but one of "
                "the arguments requires grad: call it under torch.no_grad()"
            )
        increment_version([buffer for buffer in buffers.values() if buffer is not None])
        with _AutoDispatchBelowAutograd():
            op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **buffers)

    return kernel


_fragment = _registry.Library("fa4", "FRAGMENT")
for _op in _OUT_VARIANTS:
    _fragment.impl(_op.name(), _refuse_gradients(_op), "Autograd", with_keyset=True)


# ---- Fake kernels --------------------------------------------------------------------------------


def _check_operands(op: str, rank: int, q: Tensor, **others: Tensor | None) -> None:
    """What shape inference relies on; the kernels check everything, in the same words."""
    for name, other in others.items():
        if other is not None and other.device != q.device:
            text = f"must be on the device of q ({q.device}), got {other.device}"
            raise RuntimeError(f"fa4::{op}: ValueError: {name}: {text}")
    if q.dim() != rank:
        rows = "batch, seqlen_q" if rank == 4 else "total_q"
        text = f"must have shape ({rows}, heads_q, head_dim), got {tuple(q.shape)}"
        raise RuntimeError(f"fa4::{op}: ValueError: q: {text}")


def _fake_fwd(q: Tensor, k: Tensor, v: Tensor, *_options: Any, **_named: Any) -> Outputs:
    _check_operands("fwd", 4, q, k=k, v=v)
    batch, seqlen_q, heads_q, _ = q.shape
    out = q.new_empty(batch, seqlen_q, heads_q, v.shape[-1])
    return out, q.new_empty(batch, heads_q, seqlen_q, dtype=torch.float32)


def _fake_varlen_fwd(q: Tensor, k: Tensor, v: Tensor, *_options: Any, **_named: Any) -> Outputs:
    _check_operands("varlen_fwd", 3, q, k=k, v=v)
    total_q, heads_q, _ = q.shape
    out = q.new_empty(total_q, heads_q, v.shape[-1])
    return out, q.new_empty(heads_q, total_q, dtype=torch.float32)


def _fake_combine(
    out_partial: Tensor, lse_partial: Tensor, out_dtype: torch.dtype | None = None
) -> Outputs:
    out = out_partial.new_empty(out_partial.shape[1:], dtype=out_dtype or out_partial.dtype)
    return out, lse_partial.new_empty(lse_partial.shape[1:], dtype=torch.float32)


def _fake_bwd(op: Any) -> Callable[..., tuple[Tensor, ...]]:
    names = [argument.name for argument in op._schema.arguments]

    def kernel(*args: Any, **named: Any) -> tuple[Tensor, ...]:
        given = dict(zip(names, args, strict=False), **named)
        q, k, v, sink = given["q"], given["k"], given["v"], given.get("learnable_sink")
        dsink = q.new_empty(0, dtype=torch.float32) if sink is None else sink.new_empty(sink.shape)
        return (*(x.new_empty(x.shape) for x in (q, k, v)), dsink)

    return kernel


def _fake_out_variant(op: Any) -> Callable[..., None]:
    names = [argument.name for argument in op._schema.arguments]
    rank = 3 if "cu_seqlens_q" in names else 4

    def kernel(*args: Any, **buffers: Any) -> None:
        given = dict(zip(names, args, strict=False), **buffers)
        operands = {name: given[name] for name in ("k", "v")}
        _check_operands(op._opname, rank, given["q"], **operands, **buffers)

    return kernel


_registry.register_fake("fa4::fwd", _fake_fwd)
_registry.register_fake("fa4::varlen_fwd", _fake_varlen_fwd)
_registry.register_fake("fa4::combine", _fake_combine)
for _op in (_bwd, _varlen_bwd):
    _registry.register_fake(_op.name(), _fake_bwd(_op))
for _op in _OUT_VARIANTS:
    _registry.register_fake(_op.name(), _fake_out_variant(_op))

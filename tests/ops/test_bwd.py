"""Gradients of dense attention against float64."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import reference
import tolerances
import torch
from cases import Case, Inputs
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func


def gradients(
    inputs: Inputs, *, through_lse: bool, deterministic: bool = False
) -> reference.Gradients:
    """Gradients of flash_attn_func, on the CPU."""
    leaves = [inputs.q, inputs.k, inputs.v]
    arguments = inputs.arguments() | {"deterministic": deterministic}
    if inputs.sink is not None:
        leaves.append(inputs.sink)
    leaves = [x.detach().requires_grad_() for x in leaves]
    if inputs.sink is not None:
        arguments["learnable_sink"] = leaves[3]
    out, lse = flash_attn_func(*leaves[:3], **arguments, return_lse=True)
    results, seeds = ([out, lse], [inputs.dout, inputs.dlse]) if through_lse else (out, inputs.dout)
    grads = torch.autograd.grad(results, leaves, seeds)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.shape == leaf.shape
    return reference.Gradients(*(grad.cpu() for grad in grads))


def sink_rounding(inputs: Inputs, out: torch.Tensor, lse: torch.Tensor) -> float:
    """Bound of what the rounding of out leaves in dsink = -sum over rows of P_sink * (dout . out).

    Eager attention has one error per head to compare with: too few for a rule that relies on them.
    """
    terms = inputs.dout.double() * out
    weight = torch.exp(inputs.sink.double()[:, None] - lse).transpose(1, 2)
    spread = (weight * terms.norm(dim=-1)).flatten(0, 1).norm(dim=0)
    unit = {"bfloat16": 2**-9, "float16": 2**-12, "float32": 2**-21}[inputs.case.dtype]
    return 4 * unit * spread.max().item()


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def out_rounding(
    inputs: Inputs, tensors: tuple[Tensor, Tensor, Tensor], out: Tensor
) -> reference.Gradients:
    """What the rounding of out leaves in the gradients through D = dout . out.

    Eager attention keeps D in its weights and has no such error. It acts as a gradient of lse does.
    """
    error = ((out.to(inputs.q.dtype).double() - out) * inputs.dout.double()).sum(-1)
    zeros, dlse = torch.zeros_like(inputs.dout), -error.transpose(1, 2)
    options, spans = inputs.options, inputs.spans()
    return reference.attention_and_gradients(tensors, spans, options, zeros, dlse)[2]


def check_backward(
    case: Case, device: Device, *, through_lse: bool, deterministic: bool = False
) -> None:
    inputs = case.inputs()
    result = gradients(
        inputs.to(device.torch), through_lse=through_lse, deterministic=deterministic
    )
    tensors, spans = (inputs.q, inputs.k, inputs.v), inputs.spans()
    dlse = inputs.dlse if through_lse else None
    out, lse, expected = reference.attention_and_gradients(
        tensors, spans, inputs.options, inputs.dout, dlse
    )
    _, _, eager = reference.attention_and_gradients(
        tensors, spans, inputs.options, inputs.dout, dlse, eager=True
    )
    factor, extra = (3.0, 3e-4) if case.softcap else (2.0, 0.0)
    many_rows = case.seqlen_q >= tolerances.FEWEST_KEYS_FOR_RMSE
    scale = inputs.options.scale(case.head_dim)
    rounding = tolerances.cancellation(*tensors, inputs.dout, scale)
    # The weights are 2^(score - lse). In float32 the sum over head_dim rounds about sqrt(head_dim)
    # times, scale, units and difference four times more, each by half a unit in the last place.
    score = reference.largest_score(*tensors[:2], spans, inputs.options)
    rmse_applies = case.rule_b_applies() and many_rows and not through_lse
    # On normal data the rules hold without it, by far.
    through_out = (
        out_rounding(inputs, tensors, out) if rmse_applies and case.data != "normal" else None
    )
    relative = (4 + case.head_dim**0.5) * 2**-24 * score if case.dtype == "float32" else 0.0
    for name, left in rounding.items():
        parts = getattr(result, name), getattr(expected, name), getattr(eager, name)
        if parts[1].numel():
            left += relative * parts[1].abs().max().item()
        tolerances.check_largest_error(f"d{name}", *parts, factor=factor, extra=extra + left)
        if rmse_applies:
            left = 0.0 if through_out is None else rms(getattr(through_out, name))
            tolerances.check_rmse(f"d{name}", *parts, normal_data=case.data == "normal", extra=left)
    if case.sink:
        parts = result.sink, expected.sink, eager.sink
        if case.batch * case.seqlen_q > 0:
            extra += sink_rounding(inputs, out, lse)
        tolerances.check_largest_error("dsink", *parts, factor=3.0, extra=extra)


@pytest.mark.parametrize("case", cases.SMOKE + cases.EDGE, ids=str)
def test_bwd_edge(case: Case, device: Device) -> None:
    check_backward(case, device, through_lse=False)


@pytest.mark.parametrize("case", cases.SMOKE + cases.EDGE[:20], ids=str)
def test_bwd_through_lse(case: Case, device: Device) -> None:
    check_backward(case, device, through_lse=True)


@pytest.mark.sampled("case", cases.FULL, 80)
def test_bwd_matrix(case: Case, device: Device) -> None:
    check_backward(case, device, through_lse=False)


# Several tiles of keys add to the same dq, in an order that depends on the window.
_MANY_TILES = {"seqlen_q": 300, "seqlen_k": 420, "batch": 1}


@pytest.mark.parametrize(
    "case",
    [
        Case(**_MANY_TILES),
        Case(**_MANY_TILES, causal=True, head_dim=128, head_dim_v=128),
        Case(**_MANY_TILES, causal=True, heads_q=6, heads_k=2, dtype="float16"),
        Case(**_MANY_TILES, window=(130, 40)),
        Case(**_MANY_TILES, window=(90, -1), head_dim=128, head_dim_v=128, dtype="float16"),
        Case(**_MANY_TILES, window=(-1, 70), softcap=4.0),
        Case(seqlen_q=420, seqlen_k=300, causal=True, seqused=True),
    ],
    ids=str,
)
def test_bwd_deterministic(case: Case, device: Device) -> None:
    check_backward(case, device, through_lse=False, deterministic=True)


def test_bwd_is_the_slope(device: Device) -> None:
    """Every element against the finite difference of attention in float64: no derivative that the
    reference may have wrong too."""
    dtype = str(device.dtype).removeprefix("torch.")
    case = Case(
        *(dtype, 1, 9, 13, 2, 1, 8, 8),
        causal=True,
        window=(6, -1),
        softcap=3.0,
        sink="float32",
    )
    inputs = case.inputs()
    result = gradients(inputs.to(device.torch), through_lse=True)
    operands = [x.double() for x in (inputs.q, inputs.k, inputs.v, inputs.sink)]

    def loss() -> float:
        options = replace(inputs.options, sink=operands[3])
        out, lse = reference.attention(*operands[:3], iter(inputs.spans()), options)
        return float((out * inputs.dout).sum() + (lse * inputs.dlse).sum())

    step = 1e-5
    for operand, name in zip(operands, ("q", "k", "v", "sink"), strict=True):
        values = operand.view(-1)
        slopes = torch.empty_like(values)
        for i, value in enumerate(values.tolist()):
            values[i] = value + step
            ahead = loss()
            values[i] = value - step
            slopes[i] = (ahead - loss()) / (2 * step)
            values[i] = value
        got = getattr(result, name).double().flatten()
        allowed = device.tolerance(2e-6)["atol"] * float(slopes.abs().max())
        torch.testing.assert_close(got, slopes, atol=allowed, rtol=0, msg=lambda m, n=name: n + m)


def test_bwd_empty_rows_have_no_gradient(device: Device) -> None:
    """Rows that see no key: gradient 0, not NaN, also through lse and also from a NaN in dout."""
    case = Case(seqlen_q=100, seqlen_k=40, causal=True)
    inputs = case.inputs().to(device.torch)
    inputs.dout[:, :60] = torch.nan
    result = gradients(inputs, through_lse=True)
    assert not result.q[:, :60].any()
    for grad in (result.q, result.k, result.v):
        assert grad.isfinite().all()


def test_bwd_out_variant(device: Device) -> None:
    """bwd_out fills the caller's buffers with what bwd returns; dsink may be left out."""
    case = Case(causal=True, sink="float32")
    on_device = case.inputs().to(device.torch)
    tensors = on_device.q, on_device.k, on_device.v
    out, lse = torch.ops.fa4.fwd(*tensors, causal=True, learnable_sink=on_device.sink)
    arguments = (on_device.dout, *tensors, out, lse, on_device.dlse)
    options = {"causal": True, "learnable_sink": on_device.sink}
    expected = torch.ops.fa4.bwd(*arguments, **options)
    buffers = {
        name: torch.full_like(grad, 7.0)
        for name, grad in zip(("dq", "dk", "dv", "dsink"), expected, strict=True)
    }
    torch.ops.fa4.bwd_out(*arguments, **options, **buffers)
    for (name, buffer), grad in zip(buffers.items(), expected, strict=True):
        assert torch.equal(buffer, grad), name
    del buffers["dsink"], options["learnable_sink"]
    out, lse = torch.ops.fa4.fwd(*tensors, causal=True)
    arguments = (on_device.dout, *tensors, out, lse)
    torch.ops.fa4.bwd_out(*arguments, **options, **buffers)
    for buffer, grad in zip(
        buffers.values(), torch.ops.fa4.bwd(*arguments, **options)[:3], strict=True
    ):
        assert torch.equal(buffer, grad)


def test_bwd_without_sink_returns_empty_dsink(device: Device) -> None:
    on_device = Case().inputs().to(device.torch)
    tensors = on_device.q, on_device.k, on_device.v
    dsink = torch.ops.fa4.bwd(on_device.dout, *tensors, *torch.ops.fa4.fwd(*tensors))[3]
    assert dsink.shape == (0,)
    assert dsink.dtype == torch.float32

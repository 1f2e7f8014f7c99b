"""Gradients of dense attention against float64."""

from __future__ import annotations

import cases
import pytest
import reference
import tolerances
import torch
from cases import Case, Inputs
from conftest import Device

from flash_attn4 import flash_attn_func


def gradients(inputs: Inputs, *, through_lse: bool) -> reference.Gradients:
    """Gradients of flash_attn_func, on the CPU."""
    leaves = [inputs.q, inputs.k, inputs.v]
    arguments = inputs.arguments()
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


def cancellation(inputs: Inputs, factor: torch.Tensor) -> float:
    """Bound of what rounding leaves in dQ (factor: k) or dK (factor: q) where it should cancel.

    dS = P * (dP - D) is 0 for a row with one key, in exact arithmetic and in eager attention; where
    dP and D are summed in different orders, a float32 rounding of dP stays.
    """
    if inputs.q.numel() == 0 or inputs.k.numel() == 0:
        return 0.0
    largest = [x.double().nan_to_num().norm(dim=-1).max().item() for x in (inputs.dout, inputs.v)]
    scale = inputs.options.scale(inputs.case.head_dim)
    return 2**-23 * largest[0] * largest[1] * scale * factor.nan_to_num().abs().max().item()


def sink_rounding(inputs: Inputs, out: torch.Tensor, lse: torch.Tensor) -> float:
    """Bound of what the rounding of out leaves in dsink = -sum over rows of P_sink * (dout . out).

    Eager attention has one error per head to compare with: too few for a rule that relies on them.
    """
    terms = inputs.dout.double() * out
    weight = torch.exp(inputs.sink.double()[:, None] - lse).transpose(1, 2)
    spread = (weight * terms.norm(dim=-1)).flatten(0, 1).norm(dim=0)
    unit = {"bfloat16": 2**-9, "float16": 2**-12, "float32": 2**-21}[inputs.case.dtype]
    return 4 * unit * spread.max().item()


def check_backward(case: Case, device: Device, *, through_lse: bool) -> None:
    inputs = case.inputs()
    result = gradients(inputs.to(device.torch), through_lse=through_lse)
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
    rounding = {"q": cancellation(inputs, inputs.k), "k": cancellation(inputs, inputs.q), "v": 0.0}
    # The weights are 2^(score - lse). In float32 the sum over head_dim rounds about sqrt(head_dim)
    # times, scale, units and difference four times more, each by half a unit in the last place.
    score = reference.largest_score(*tensors[:2], spans, inputs.options)
    relative = (4 + case.head_dim**0.5) * 2**-24 * score if case.dtype == "float32" else 0.0
    for name, left in rounding.items():
        parts = getattr(result, name), getattr(expected, name), getattr(eager, name)
        if parts[1].numel():
            left += relative * parts[1].abs().max().item()
        tolerances.check_largest_error(f"d{name}", *parts, factor=factor, extra=extra + left)
        if case.rule_b_applies() and many_rows and not through_lse:
            tolerances.check_rmse(f"d{name}", *parts, normal_data=case.data == "normal")
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

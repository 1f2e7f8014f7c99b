"""Forward of dense attention against float64."""

from __future__ import annotations

import cases
import pytest
import reference
import tolerances
import torch
from cases import Case
from conftest import Device

from flash_attn4 import flash_attn_func


def check_forward(case: Case, device: Device) -> None:
    inputs = case.inputs()
    q, k, v, spans, options = inputs.q, inputs.k, inputs.v, inputs.spans(), inputs.options
    on_device = inputs.to(device.torch)
    out, lse = flash_attn_func(
        on_device.q, on_device.k, on_device.v, **on_device.arguments(), return_lse=True
    )
    assert out.dtype == case.torch_dtype
    assert lse.dtype == torch.float32
    out, lse = out.cpu(), lse.cpu()
    expected, expected_lse = reference.attention(
        q.double(), k.double(), v.double(), iter(spans), options
    )
    eager, _ = reference.attention(q, k, v, iter(spans), options)
    factor = 3.0 if case.softcap else 2.0
    tolerances.check_largest_error("out", out, expected, eager, factor=factor)
    score = reference.largest_score(q, k, spans, options)
    tolerances.check_lse(lse, expected_lse, score, device.exp2_error)
    if case.rule_b_applies():
        tolerances.check_rmse("out", out, expected, eager, normal_data=case.data == "normal")


@pytest.mark.parametrize("case", cases.SMOKE + cases.EDGE, ids=str)
def test_fwd_edge(case: Case, device: Device) -> None:
    check_forward(case, device)


@pytest.mark.sampled("case", cases.FULL, 150)
def test_fwd_matrix(case: Case, device: Device) -> None:
    check_forward(case, device)


MASKS_TO_COUNT = [
    (seqlen_q, seqlen_k, causal, window)
    for seqlen_q, seqlen_k in ((1, 1), (70, 70), (64, 250), (130, 65), (40, 256))
    for causal in (False, True)
    for window in ((-1, -1), (0, 0), (3, -1), (-1, 5), (64, 63), (65, 127), (200, 1))
]


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "causal", "window"), MASKS_TO_COUNT)
def test_fwd_mask_exact(
    seqlen_q: int, seqlen_k: int, causal: bool, window: tuple[int, int], device: Device
) -> None:
    """Equal scores and V = one-hot columns return the mask itself, divided by the keys seen."""
    q = torch.zeros(1, seqlen_q, 2, 16, dtype=torch.float16, device=device.torch)
    k = torch.zeros(1, seqlen_k, 1, 16, dtype=torch.float16, device=device.torch)
    v = torch.eye(256, dtype=torch.float16, device=device.torch)[None, :seqlen_k, None, :]
    parts = [
        flash_attn_func(q, k, columns, causal=causal, window_size=window, return_lse=True)
        for columns in v.split(128, dim=-1)  # head dims that GPUs serve
    ]
    out, lse = torch.cat([part[0] for part in parts], dim=-1), parts[0][1]
    mask = reference.visible_mask(seqlen_q, seqlen_k, causal, window)
    seen = mask.sum(dim=-1)
    weights = out.cpu()[0, :, :, :seqlen_k]
    for head in range(2):
        counts = (weights[:, head].float() * seen[:, None]).round()
        assert torch.equal(counts, mask.float())
        torch.testing.assert_close(
            lse.cpu()[0, head], seen.double().log().float(), atol=2e-6, rtol=1e-6
        )
    assert not out[..., seqlen_k:].any()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fwd_nan_stays_in_its_row(value: float, dtype: str, device: Device) -> None:
    """A NaN or Inf that a row does see shows in that row of out, and in no other."""
    case = Case(causal=True, dtype=dtype, heads_q=2)
    on_device = case.inputs().to(device.torch)
    q = on_device.q.clone()
    q[0, 70, 1, 3] = value
    out = flash_attn_func(q, on_device.k, on_device.v, causal=True).isnan().cpu()
    assert out[0, 70, 1].all()
    out[0, 70, 1] = False
    assert not out.any()


def test_fwd_values_do_not_reach_rows_without_keys(device: Device) -> None:
    """A sink gives such a row a sum; its output stays 0 beside values that are infinite."""
    inputs = Case(causal=True, sink="float32", seqlen_q=100, seqlen_k=50).inputs()
    on_device = inputs.to(device.torch)
    v = on_device.v.clone()
    v[:, 0, :, 0] = torch.inf
    out = flash_attn_func(
        on_device.q, on_device.k, v, causal=True, learnable_sink=on_device.sink
    ).cpu()
    assert not out[:, :50].any()
    assert bool(out[:, 50:, :, 0].isinf().all())


def test_fwd_large_batch_times_heads(device: Device) -> None:
    """More (batch, head) pairs than a 16-bit grid dimension holds."""
    batch, heads = 1100, 64
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(batch, 2, heads, 8, generator=generator).to(torch.bfloat16)
    k = torch.randn(batch, 3, 1, 8, generator=generator).to(torch.bfloat16)
    on_device = [x.to(device.torch) for x in (q, k)]
    out = flash_attn_func(on_device[0], on_device[1], on_device[1], 0.5).cpu()
    weights = torch.softmax(torch.einsum("bqhd,bkxd->bhqk", q.double(), k.double()) * 0.5, dim=-1)
    expected = torch.einsum("bhqk,bkxd->bqhd", weights, k.double())
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=1e-2)


def test_fwd_out_variant(device: Device) -> None:
    """fwd_out fills the caller's buffers, whatever their strides, with what fwd returns."""
    case = Case(causal=True, sink="float32")
    on_device = case.inputs().to(device.torch)
    arguments = (on_device.q, on_device.k, on_device.v, None, True)
    expected, expected_lse = torch.ops.fa4.fwd(*arguments, learnable_sink=on_device.sink)
    frame = torch.full((2, 4, 140, 66), 7.0, dtype=case.torch_dtype, device=device.torch)
    out = frame.transpose(1, 2)[:, 5:134, :, :64]
    lse = torch.full((4, 2, 129), 7.0, device=device.torch).transpose(0, 1)
    torch.ops.fa4.fwd_out(*arguments, learnable_sink=on_device.sink, out=out, lse=lse)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    out.fill_(7.0)
    assert bool((frame == 7.0).all()), "fwd_out wrote beside its buffer"

"""Packed sequences of different lengths, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import cases
import pytest
import reference
import tolerances
import torch
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func


@dataclass(frozen=True)
class Packed:
    """A call of flash_attn_varlen_func."""

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    used_q: tuple[int, ...] | None = None
    used_k: tuple[int, ...] | None = None
    gap: int = 0  # rows behind the last sequence
    dtype: str = "bfloat16"
    heads_q: int = 4
    heads_k: int = 2
    head_dim: int = 64
    head_dim_v: int = 64
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: bool = False

    __str__ = cases.Case.__str__


PACKED = [
    Packed((5, 1, 64, 200), (5, 1, 64, 200)),
    Packed((5, 1, 64, 200), (5, 1, 64, 200), causal=True, dtype="float32"),
    Packed((30, 130), (90, 140), causal=True, dtype="float16"),
    Packed((90, 140), (30, 130), causal=True),
    Packed((0, 7, 0, 0, 90, 0), (0, 7, 5, 0, 90, 0), causal=True),
    Packed((7, 0, 9), (0, 4, 0)),
    Packed((7, 9), (0, 0), sink=True, dtype="float32"),
    Packed((0, 0), (0, 0)),
    Packed((1,) * 150, (1, 2, 3) * 50, heads_q=2, heads_k=1, causal=True),
    Packed((300,), (310,), window=(20, 5)),
    Packed((100, 50), (100, 50), causal=True, window=(16, -1), softcap=7.0, sink=True),
    Packed((64, 40), (200, 70), head_dim=192, head_dim_v=128, causal=True, dtype="float16"),
    # What does not count holds NaN: behind seqused, and behind the last sequence.
    Packed((40, 100), (50, 110), used_k=(50, 70), causal=True),
    Packed((40, 100), (50, 110), used_q=(0, 77), used_k=(13, 0), dtype="float32"),
    Packed((40, 100), (50, 110), used_q=(33, 100), causal=True, sink=True),
    Packed((40, 100), (50, 110), gap=9, causal=True),
    Packed((64, 128), (64, 128), used_q=(60, 1), used_k=(60, 1), gap=64, dtype="float16"),
    # In 16 bit, which GPUs serve, what is above in float32; no sequences at all; head dim 128.
    Packed((5, 1, 64, 200), (5, 1, 64, 200), causal=True),
    Packed((7, 9), (0, 0), sink=True),
    Packed((40, 100), (50, 110), used_q=(0, 77), used_k=(13, 0)),
    Packed((), (), gap=9),
    Packed((200, 0, 129), (300, 3, 1), heads_q=8, head_dim=128, head_dim_v=128, causal=True),
    Packed(
        *((4, 1, 3, 130), (140, 300, 5, 131)),
        used_k=(129, 300, 0, 100),
        gap=5,
        heads_q=10,
        head_dim=128,
        head_dim_v=128,
        dtype="float16",
    ),
]


@dataclass(frozen=True)
class PackedInputs:
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    seqused_q: Tensor | None
    seqused_k: Tensor | None
    options: reference.Options

    def spans(self) -> list[reference.Span]:
        lengths = self.cu_seqlens_q, self.cu_seqlens_k, self.seqused_q, self.seqused_k
        return list(reference.packed_spans(*lengths))


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def int32_or_none(values: tuple[int, ...] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int32)


def make_inputs(case: Packed) -> PackedInputs:
    generator = torch.Generator().manual_seed(sum(case.lengths_q) + 7 * sum(case.lengths_k))
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    total_q, total_k = sum(case.lengths_q) + case.gap, sum(case.lengths_k) + case.gap
    sink = torch.randn(case.heads_q, generator=generator) if case.sink else None
    inputs = PackedInputs(
        q=normal(total_q, case.heads_q, case.head_dim),
        k=normal(total_k, case.heads_k, case.head_dim),
        v=normal(total_k, case.heads_k, case.head_dim_v),
        dout=normal(total_q, case.heads_q, case.head_dim_v),
        dlse=torch.randn(case.heads_q, total_q, generator=generator),
        cu_seqlens_q=offsets(case.lengths_q),
        cu_seqlens_k=offsets(case.lengths_k),
        seqused_q=int32_or_none(case.used_q),
        seqused_k=int32_or_none(case.used_k),
        options=reference.Options(None, case.causal, case.window, case.softcap, sink),
    )
    counts_q = torch.zeros(total_q, dtype=torch.bool)
    counts_k = torch.zeros(total_k, dtype=torch.bool)
    for span in inputs.spans():
        counts_q[span.q], counts_k[span.k] = True, True
    for tensor, counts in ((inputs.q, counts_q), (inputs.k, counts_k), (inputs.v, counts_k)):
        tensor[~counts] = torch.nan
    inputs.dout[~counts_q] = torch.nan
    return inputs


def run(case: Packed, inputs: PackedInputs, device: Device, leaves: list[Tensor]) -> tuple:
    def on_device(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device.torch)

    return flash_attn_varlen_func(
        *leaves[:3],
        on_device(inputs.cu_seqlens_q),
        on_device(inputs.cu_seqlens_k),
        max(case.lengths_q, default=0),
        max(case.lengths_k, default=0),
        causal=case.causal,
        window_size=case.window,
        softcap=case.softcap,
        learnable_sink=leaves[3] if case.sink else None,
        seqused_q=on_device(inputs.seqused_q),
        seqused_k=on_device(inputs.seqused_k),
        return_lse=True,
    )


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_varlen(case: Packed, device: Device) -> None:
    inputs = make_inputs(case)
    tensors, spans, options = (inputs.q, inputs.k, inputs.v), inputs.spans(), inputs.options
    operands = [*tensors, options.sink] if case.sink else list(tensors)
    out, lse = (x.cpu() for x in run(case, inputs, device, [x.to(device.torch) for x in operands]))
    exact = (x.double() for x in tensors)
    expected, expected_lse = reference.attention(*exact, iter(spans), options)
    eager, _ = reference.attention(*tensors, iter(spans), options)
    tolerances.check_largest_error("out", out, expected, eager, factor=3 if case.softcap else 2)
    score = reference.largest_score(inputs.q, inputs.k, spans, options)
    tolerances.check_lse(lse, expected_lse, score, device.exp2_error)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_varlen_bwd(case: Packed, device: Device) -> None:
    inputs = make_inputs(case)
    tensors, spans, options = (inputs.q, inputs.k, inputs.v), inputs.spans(), inputs.options
    leaves = [*tensors, options.sink] if case.sink else list(tensors)
    leaves = [x.to(device.torch).requires_grad_() for x in leaves]
    out, lse = run(case, inputs, device, leaves)
    seeds = [inputs.dout.to(device.torch), inputs.dlse.to(device.torch)]
    result = reference.Gradients(*(x.cpu() for x in torch.autograd.grad([out, lse], leaves, seeds)))

    arguments = tensors, spans, options, inputs.dout.nan_to_num(), inputs.dlse
    _, _, expected = reference.attention_and_gradients(*arguments)
    _, _, eager = reference.attention_and_gradients(*arguments, eager=True)
    # 1e-5: rounding of dP - D where it cancels, as in rows that see one key.
    factor, extra = (3.0, 3e-4) if case.softcap else (2.0, 1e-5)
    for name in ("q", "k", "v"):
        parts = getattr(result, name), getattr(expected, name), getattr(eager, name)
        tolerances.check_largest_error(f"d{name}", *parts, factor=factor, extra=extra)
    if case.sink:
        parts = result.sink, expected.sink, eager.sink
        tolerances.check_largest_error("dsink", *parts, factor=3.0, extra=extra)


@pytest.mark.parametrize("backward", [False, True])
def test_varlen_equals_dense(backward: bool, device: Device) -> None:
    """Sequences of equal length, packed, give bit for bit what a dense batch gives."""
    case = cases.Case(batch=3, seqlen_q=70, seqlen_k=90, causal=True)
    on_device = case.inputs().to(device.torch)
    tensors = on_device.q, on_device.k, on_device.v
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = flash_attn_func(*leaves, causal=True, return_lse=True)
    packed = [x.detach().flatten(0, 1).requires_grad_() for x in tensors]
    lengths = [
        torch.arange(4, dtype=torch.int32, device=device.torch) * seqlen for seqlen in (70, 90)
    ]
    out_packed, lse_packed = flash_attn_varlen_func(
        *packed, *lengths, 70, 90, causal=True, return_lse=True
    )
    assert torch.equal(out_packed, out.flatten(0, 1))
    assert torch.equal(lse_packed, lse.transpose(0, 1).flatten(1, 2))
    if not backward:
        return
    expected = torch.autograd.grad(out, leaves, on_device.dout)
    grads = torch.autograd.grad(out_packed, packed, on_device.dout.flatten(0, 1))
    for got, want in zip(grads, expected, strict=True):
        assert torch.equal(got, want.flatten(0, 1))


@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_varlen_bits_do_not_depend_on_neighbours(head_dim: int, device: Device) -> None:
    """Rows of two sequences share a tile; what one holds changes no bit of the other."""
    generator = torch.Generator().manual_seed(11)
    first, rows_k = 100, (400, 300)
    q = torch.randn(190, 2, head_dim, generator=generator)
    k, v = (
        torch.randn(sum(rows_k), 2, dim, generator=generator)
        for dim in (head_dim, min(head_dim, 128))
    )
    # Blocks come from the last to the first: scores grow, so that references lag behind and move.
    k *= torch.linspace(4, 1, sum(rows_k))[:, None, None]

    def outputs(factor: float) -> tuple[Tensor, Tensor]:
        x = q.clone()
        x[first:] *= factor
        on_device = [t.to(torch.bfloat16).to(device.torch) for t in (x, k, v)]
        cu_seqlens_q = offsets((first, 90)).to(device.torch)
        cu_seqlens_k = offsets(rows_k).to(device.torch)
        out, lse = flash_attn_varlen_func(
            *on_device, cu_seqlens_q, cu_seqlens_k, first, max(rows_k), return_lse=True
        )
        return out[:first].cpu(), lse[:, :first].cpu()

    calm, lse = outputs(1.0)
    for factor in (30.0, float("nan")):
        other, other_lse = outputs(factor)
        assert torch.equal(other, calm)
        assert torch.equal(other_lse, lse)


def test_varlen_max_seqlen_is_a_bound(device: Device) -> None:
    """Larger max_seqlen, and max_seqlen as tensors of one element, change nothing."""
    case = PACKED[2]
    inputs = make_inputs(case)
    q, k, v = (x.to(device.torch) for x in (inputs.q, inputs.k, inputs.v))
    lengths = inputs.cu_seqlens_q.to(device.torch), inputs.cu_seqlens_k.to(device.torch)
    longest = max(case.lengths_q), max(case.lengths_k)
    expected = flash_attn_varlen_func(q, k, v, *lengths, *longest)
    for bounds in (
        (1000, 5000),
        tuple(torch.tensor(n) for n in longest),
        tuple(torch.tensor(n, dtype=torch.int32, device=device.torch) for n in longest),
    ):
        assert torch.equal(flash_attn_varlen_func(q, k, v, *lengths, *bounds), expected)


def test_varlen_fwd_out_variant(device: Device) -> None:
    inputs = make_inputs(PACKED[0])
    arguments = [
        x.to(device.torch)
        for x in (inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q, inputs.cu_seqlens_k)
    ]
    expected, expected_lse = torch.ops.fa4.varlen_fwd(*arguments, 200, 200)
    out, lse = torch.full_like(expected, 7.0), torch.full_like(expected_lse, 7.0)
    torch.ops.fa4.varlen_fwd_out(*arguments, 200, 200, out=out, lse=lse)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


def test_varlen_bwd_out_variant(device: Device) -> None:
    inputs = make_inputs(PACKED[0])
    q, k, v, dout = (x.to(device.torch) for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    lengths = inputs.cu_seqlens_q.to(device.torch), inputs.cu_seqlens_k.to(device.torch)
    outputs = torch.ops.fa4.varlen_fwd(q, k, v, *lengths, 200, 200)
    arguments = dout, q, k, v, *outputs, *lengths, 200, 200
    expected = torch.ops.fa4.varlen_bwd(*arguments)[:3]
    dq, dk, dv = buffers = [torch.full_like(x, 7.0) for x in expected]
    torch.ops.fa4.varlen_bwd_out(*arguments, dq=dq, dk=dk, dv=dv)
    for got, want in zip(buffers, expected, strict=True):
        assert torch.equal(got, want)

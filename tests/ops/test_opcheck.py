"""torch.library.opcheck on every op: schema, fake kernel, autograd registration, AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Device
from torch import Tensor

import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

FWD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"softmax_scale": 0.3, "causal": True, "softcap": 5.0},
    {"window_left": 4, "window_right": 2, "learnable_sink": "sink"},
    {"num_splits": 3},
    {"causal": True, "seqused_k": "lengths"},
]
BWD_OPTIONS = [
    {},
    {"softmax_scale": 0.3, "causal": True, "softcap": 5.0, "dlse": "dlse"},
    {"window_left": 4, "window_right": 2, "learnable_sink": "sink", "deterministic": True},
    {"causal": True, "seqused_k": "lengths"},
]


def check(op: Any, arguments: tuple[Any, ...], named: dict[str, Any], **options: Any) -> None:
    results = torch.library.opcheck(op, arguments, named, **options)
    assert set(results.values()) == {"SUCCESS"}, results


class Dense:
    """Arguments of fwd and bwd; the same values as rows of two packed sequences for the others."""

    def __init__(self, device: Device, *, grad: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = device.dtype) -> Tensor:
            x = torch.randn(*shape, generator=generator).to(device.torch, dtype)
            return x.requires_grad_(grad)

        self.dense = normal(2, 6, 4, 8), normal(2, 9, 2, 8), normal(2, 9, 2, 16)
        self.packed = normal(12, 4, 8), normal(18, 2, 8), normal(18, 2, 16)
        self.lengths = tuple(
            torch.tensor(x, dtype=torch.int32, device=device.torch)
            for x in ([0, 5, 12], [0, 9, 18])
        )
        self.tensors = {
            "sink": normal(4),
            "lengths": torch.tensor([5, 7], dtype=torch.int32, device=device.torch),
            "dlse": normal(2, 4, 6, dtype=torch.float32).detach(),
        }
        self.packed_dlse = normal(4, 12, dtype=torch.float32).detach()

    def named(self, options: dict[str, Any]) -> dict[str, Any]:
        return {
            name: self.tensors[value] if isinstance(value, str) else value
            for name, value in options.items()
        }


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", FWD_OPTIONS)
def test_opcheck_fwd(options: dict[str, Any], grad: bool, device: Device) -> None:
    case = Dense(device, grad=grad)
    check(torch.ops.fa4.fwd.default, case.dense, case.named(options))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", FWD_OPTIONS)
def test_opcheck_varlen_fwd(options: dict[str, Any], grad: bool, device: Device) -> None:
    case = Dense(device, grad=grad)
    arguments = (*case.packed, *case.lengths, 7, 9)
    check(torch.ops.fa4.varlen_fwd.default, arguments, case.named(options))


def test_opcheck_strided(device: Device) -> None:
    """Results are contiguous whatever the strides of the operands, and fakes know it."""
    case = Dense(device, grad=False)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case.dense]
    check(torch.ops.fa4.fwd.default, tuple(strided), {})
    out, lse = torch.ops.fa4.fwd(*strided)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    dout = torch.ones_like(out).transpose(1, 2).contiguous().transpose(1, 2)
    check(torch.ops.fa4.bwd.default, (dout, *strided, out, lse), {})


def test_opcheck_paged(device: Device) -> None:
    case = Dense(device, grad=False)
    pages = [x.reshape(6, 3, 2, x.shape[-1]) for x in case.packed[1:]]
    table = torch.tensor([[5, 0, 2], [1, 4, 3]], dtype=torch.int32, device=device.torch)
    named = {"seqused_k": case.tensors["lengths"], "page_table": table}
    check(torch.ops.fa4.fwd.default, (case.dense[0], *pages), named)
    arguments = (case.packed[0], *pages, case.lengths[0], None, 7, 9)
    check(torch.ops.fa4.varlen_fwd.default, arguments, named)


@pytest.mark.parametrize("options", BWD_OPTIONS)
def test_opcheck_bwd(options: dict[str, Any], device: Device) -> None:
    case = Dense(device, grad=False)
    named = case.named(options)
    of_forward = {k: v for k, v in named.items() if k not in ("dlse", "deterministic")}
    out, lse = torch.ops.fa4.fwd(*case.dense, **of_forward)
    arguments = (torch.ones_like(out), *case.dense, out, lse)
    check(torch.ops.fa4.bwd.default, arguments, named)


@pytest.mark.parametrize("options", BWD_OPTIONS)
def test_opcheck_varlen_bwd(options: dict[str, Any], device: Device) -> None:
    case = Dense(device, grad=False)
    case.tensors["dlse"] = case.packed_dlse
    named = case.named(options)
    of_forward = {k: v for k, v in named.items() if k not in ("dlse", "deterministic")}
    sequences = (*case.lengths, 7, 9)
    out, lse = torch.ops.fa4.varlen_fwd(*case.packed, *sequences, **of_forward)
    arguments = (torch.ones_like(out), *case.packed, out, lse, *sequences)
    check(torch.ops.fa4.varlen_bwd.default, arguments, named)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16], ids=str)
def test_opcheck_combine(out_dtype: torch.dtype | None, grad: bool, device: Device) -> None:
    out = torch.randn(3, 2, 5, 4, 8, device=device.torch, requires_grad=grad)
    lse = torch.randn(3, 2, 5, 4, device=device.torch, requires_grad=grad)
    check(torch.ops.fa4.combine.default, (out, lse, out_dtype), {})


@pytest.mark.parametrize("options", FWD_OPTIONS)
def test_opcheck_fwd_out(options: dict[str, Any], device: Device) -> None:
    case = Dense(device, grad=False)
    buffers = {
        "out": torch.empty(2, 6, 4, 16, device=device.torch, dtype=device.dtype),
        "lse": torch.empty(2, 4, 6, device=device.torch),
    }
    named = case.named(options)
    check(torch.ops.fa4.fwd_out.default, case.dense, named | buffers)
    buffers = {
        "out": torch.empty(12, 4, 16, device=device.torch, dtype=device.dtype),
        "lse": torch.empty(4, 12, device=device.torch),
    }
    arguments = (*case.packed, *case.lengths, 7, 9)
    check(torch.ops.fa4.varlen_fwd_out.default, arguments, named | buffers)


@pytest.mark.parametrize("options", BWD_OPTIONS)
def test_opcheck_bwd_out(options: dict[str, Any], device: Device) -> None:
    case = Dense(device, grad=False)
    named = case.named(options)
    buffers = {
        name: torch.empty_like(x) for name, x in zip(("dq", "dk", "dv"), case.dense, strict=True)
    }
    if "learnable_sink" in named:
        buffers["dsink"] = torch.empty_like(named["learnable_sink"])
    of_forward = {k: v for k, v in named.items() if k not in ("dlse", "deterministic")}
    out, lse = torch.ops.fa4.fwd(*case.dense, **of_forward)
    arguments = (torch.ones_like(out), *case.dense, out, lse)
    check(torch.ops.fa4.bwd_out.default, arguments, named | buffers)


def test_opcheck_varlen_bwd_out(device: Device) -> None:
    case = Dense(device, grad=False)
    sequences = (*case.lengths, 7, 9)
    out, lse = torch.ops.fa4.varlen_fwd(*case.packed, *sequences)
    buffers = {
        name: torch.empty_like(x) for name, x in zip(("dq", "dk", "dv"), case.packed, strict=True)
    }
    arguments = (torch.ones_like(out), *case.packed, out, lse, *sequences)
    check(torch.ops.fa4.varlen_bwd_out.default, arguments, buffers)

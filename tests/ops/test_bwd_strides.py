"""Backward with operands and gradients wherever they lie: the bits of contiguous tensors.

The copy engine of a GPU reads q, k, v and dout, see test_strides.py: what it cannot read is copied.
out, lse, dlse and the gradients are read and written in place, whatever their strides.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Device
from test_strides import READABLE, UNREADABLE, placed
from torch import Tensor

# One tile of keys in every kernel: each element of dq is then added to once, in no order.
BATCH, SEQLEN, HEADS, HEAD_DIM = 2, 70, 2, 64
OPERANDS = ("dout", "q", "k", "v", "out", "lse", "dlse")
COPIED = ("dout", "q", "k", "v")
GRADIENTS = ("dq", "dk", "dv")


def operands(device: Device, *, packed: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device.torch)

    shape = BATCH, SEQLEN, HEADS, HEAD_DIM
    x = {name: normal(*shape).bfloat16() for name in ("dout", "q", "k", "v")}
    x["out"], x["lse"] = torch.ops.fa4.fwd(x["q"], x["k"], x["v"], causal=True)
    x["dlse"] = normal(*x["lse"].shape)
    if not packed:
        return x
    for name in ("lse", "dlse"):
        x[name] = x[name].transpose(0, 1).flatten(1, 2)
    return {name: value if value.dim() == 2 else value.flatten(0, 1) for name, value in x.items()}


def gradients(x: dict[str, Tensor], **buffers: Tensor) -> tuple[Tensor, ...] | None:
    arguments = [x[name] for name in OPERANDS]
    if x["q"].dim() == 4:
        op = torch.ops.fa4.bwd_out if buffers else torch.ops.fa4.bwd
        return op(*arguments, causal=True, **buffers)
    cu_seqlens = torch.arange(
        0, BATCH * SEQLEN + 1, SEQLEN, dtype=torch.int32, device=x["q"].device
    )
    op = torch.ops.fa4.varlen_bwd_out if buffers else torch.ops.fa4.varlen_bwd
    lengths = cu_seqlens, cu_seqlens, SEQLEN, SEQLEN
    return op(*arguments[:-1], *lengths, dlse=x["dlse"], causal=True, **buffers)


def place(x: Tensor, offset: int, gaps: tuple[int, ...]) -> Tensor:
    return placed(x, offset, gaps[3 - (x.dim() - 1) :])


def check(x: dict[str, Tensor], plain: dict[str, Tensor], device: Device, *, copies: int) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results = gradients(x)
    seen = sum(e.count for e in profile.key_averages() if e.key == "aten::copy_")
    expected = gradients(plain)
    assert results is not None
    assert expected is not None
    for name, got, want in zip(GRADIENTS, results[:3], expected[:3], strict=True):
        assert torch.equal(got, want), name
        assert not got.isnan().any()
    assert seen == (0 if device.name == "cpu" else copies)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("name", [*OPERANDS, "all"])
@pytest.mark.parametrize("where", ["address+2", "row+1", "everything"])
def test_unreadable_operands(where: str, name: str, packed: bool, device: Device) -> None:
    plain = operands(device, packed=packed)
    names = OPERANDS if name == "all" else (name,)
    x = plain | {name: place(plain[name], *UNREADABLE[where]) for name in names}
    check(x, plain, device, copies=len(set(names) & set(COPIED)))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_readable_operands_are_not_copied(packed: bool, device: Device) -> None:
    plain = operands(device, packed=packed)
    x = {name: place(value, *READABLE["everything"]) for name, value in plain.items()}
    check(x, plain, device, copies=0)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("where", [*UNREADABLE.values(), *READABLE.values()])
def test_gradients_are_written_in_place(
    where: tuple[int, tuple[int, ...]], packed: bool, device: Device
) -> None:
    x = operands(device, packed=packed)
    expected = gradients(x)
    assert expected is not None
    buffers = {name: place(x[name[1:]], *where) for name in GRADIENTS}
    # The placed tensor's storage, of which the gaps hold NaN.
    storages = {
        name: buffer.as_strided((buffer.untyped_storage().nbytes() // 2,), (1,), 0)
        for name, buffer in buffers.items()
    }
    gaps = {name: storage.isnan() for name, storage in storages.items()}
    gradients(x, **buffers)
    for name, want in zip(GRADIENTS, expected[:3], strict=True):
        assert torch.equal(buffers[name], want), name
        assert torch.equal(storages[name].isnan(), gaps[name]), f"{name}: written between rows"


def test_expanded_gradient_of_out(device: Device) -> None:
    """The gradient of out.sum(): one element with strides of 0 but in the last dimension."""
    plain = operands(device, packed=False)
    row = plain["dout"][:1, :1, :1]
    x = plain | {"dout": row.expand(plain["dout"].shape)}
    check(x, x | {"dout": x["dout"].contiguous()}, device, copies=0)

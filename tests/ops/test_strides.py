"""q, k and v wherever they lie: the result is that of contiguous tensors, bit for bit.

The copy engine of a GPU wants addresses at multiples of 16 bytes and strides of multiples of 8
elements. What lies otherwise is copied first, and nothing else is; a CPU reads all of it in place.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func

BATCH, SEQLEN, HEADS, HEAD_DIM = 2, 70, 2, 64

# Elements in front of the tensor, and behind each sequence, row and head: (offset, gaps).
UNREADABLE = {
    "address+2": (1, (0, 0, 0)),
    "address+8": (4, (0, 0, 0)),
    "batch+4": (0, (4, 0, 0)),
    "row+1": (0, (0, 1, 0)),
    "head+2": (0, (0, 0, 2)),
    "everything": (3, (5, 7, 1)),
}
READABLE = {
    "address+16": (8, (0, 0, 0)),
    "all+16": (0, (8, 8, 8)),
    "everything": (24, (40, 16, 8)),
}


def operands(device: Device, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = BATCH, SEQLEN, HEADS, HEAD_DIM
    return {name: torch.randn(shape, generator=generator).to(device.torch, dtype) for name in "qkv"}


def placed(x: Tensor, offset: int, gaps: tuple[int, ...]) -> Tensor:
    """The values of x among NaN. The storage begins at an aligned address."""
    strides, span = [1], x.shape[-1]
    for size, gap in zip(reversed(x.shape[:-1]), reversed(gaps), strict=True):
        strides.insert(0, span + gap)
        span = size * strides[0]
    storage = torch.full((offset + span,), torch.nan, dtype=x.dtype, device=x.device)
    assert storage.data_ptr() % 16 == 0
    view = storage.as_strided(x.shape, strides, offset)
    view.copy_(x)
    return view


def forward(x: dict[str, Tensor], *, causal: bool = True) -> tuple[Tensor, Tensor]:
    return flash_attn_func(x["q"], x["k"], x["v"], causal=causal, return_lse=True)


def counted(call: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], int]:
    """The result of a call, and how many tensors were copied on the way."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = call()
    return result, sum(e.count for e in profile.key_averages() if e.key == "aten::copy_")


def check(x: dict[str, Tensor], plain: dict[str, Tensor], device: Device, *, copies: int) -> None:
    """Same result as `plain`; on a GPU with so many copies, on the CPU with none."""
    before = {name: value.clone() for name, value in x.items()}
    (out, lse), seen = counted(lambda: forward(x))
    expected, expected_lse = forward(plain)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert not out.isnan().any()
    assert seen == (0 if device.name == "cpu" else copies)
    for name, value in x.items():
        assert torch.equal(value, before[name]), f"{name} was written"


@pytest.mark.parametrize("names", ["q", "k", "v", "qkv"])
@pytest.mark.parametrize("place", UNREADABLE)
def test_unreadable_operands(place: str, names: str, device: Device) -> None:
    plain = operands(device)
    x = plain | {name: placed(plain[name], *UNREADABLE[place]) for name in names}
    check(x, plain, device, copies=len(names))


@pytest.mark.parametrize("place", READABLE)
def test_readable_operands_are_not_copied(place: str, device: Device) -> None:
    plain = operands(device, torch.float16)
    x = {name: placed(value, *READABLE[place]) for name, value in plain.items()}
    check(x, plain, device, copies=0)


@pytest.mark.parametrize("offset", [0, 1])
def test_expanded_keys_and_values(offset: int, device: Device) -> None:
    """Stride 0 over sequences and heads is a stride like any other; a copy has other strides."""
    plain = operands(device)
    shape = plain["k"].shape
    x = {"q": plain["q"]}
    for name in "kv":
        one = placed(plain[name][:1, :, :1], offset, (0, 0, 0))
        x[name] = one.expand(shape)
        plain[name] = one.expand(shape).contiguous()
    check(x, plain, device, copies=2 if offset else 0)


def test_strides_of_single_steps_do_not_matter(device: Device) -> None:
    """torch leaves any stride in a dimension of size 1, and none is ever stepped along."""
    plain = {name: value[:1, :, :1].contiguous() for name, value in operands(device).items()}
    x = {name: value.as_strided(value.shape, (7, HEAD_DIM, 3, 1)) for name, value in plain.items()}
    check(x, plain, device, copies=0)


@pytest.mark.parametrize("place", [x for x in UNREADABLE if x != "batch+4"])
def test_packed_operands(place: str, device: Device) -> None:
    offset, gaps = UNREADABLE[place]
    plain = {name: value.flatten(0, 1) for name, value in operands(device).items()}
    x = {name: placed(value, offset, gaps[1:]) for name, value in plain.items()}
    cu_seqlens = torch.tensor([0, 33, BATCH * SEQLEN], dtype=torch.int32, device=device.torch)

    def call(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        longest = BATCH * SEQLEN
        return flash_attn_varlen_func(
            x["q"], x["k"], x["v"], cu_seqlens, cu_seqlens, longest, longest, return_lse=True
        )

    (out, lse), seen = counted(lambda: call(x))
    expected, expected_lse = call(plain)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert seen == (0 if device.name == "cpu" else 3)

"""wgmma on sm_90: operands from shared memory and registers, both majors, every swizzle."""

from __future__ import annotations

import struct

import pytest
import torch
from layouts import Operand, as_bytes, operand
from machines import Machine
from torch import Tensor

pytestmark = pytest.mark.archs("sm90")

SLACK = 1024
# Kernel -> majors of A and B: 1 is MN-major. Names tell type, N and majors.
SS = [
    *(f"bf16_n{n}_0{b}" for n in (8, 64, 96, 128, 256) for b in (0, 1)),
    "bf16_n64_10",
    "bf16_n64_11",
    "bf16_n128_11",
    "f16_n64_00",
    "f16_n64_11",
]
RS = ["bf16_n8_0", "bf16_n64_0", "bf16_n64_1", "bf16_n128_1", "bf16_n256_0", "f16_n64_1"]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def integers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Small integers: products and sums are exact in every order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


def spans(extent: int, mn_major: bool) -> list[int]:
    """Swizzles whose chunks divide the extent of M or N."""
    return [s for s in (128, 64, 32, 0) if not mn_major or s == 0 or 2 * extent % s == 0]


def described(a: Operand | None, b: Operand, steps: int, accumulate: bool) -> tuple[bytes, Tensor]:
    """The parameter Operands and the offsets of each pair of steps."""
    a_steps = a.step_bytes if a else (0,) * steps
    fields = (a.gmma() if a else 0, b.gmma(), len(a.image) if a else 0, len(b.image))
    second = a_steps[1] - a_steps[0], b.step_bytes[1] - b.step_bytes[0]
    offsets = [v for pair in list(zip(a_steps, b.step_bytes, strict=True))[::2] for v in pair]
    packed = struct.pack("<QQIIIIii", *fields, *second, steps // 2, int(accumulate))
    return packed, torch.tensor(offsets, dtype=torch.int32)


@pytest.mark.parametrize("name", SS)
def test_shared_operands(machine: Machine, name: str) -> None:
    program = machine.compile("wgmma.cu")
    kind, columns, majors = name.split("_")
    n, a_major, b_major = int(columns[1:]), majors[0] == "1", majors[1] == "1"
    k = 64
    a = integers(64, k, seed=1, dtype=DTYPES[kind])
    b = integers(n, k, seed=2, dtype=DTYPES[kind])
    product = a.float() @ b.float().T
    before = integers(64, n, seed=3, dtype=torch.float32)
    b_spans = spans(n, b_major)
    for i, a_span in enumerate(spans(64, a_major)):
        b_span = b_spans[i % len(b_spans)]
        left = operand(a, mn_major=a_major, span=a_span)
        right = operand(b, mn_major=b_major, span=b_span)
        accumulate = i % 2 == 1
        packed, offsets = described(left, right, k // 16, accumulate)
        out = machine.tensor(before)
        args = [*map(machine.tensor, (left.image, right.image, offsets)), out, packed]
        shared = len(left.image) + len(right.image) + 2 * SLACK
        program.launch(f"wgmma_ss_{name}", 1, 128, args, shared_bytes=shared)
        expected = product + before if accumulate else product
        assert torch.equal(out.cpu(), expected), f"swizzle of A {a_span}, of B {b_span}"


@pytest.mark.parametrize("name", RS)
def test_register_operand(machine: Machine, name: str) -> None:
    program = machine.compile("wgmma.cu")
    kind, columns, major = name.split("_")
    n, b_major = int(columns[1:]), major == "1"
    k = 96
    a = integers(64, k, seed=4, dtype=DTYPES[kind])
    b = integers(n, k, seed=5, dtype=DTYPES[kind])
    before = integers(64, n, seed=6, dtype=torch.float32)
    for i, span in enumerate(spans(n, b_major)):
        right = operand(b, mn_major=b_major, span=span)
        accumulate = i % 2 == 0
        packed, offsets = described(None, right, k // 16, accumulate)
        out = machine.tensor(before)
        args = [*map(machine.tensor, (as_bytes(a), right.image, offsets)), out, packed]
        shared = len(right.image) + 2 * SLACK
        program.launch(f"wgmma_rs_{name}", 1, 128, args, shared_bytes=shared)
        expected = a.float() @ b.float().T + (before if accumulate else 0)
        assert torch.equal(out.cpu(), expected), f"swizzle {span}"


def test_two_groups(machine: Machine) -> None:
    program = machine.compile("wgmma.cu")
    a = integers(64, 64, seed=7, dtype=torch.bfloat16)
    b = integers(2, 64, 64, seed=8, dtype=torch.bfloat16)
    left = operand(a, mn_major=False, span=128)
    right = [operand(part, mn_major=False, span=128) for part in b]
    images = torch.cat([part.image for part in right])
    fields = left.gmma(), right[0].gmma(), len(left.image), len(images)
    packed = struct.pack("<QQIIIIii", *fields, 32, 32, 2, 0)
    out = machine.zeros(2, 64, 64, dtype=torch.float32)
    args = [machine.tensor(left.image), machine.tensor(images), out, packed]
    shared = len(left.image) + len(images) + 2 * SLACK
    program.launch("wgmma_two_groups", 1, 128, args, shared_bytes=shared)
    assert torch.equal(out.cpu(), a.float() @ b.float().transpose(1, 2))


@pytest.mark.parametrize("blocks", [1, 4])
def test_attention_hand_over(machine: Machine, blocks: int) -> None:
    """S = Q K^T, P = bf16(S), O = P V; |S| <= 64, so bf16 holds it."""
    program = machine.compile("wgmma.cu")
    generator = torch.Generator().manual_seed(9)
    draw = [
        torch.randint(-1, 2, shape, generator=generator) for shape in ((128, 64), (64 * blocks, 64))
    ]
    q, k = (part.to(torch.bfloat16) for part in draw)
    v = integers(64 * blocks, 64, seed=10, dtype=torch.bfloat16)
    q_image = operand(q, mn_major=False, span=128)
    images = []
    for k_block, v_block in zip(k.split(64), v.split(64), strict=True):
        images.append(operand(k_block, mn_major=False, span=128))
        images.append(operand(v_block.T, mn_major=True, span=128))
    kv = torch.cat([part.image for part in images])
    fields = q_image.gmma(), images[1].gmma(), len(q_image.image), len(kv)
    packed = struct.pack("<QQIIIIii", *fields, 32, 2048, 0, 0)
    out = machine.zeros(128, 64, dtype=torch.float32)
    args = [machine.tensor(q_image.image), machine.tensor(kv), out, packed]
    shared = len(q_image.image) + len(kv) + 2 * SLACK
    program.launch("wgmma_attention", 1, 256, args, shared_bytes=shared)
    scores = q.float() @ k.float().T
    assert torch.equal(out.cpu(), scores @ v.float())

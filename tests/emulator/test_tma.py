"""Copies by the copy engine: boxes of tensor maps, bulk copies, reductions, DSMEM, and cp.async."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from layouts import as_bytes, box_of, scattered, stored_box
from machines import Machine
from torch import Tensor

# Kernels align dynamic shared memory to 1024 bytes themselves.
SLACK = 1024
# Rank -> extents of the tensor and of the box, innermost first, in 16-bit elements. The inner box
# is 128 bytes, the widest that every swizzle but the narrow ones takes; see inner().
SHAPES = {
    1: ((200,), (64,)),
    2: ((200, 21), (64, 8)),
    3: ((136, 9, 5), (64, 4, 3)),
    4: ((128, 5, 4, 3), (64, 3, 2, 2)),
    5: ((72, 4, 3, 3, 2), (64, 2, 2, 2, 2)),
}


def numbered(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Every element tells where it is, as far as its type can count."""
    bits = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
    if dtype.itemsize == 2:
        return (bits * 7 + 1).to(torch.int16).view(dtype)
    return bits.to(dtype)


def strides_of(tensor: Tensor) -> list[int]:
    """In bytes, of dimensions 1 and up, innermost first."""
    return [stride * tensor.element_size() for stride in reversed(tensor.stride())][1:]


def map_of(machine: Machine, tensor: Tensor, box: tuple[int, ...], **options: object) -> object:
    dims = list(reversed(tensor.shape))
    return machine.tensor_map(tensor, dims, strides_of(tensor), list(box), **options)


def inner(box: tuple[int, ...], swizzle: int) -> tuple[int, ...]:
    """The box with the inner extent that the swizzle wants."""
    return (swizzle // 2 if swizzle else box[0], *box[1:])


def coordinates(at: tuple[int, ...]) -> bytes:
    return struct.pack("<5i", *at, *(0,) * (5 - len(at)))


def places(rank: int) -> list[tuple[int, ...]]:
    """Inside, beyond the last element, and before the first. The inner coordinate is a multiple of
    16 bytes; stores take no place before the first element."""
    pairs = list(zip(*SHAPES[rank], strict=True))
    inside = tuple(min(8 if d == 0 else 1, extent - box) for d, (extent, box) in enumerate(pairs))
    beyond = tuple(extent - box + (16 if d == 0 else 1) for d, (extent, box) in enumerate(pairs))
    before = tuple(-8 if d == 0 else -1 for d in range(rank))
    return [inside, beyond, before]


@pytest.mark.parametrize("rank", SHAPES)
def test_tensor_load(machine: Machine, rank: int) -> None:
    program = machine.compile("tma.cu")
    extents, full_box = SHAPES[rank]
    tensor = numbered(*reversed(extents))
    on_machine = machine.tensor(tensor)
    for swizzle in (0, 32, 64, 128):
        box = inner(full_box, swizzle)
        tensor_map = map_of(machine, on_machine, box, swizzle=swizzle)
        size = 2 * math.prod(box)
        for place, at in enumerate(places(rank)):
            # Swizzles act on addresses: a box may begin inside a pattern.
            offset = 0 if swizzle == 0 else 128 * place
            out = machine.zeros(size, dtype=torch.uint8)
            args = [tensor_map, coordinates(at), out, size, offset]
            program.launch(f"tensor_load_{rank}d", 1, 64, args, shared_bytes=size + 2 * SLACK)
            expected = scattered(as_bytes(box_of(tensor, at, box)), swizzle, offset)
            mismatch = (out.cpu() != expected).nonzero()
            assert not len(mismatch), f"swizzle {swizzle}, at {at}: byte {mismatch[0].item()}"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32], ids=str)
def test_tensor_load_types(machine: Machine, dtype: torch.dtype) -> None:
    program = machine.compile("tma.cu")
    tensor = numbered(12, 64, dtype=dtype)
    box = (64 // dtype.itemsize, 8)
    tensor_map = map_of(machine, machine.tensor(tensor), box)
    size = math.prod(box) * dtype.itemsize
    out = machine.zeros(size, dtype=torch.uint8)
    at = (box[0] - 16 // dtype.itemsize, 7)
    args = [tensor_map, coordinates(at), out, size, 0]
    program.launch("tensor_load_2d", 1, 32, args, shared_bytes=size + SLACK)
    assert torch.equal(out.cpu(), as_bytes(box_of(tensor, at, box)))


def test_tensor_load_fill_nan(machine: Machine) -> None:
    program = machine.compile("tma.cu")
    tensor = torch.arange(8 * 32, dtype=torch.float32).view(8, 32)
    tensor_map = map_of(machine, machine.tensor(tensor), (16, 8), fill="nan")
    out = machine.zeros(8, 16, dtype=torch.float32)
    args = [tensor_map, coordinates((24, -3)), out, 512, 0]
    program.launch("tensor_load_2d", 1, 32, args, shared_bytes=512 + SLACK)
    expected = box_of(tensor, (24, -3), (16, 8), float("nan"))
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_tensor_ring(machine: Machine, steps: int) -> None:
    program = machine.compile("tma.cu")
    tensor = numbered(32 * steps, 64)
    tensor_map = map_of(machine, machine.tensor(tensor), (64, 32), swizzle=128)
    out = machine.zeros(steps, 4096, dtype=torch.uint8)
    args = [tensor_map, out, steps]
    program.launch("tensor_ring", 1, 160, args, shared_bytes=3 * 4096 + SLACK)
    for step in range(steps):
        expected = scattered(as_bytes(tensor[32 * step : 32 * step + 32]), 128)
        assert torch.equal(out[step].cpu(), expected), f"step {step}"


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_multicast(machine: Machine, ranks: int) -> None:
    program = machine.compile("tma.cu")
    rows, clusters = 32, 2
    tensor = numbered(clusters * rows, 64)
    share = rows // ranks
    tensor_map = map_of(machine, machine.tensor(tensor), (64, share), swizzle=128)
    out = machine.zeros(clusters * ranks, rows * 128, dtype=torch.uint8)
    args = [tensor_map, out, share * 128, share]
    shared = rows * 128 + SLACK
    program.launch(
        "tensor_multicast", clusters * ranks, 64, args, shared_bytes=shared, cluster=ranks
    )
    for block in range(clusters * ranks):
        first = block // ranks * rows
        expected = scattered(as_bytes(tensor[first : first + rows]), 128)
        assert torch.equal(out[block].cpu(), expected), f"block {block}"


@pytest.mark.parametrize("mask", [0b0001, 0b1010, 0b1111])
def test_tensor_multicast_mask(machine: Machine, mask: int) -> None:
    program = machine.compile("tma.cu")
    tensor = numbered(8, 64)
    tensor_map = map_of(machine, machine.tensor(tensor), (64, 8), swizzle=128)
    out = machine.zeros(4, 1024, dtype=torch.uint8)
    args = [tensor_map, out, 1024, mask]
    program.launch("tensor_multicast_mask", 4, 32, args, shared_bytes=1024 + SLACK, cluster=4)
    expected = scattered(as_bytes(tensor), 128)
    for rank in range(4):
        wanted = expected if mask >> rank & 1 else torch.zeros_like(expected)
        assert torch.equal(out[rank].cpu(), wanted), f"rank {rank}"


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_multicast_ring(machine: Machine, ranks: int) -> None:
    program = machine.compile("tma.cu")
    steps = 7
    tensor = numbered(32 * steps, 64)
    tensor_map = map_of(machine, machine.tensor(tensor), (64, 32 // ranks), swizzle=128)
    out = machine.zeros(ranks, steps, 4096, dtype=torch.uint8)
    args = [tensor_map, out, steps]
    shared = 3 * 4096 + SLACK
    program.launch("tensor_multicast_ring", ranks, 64, args, shared_bytes=shared, cluster=ranks)
    for step in range(steps):
        expected = scattered(as_bytes(tensor[32 * step : 32 * step + 32]), 128)
        for rank in range(ranks):
            assert torch.equal(out[rank, step].cpu(), expected), f"rank {rank}, step {step}"


@pytest.mark.parametrize("rank", SHAPES)
def test_tensor_store(machine: Machine, rank: int) -> None:
    program = machine.compile("tma.cu")
    extents, full_box = SHAPES[rank]
    for swizzle in (0, 64, 128):
        box = inner(full_box, swizzle)
        size = 2 * math.prod(box)
        data = numbered(*reversed(box))
        image = scattered(as_bytes(data), swizzle)
        for at in places(rank)[:2]:
            before = torch.full(tuple(reversed(extents)), 3, dtype=torch.bfloat16)
            tensor = machine.tensor(before)
            tensor_map = map_of(machine, tensor, box, swizzle=swizzle)
            args = [tensor_map, coordinates(at), machine.tensor(image), size, 0]
            program.launch(f"tensor_store_{rank}d", 1, 64, args, shared_bytes=size + SLACK)
            expected = stored_box(before, at, data)
            assert torch.equal(tensor.cpu().view(torch.int16), expected.view(torch.int16)), (
                f"swizzle {swizzle}, at {at}"
            )


def test_tensor_store_ring(machine: Machine) -> None:
    program = machine.compile("tma.cu")
    steps = 5
    data = numbered(32 * steps, 64)
    image = torch.cat([scattered(as_bytes(part), 128) for part in data.split(32)])
    tensor = machine.zeros(32 * steps, 64, dtype=torch.bfloat16)
    tensor_map = map_of(machine, tensor, (64, 32), swizzle=128)
    args = [tensor_map, machine.tensor(image), steps]
    program.launch("tensor_store_ring", 1, 128, args, shared_bytes=2 * 4096 + SLACK)
    assert torch.equal(tensor.cpu().view(torch.int16), data.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_tensor_reduce_add(machine: Machine, dtype: torch.dtype) -> None:
    """Small integers, whose sums every type holds."""
    program = machine.compile("tma.cu")
    generator = torch.Generator().manual_seed(1)
    box = torch.randint(-4, 5, (8, 32), generator=generator).to(dtype)
    before = torch.randint(-9, 9, (14, 64), generator=generator).to(dtype)
    at = (48, 10)
    tensor = machine.tensor(before)
    size = box.numel() * dtype.itemsize
    args = [map_of(machine, tensor, (32, 8)), coordinates(at), machine.tensor(box), size]
    program.launch("tensor_reduce_add", 6, 32, args, shared_bytes=size + SLACK)
    base = box_of(before, at, (32, 8))
    expected = stored_box(before, at, base + 6 * box)
    assert torch.equal(tensor.cpu(), expected)


def test_prefetch_and_hint(machine: Machine) -> None:
    program = machine.compile("tma.cu")
    tensor = numbered(8, 64)
    on_machine = machine.tensor(tensor)
    out = machine.zeros(1024, dtype=torch.uint8)
    args = [map_of(machine, on_machine, (64, 8)), on_machine, out, 1024]
    program.launch("tensor_load_prefetched", 1, 32, args, shared_bytes=1024 + SLACK)
    assert torch.equal(out.cpu(), as_bytes(tensor))


# ---- Without a map -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "parts"), [(16, 1), (4096, 1), (4096, 8)])
def test_bulk_load(machine: Machine, size: int, parts: int) -> None:
    program = machine.compile("copies.cu")
    data = torch.arange(size, dtype=torch.int32).to(torch.uint8)
    out = machine.zeros(size, dtype=torch.uint8)
    args = [machine.tensor(data), out, size, parts]
    program.launch("bulk_load", 1, 64, args, shared_bytes=size + SLACK)
    assert torch.equal(out.cpu(), data)


def test_bulk_load_announced(machine: Machine) -> None:
    program = machine.compile("copies.cu")
    data = torch.arange(512, dtype=torch.int32).to(torch.uint8)
    out = machine.zeros(512, dtype=torch.uint8)
    args = [machine.tensor(data), out, 512]
    program.launch("bulk_load_announced", 1, 64, args, shared_bytes=512 + SLACK)
    assert torch.equal(out.cpu(), data)


def test_bulk_store(machine: Machine) -> None:
    """The source is overwritten as soon as wait_group.read returns."""
    program = machine.compile("copies.cu")
    data = torch.arange(2048, dtype=torch.int32).to(torch.uint8)
    out = machine.zeros(2048, dtype=torch.uint8)
    args = [machine.tensor(data), out, 2048]
    program.launch("bulk_store", 1, 64, args, shared_bytes=2048 + SLACK)
    assert torch.equal(out.cpu(), data)


def test_bulk_store_then_flag(machine: Machine) -> None:
    program = machine.compile("copies.cu")
    data = torch.arange(1024, dtype=torch.int32).to(torch.uint8)
    staged, out = machine.zeros(1024, dtype=torch.uint8), machine.zeros(1024, dtype=torch.uint8)
    args = [machine.tensor(data), staged, out, 1024, machine.zeros(1)]
    program.launch("bulk_store_then_flag", 2, 64, args, shared_bytes=1024 + SLACK)
    assert torch.equal(out.cpu(), data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bulk_reduce(machine: Machine, dtype: torch.dtype) -> None:
    program = machine.compile("copies.cu")
    generator = torch.Generator().manual_seed(2)
    parts = torch.randint(-5, 6, (7, 512), generator=generator).to(dtype)
    before = torch.randint(-9, 9, (512,), generator=generator).to(dtype)
    out = machine.tensor(before)
    size = 512 * dtype.itemsize
    name = "bulk_reduce_f32" if dtype == torch.float32 else "bulk_reduce_bf16"
    args = [machine.tensor(parts), out, size]
    program.launch(name, 7, 64, args, shared_bytes=size + SLACK)
    assert torch.equal(out.cpu(), before + parts.sum(0).to(dtype))


def test_bulk_reduce_ring(machine: Machine) -> None:
    program = machine.compile("copies.cu")
    chunks, rounds, blocks = 4, 3, 2
    data = torch.arange(chunks * 512, dtype=torch.float32) % 97
    out = machine.zeros(chunks * 512, dtype=torch.float32)
    args = [machine.tensor(data), out, chunks, rounds]
    program.launch("bulk_reduce_ring", blocks, 128, args, shared_bytes=2 * 2048 + SLACK)
    assert torch.equal(out.cpu(), data * rounds * blocks)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("sender_announces", [0, 1])
def test_bulk_copy_to_peer(machine: Machine, ranks: int, sender_announces: int) -> None:
    program = machine.compile("copies.cu")
    words, blocks = 256, 4
    out = machine.zeros(blocks, words)
    args = [out, words, sender_announces]
    shared = 8 * words + SLACK
    program.launch("bulk_copy_to_peer", blocks, 64, args, shared_bytes=shared, cluster=ranks)
    for block in range(blocks):
        sender = (block % ranks - 1) % ranks
        expected = torch.arange(words, dtype=torch.int32) + (sender << 16)
        assert torch.equal(out[block].cpu(), expected), f"block {block}"


@pytest.mark.parametrize("noinc", [0, 1])
def test_cp_async_zero_fill(machine: Machine, noinc: int) -> None:
    program = machine.compile("copies.cu")
    data = (torch.arange(2048, dtype=torch.int32) % 251 + 1).to(torch.uint8)
    source_bytes = torch.tensor([0, 4, 8, 16], dtype=torch.int32).repeat(32)
    out = machine.zeros(128, 16, dtype=torch.uint8)
    args = [machine.tensor(data), out, machine.tensor(source_bytes), noinc]
    program.launch("cp_async_zero_fill", 1, 128, args)
    kept = torch.arange(16)[None, :] < source_bytes[:, None]
    expected = torch.where(kept, data.view(128, 16), 0)
    neighbour = torch.arange(128) ^ 1
    assert torch.equal(out.cpu(), expected[neighbour])


def test_cp_async_groups(machine: Machine) -> None:
    program = machine.compile("copies.cu")
    data = (torch.arange(4096, dtype=torch.int32) % 251 + 1).to(torch.uint8)
    out = machine.zeros(4096, dtype=torch.uint8)
    program.launch("cp_async_groups", 1, 128, [machine.tensor(data), out])
    expected = data.clone().view(256, 16)
    expected[:128, 12:] = 0
    assert torch.equal(out.cpu(), expected.view(-1))

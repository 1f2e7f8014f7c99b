"""Atomic operations, hand-over between CTAs through global memory, widths of loads and stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from machines import Machine
from torch import Tensor

CELLS, BLOCKS, THREADS = 5, 3, 64
COUNT = BLOCKS * THREADS


def random_integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(7)).int()


def fold(start: Tensor, data: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What the cells hold after thread i has applied op to cell i % CELLS."""
    cells = start.clone()
    for i, value in enumerate(data):
        cells[i % CELLS] = op(cells[i % CELLS], value)
    return cells


ORDERLESS = {
    "atom_add_u32": (torch.int32, torch.add),
    "atom_add_u64": (torch.int64, torch.add),
    "atom_add_f32": (torch.float32, torch.add),
    "atom_min_s32": (torch.int32, torch.minimum),
    "atom_max_s32": (torch.int32, torch.maximum),
    "atom_and_b32": (torch.int32, torch.bitwise_and),
    "atom_or_b32": (torch.int32, torch.bitwise_or),
    "atom_xor_b32": (torch.int32, torch.bitwise_xor),
    "atom_generic_add_u32": (torch.int32, torch.add),
    "red_add_u32": (torch.int32, torch.add),
    "red_add_u64": (torch.int64, torch.add),
    "red_add_f32": (torch.float32, torch.add),
    "red_max_s32": (torch.int32, torch.maximum),
}


@pytest.mark.parametrize("name", ORDERLESS)
def test_atomic(machine: Machine, name: str) -> None:
    program = machine.compile("atomics.cu")
    dtype, op = ORDERLESS[name]
    start = random_integers(-100, 100, CELLS).to(dtype)
    data = random_integers(-1000, 1000, COUNT).to(dtype)
    cells, old = machine.tensor(start), machine.zeros(COUNT, dtype=dtype)
    returns = name.startswith("atom")
    args = [cells, machine.tensor(data), *([old] if returns else []), CELLS]
    program.launch(name, BLOCKS, THREADS, args)
    assert torch.equal(cells.cpu(), fold(start, data, op))
    if returns and op is torch.add:
        # In some order every sum was seen before its own addition.
        for cell in range(CELLS):
            pairs = list(zip(old[cell::CELLS].tolist(), data[cell::CELLS].tolist(), strict=True))
            after = sorted([*(before + value for before, value in pairs), start[cell].item()])
            assert after == sorted([*(before for before, _ in pairs), cells[cell].item()])


def test_atomic_max_u64(machine: Machine) -> None:
    data = random_integers(0, 2**31 - 1, COUNT).long() << 30
    cells, old = machine.zeros(CELLS, dtype=torch.int64), machine.zeros(COUNT, dtype=torch.int64)
    args = [cells, machine.tensor(data), old, CELLS]
    machine.compile("atomics.cu").launch("atom_max_u64", BLOCKS, THREADS, args)
    assert cells.tolist() == [data[cell::CELLS].max().item() for cell in range(CELLS)]


def test_atomic_exchange(machine: Machine) -> None:
    """What was put in comes out once, or stays."""
    data = torch.arange(1, COUNT + 1, dtype=torch.int32)
    cells, old = machine.zeros(CELLS), machine.zeros(COUNT)
    args = [cells, machine.tensor(data), old, CELLS]
    machine.compile("atomics.cu").launch("atom_exch_b32", BLOCKS, THREADS, args)
    seen = sorted(old.tolist() + cells.tolist())
    assert seen == [0] * CELLS + data.tolist()


@pytest.mark.parametrize("name", ["atom_inc_u32", "atom_dec_u32"])
def test_atomic_wrapping(machine: Machine, name: str) -> None:
    limit = 10
    data = torch.full((COUNT,), limit, dtype=torch.int32)
    cells, old = machine.zeros(CELLS), machine.zeros(COUNT)
    args = [cells, machine.tensor(data), old, CELLS]
    machine.compile("atomics.cu").launch(name, BLOCKS, THREADS, args)
    step = 1 if name == "atom_inc_u32" else -1
    counts = [len(range(cell, COUNT, CELLS)) for cell in range(CELLS)]
    assert cells.tolist() == [step * count % (limit + 1) for count in counts]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reduction_of_pairs(machine: Machine, dtype: torch.dtype) -> None:
    data = random_integers(-3, 4, COUNT, 2).to(dtype)
    cells = machine.zeros(CELLS, 2, dtype=dtype)
    name = "red_add_f16x2" if dtype == torch.float16 else "red_add_bf16x2"
    args = [cells, machine.tensor(data), CELLS]
    machine.compile("atomics.cu").launch(name, BLOCKS, THREADS, args)
    assert torch.equal(cells.cpu(), fold(torch.zeros(CELLS, 2, dtype=dtype), data, torch.add))


@pytest.mark.parametrize("width", [2, 4])
def test_reduction_of_vectors(machine: Machine, width: int) -> None:
    data = random_integers(-50, 50, COUNT, width).float()
    cells = machine.zeros(CELLS, width, dtype=torch.float32)
    args = [cells, machine.tensor(data), CELLS]
    machine.compile("atomics.cu").launch(f"red_add_v{width}_f32", BLOCKS, THREADS, args)
    assert torch.equal(cells.cpu(), fold(torch.zeros(CELLS, width), data, torch.add))


def test_shared_atomics(machine: Machine) -> None:
    data = random_integers(1, 1000, 96)
    out = machine.zeros(10 + 96)
    machine.compile("atomics.cu").launch("shared_atomics", 1, 96, [machine.tensor(data), out])
    numbers = data.tolist()
    bits_or, bits_and, bits_xor = 0, -1, 0
    for number in numbers:
        bits_or, bits_and, bits_xor = bits_or | number, bits_and & number, bits_xor ^ number
    total = sum(numbers)
    assert out[:7].tolist() == [
        total, max(numbers), min(numbers), bits_or, bits_and, bits_xor, 96 % 10,
    ]  # fmt: skip
    assert out[7:8].view(torch.float32).item() == total
    assert out[8:10].view(torch.int64).item() == total << 20
    assert out[10:].tolist() == [1] * 96


def test_compare_and_swap(machine: Machine) -> None:
    word, wide = machine.zeros(1), machine.zeros(1, dtype=torch.int64)
    machine.compile("atomics.cu").launch("compare_and_swap", 2, 64, [word, wide])
    total = 2 * sum(range(64))
    assert word.item() == total
    assert wide.item() == total << 32


def test_semaphore_order(machine: Machine) -> None:
    """Blocks that wait for each other's turn, in either order of their start."""
    blocks = 20
    turn, value = machine.zeros(1), machine.zeros(64)
    machine.compile("atomics.cu").launch("semaphore_order", blocks, 64, [turn, value])
    expected = 0
    for block in range(blocks):
        expected = (3 * expected + block) % 2**32
    assert [v % 2**32 for v in value.tolist()] == [expected] * 64
    assert turn.item() == blocks


def test_last_block(machine: Machine) -> None:
    blocks = 30
    parts, counter, out = machine.zeros(blocks), machine.zeros(1), machine.zeros(1)
    machine.compile("atomics.cu").launch("last_block", blocks, 64, [parts, counter, out])
    assert out.item() == sum((block + 1) ** 2 for block in range(blocks))


def test_memory_widths(machine: Machine) -> None:
    data = (torch.arange(64, dtype=torch.int32) * 5 + 130).to(torch.uint8)
    out = machine.zeros(64, dtype=torch.uint8)
    machine.compile("atomics.cu").launch("memory_widths", 1, 1, [machine.tensor(data), out])
    tile = bytearray(64)
    given = bytes(data.tolist())
    tile[0:1] = given[0:1]
    tile[1] = 0xFF if given[1] & 0x80 else 0  # second byte of the sign-extended word
    tile[2:4] = given[2:4]
    tile[4:16] = given[4:16]
    tile[16:24] = given[20:24] + given[16:20]
    tile[24:32] = given[24:32]
    tile[32:48] = given[44:48] + given[40:44] + given[36:40] + given[32:36]
    tile[48:64] = given[56:64] + given[48:56]
    expected = tile[:48]
    half = int.from_bytes(tile[48:50], "little", signed=True)
    expected += half.to_bytes(4, "little", signed=True) + tile[52:53] + bytes(11)
    assert bytes(out.tolist()) == bytes(expected)

"""tcgen05 on sm_100: tensor memory, matrix products of one CTA and of a pair, the hand-over of
attention, and dynamic scheduling."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
import torch
from layouts import (
    Operand,
    accumulator_cells,
    operand,
    operand_cells,
    umma_instruction,
)
from machines import Machine
from torch import Tensor

pytestmark = pytest.mark.archs("sm100")

SLACK = 1024
COLUMNS = 256  # of the tensor-memory image in tmem.cu

# ---- Loads and stores ----------------------------------------------------------------------------

# Shape -> registers per thread.
SHAPES = {
    **{f"32x32b_x{n}": n for n in (1, 2, 4, 8, 16, 32, 64, 128)},
    **{f"16x64b_x{n}": n for n in (1, 16, 128)},
    **{f"16x128b_x{n}": 2 * n for n in (1, 8, 64)},
    **{f"16x256b_x{n}": 4 * n for n in (1, 2, 32)},
}


def cell(shape: str, lane: int, register: int) -> tuple[int, int]:
    """Lane and column, from the first ones of the access, of a register (PTX ISA: tcgen05.ld)."""
    if shape.startswith("32x32b"):
        return lane, register
    if shape.startswith("16x64b"):
        return lane // 4 + 8 * (lane % 2), lane // 2 % 2 + 2 * register
    if shape.startswith("16x128b"):
        return lane // 4 + 8 * (register % 2), lane % 4 + 4 * (register // 2)
    return lane // 4 + 8 * (register // 2 % 2), register % 2 + 2 * (lane % 4) + 8 * (register // 4)


def cells(shape: str, half: int) -> tuple[Tensor, Tensor]:
    """Lane and column for each of 128 threads and each register."""
    where = [
        [cell(shape, thread % 32, register) for register in range(SHAPES[shape])]
        for thread in range(128)
    ]
    place = torch.tensor(where)
    first = torch.arange(128)[:, None] // 32 * 32 + 16 * half
    return place[..., 0] + first, place[..., 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_tmem_load(machine: Machine, shape: str) -> None:
    program = machine.compile("tmem.cu")
    image = torch.arange(128 * COLUMNS, dtype=torch.int32).view(128, COLUMNS) * 3 + 1
    for half in (0,) if shape.startswith("32x") else (0, 1):
        out = machine.zeros(128, SHAPES[shape])
        program.launch(f"tmem_ld_{shape}", 1, 128, [machine.tensor(image), out, half])
        lane, column = cells(shape, half)
        assert torch.equal(out.cpu(), image[lane, column]), f"half {half}"


@pytest.mark.parametrize("shape", SHAPES)
def test_tmem_store(machine: Machine, shape: str) -> None:
    program = machine.compile("tmem.cu")
    before = torch.arange(128 * COLUMNS, dtype=torch.int32).view(128, COLUMNS)
    data = -1 - torch.arange(128 * SHAPES[shape], dtype=torch.int32).view(128, -1)
    for half in (0,) if shape.startswith("32x") else (0, 1):
        image = machine.tensor(before)
        program.launch(f"tmem_st_{shape}", 1, 128, [machine.tensor(data), image, half])
        expected = before.clone()
        expected[cells(shape, half)] = data
        assert torch.equal(image.cpu(), expected), f"half {half}"


def test_tmem_allocations(machine: Machine) -> None:
    out = machine.zeros(128 * 6 + 4)
    machine.compile("tmem.cu").launch("tmem_allocations", 1, 128, [out])
    values, address = out[:-4].cpu().view(128, 6), out[-4:].tolist()
    assert values.tolist() == [[100, 107, 200, 207, 300, 307]] * 128
    taken = [(address[i] & 0xFFFF, size) for i, size in ((1, 128), (2, 256), (3, 32))]
    columns = [column for first, size in taken for column in range(first, first + size)]
    assert len(set(columns)) == len(columns), "allocations overlap"
    assert max(columns) < 512
    assert all(a >> 16 == 0 for a in address)


def test_tmem_allocation_waits(machine: Machine) -> None:
    out = machine.zeros(32)
    machine.compile("tmem.cu").launch("tmem_allocation_waits", 1, 64, [out])
    assert out.tolist() == [1] * 32


# ---- Matrix products -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """D (M x N) = A (M x K) B (N x K)^T of one CTA or a pair."""

    m: int
    n: int
    ctas: int = 1
    dtype: torch.dtype = torch.bfloat16
    a_mn: bool = False
    b_mn: bool = False
    a_span: int = 128
    b_span: int = 128
    tmem_a: bool = False
    accumulate: bool = False
    local_commit: bool = False

    def __str__(self) -> str:
        words = [f"m{self.m}n{self.n}", str(self.dtype).removeprefix("torch.")]
        words += ["pair"] if self.ctas == 2 else []
        words += ["ts"] if self.tmem_a else [f"a{'mn' if self.a_mn else 'k'}{self.a_span}"]
        words += [f"b{'mn' if self.b_mn else 'k'}{self.b_span}"]
        words += [name for name in ("accumulate", "local_commit") if getattr(self, name)]
        return "-".join(words)


def products() -> list[Product]:
    """Each dimension swept by itself around the shapes of attention."""
    one = [Product(128, n) for n in (16, 32, 48, 64, 96, 128, 160, 256)]
    one += [Product(64, n) for n in (8, 24, 64, 256)]
    one += [Product(m, 64, a_mn=a, b_mn=b) for m in (64, 128) for a in (0, 1) for b in (0, 1)]
    one += [
        Product(128, 64, a_mn=a, b_mn=b, a_span=s, b_span=t)
        for a in (0, 1)
        for b in (0, 1)
        for s, t in ((64, 32), (32, 0), (0, 64))
    ]
    one += [Product(128, 64, dtype=torch.float16, b_mn=b, tmem_a=t) for b in (0, 1) for t in (0, 1)]
    one += [Product(m, n, tmem_a=True, b_mn=True) for m in (64, 128) for n in (64, 128)]
    one += [Product(128, 96, accumulate=True), Product(128, 64, tmem_a=True, accumulate=True)]
    pair = [Product(m, n, 2) for m in (128, 256) for n in (32, 64, 128, 256)]
    pair += [Product(m, 128, 2, a_mn=a, b_mn=True) for m in (128, 256) for a in (0, 1)]
    pair += [Product(m, 128, 2, tmem_a=True, b_mn=b) for m in (128, 256) for b in (0, 1)]
    pair += [Product(256, 128, 2, accumulate=True), Product(256, 64, 2, local_commit=True)]
    pair += [Product(256, 64, 2, dtype=torch.float16, a_span=64, b_span=32)]
    return one + pair


def integers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Small integers: products and sums are exact in every order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


def shares(matrix: Tensor, ctas: int, *, mn_major: bool, span: int) -> list[Operand]:
    """Each CTA of a pair holds half of the rows (M or N)."""
    return [operand(part, mn_major=mn_major, span=span) for part in matrix.chunk(ctas)]


def packed_plan(case: Product, a: list[Operand] | None, b: list[Operand], k: int) -> bytes:
    instruction = umma_instruction(case.m, case.n, case.dtype, case.a_mn, case.b_mn)
    columns = case.n // 2 if case.ctas == 2 and case.m == 128 else case.n
    mask = 0 if case.local_commit or case.ctas == 1 else 0b11
    return struct.pack(
        "<QQIIIIiiI4I4x",
        a[0].umma() if a else 0,
        b[0].umma(),
        len(a[0].image) if a else 0,
        len(b[0].image),
        instruction,
        columns,
        k // 16,
        int(case.accumulate),
        mask,
        *(0, 0, 0, 0),
    )


def check_product(machine: Machine, case: Product) -> None:
    k = 64
    a = integers(case.m, k, seed=1, dtype=case.dtype)
    b = integers(case.n, k, seed=2, dtype=case.dtype)
    before = integers(case.m, case.n, seed=3, dtype=torch.float32)
    right = shares(b, case.ctas, mn_major=case.b_mn, span=case.b_span)
    left = None
    if case.tmem_a:
        a_data = operand_cells(a, case.ctas)
        a_steps = (0,) * (k // 16)
    else:
        left = shares(a, case.ctas, mn_major=case.a_mn, span=case.a_span)
        a_data = torch.cat([part.image for part in left])
        a_steps = left[0].step_bytes
    offsets = torch.tensor([a_steps, right[0].step_bytes], dtype=torch.int32).T
    initial = accumulator_cells(before, case.ctas)
    unused = initial.isnan()
    d = machine.tensor(initial.nan_to_num(0.5))
    b_data = torch.cat([part.image for part in right])
    args = [*map(machine.tensor, (a_data, b_data, offsets)), d]
    args.append(packed_plan(case, left, right, k))
    name = ("mma_ts" if case.tmem_a else "mma_ss") + ("_pair" if case.ctas == 2 else "")
    shared = (len(left[0].image) if left else 0) + len(right[0].image) + 2 * SLACK
    program = machine.compile("tcgen05.cu")
    program.launch(name, case.ctas, 128, args, shared_bytes=shared, cluster=case.ctas)
    expected = a.float() @ b.float().T + (before if case.accumulate else 0)
    wanted = torch.where(unused, 0.5, accumulator_cells(expected, case.ctas))
    wrong = (d.cpu() != wanted).nonzero()
    assert not len(wrong), (
        f"{len(wrong)} cells, the first at (CTA, lane, column) {wrong[0].tolist()}"
    )


@pytest.mark.sampled("case", products(), 20)
def test_product(machine: Machine, case: Product) -> None:
    check_product(machine, case)


def test_lanes_disabled(machine: Machine) -> None:
    """D keeps what it held in the lanes of the mask."""
    case = Product(128, 64)
    a = integers(128, 64, seed=1, dtype=case.dtype)
    b = integers(64, 64, seed=2, dtype=case.dtype)
    left, right = (operand(part, mn_major=False, span=128) for part in (a, b))
    masks = (0x0000FFFF, 0, 0xFFFFFFFF, 0x80000001)
    plan = bytearray(packed_plan(case, [left], [right], 64))
    plan[44:60] = struct.pack("<4I", *masks)
    offsets = torch.tensor([left.step_bytes, right.step_bytes], dtype=torch.int32).T
    before = integers(128, 64, seed=3, dtype=torch.float32)
    d = machine.tensor(before)
    args = [*map(machine.tensor, (left.image, right.image, offsets)), d, bytes(plan)]
    shared = len(left.image) + len(right.image) + 2 * SLACK
    machine.compile("tcgen05.cu").launch("mma_ss_masked", 1, 128, args, shared_bytes=shared)
    disabled = torch.tensor([masks[lane // 32] >> lane % 32 & 1 for lane in range(128)])
    expected = torch.where(disabled[:, None] == 1, before, a.float() @ b.float().T)
    assert torch.equal(d.cpu(), expected)


# ---- Attention without a softmax -----------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("ctas", [1, 2])
def test_attention_hand_over(machine: Machine, ctas: int, blocks: int) -> None:
    """S = Q K^T, P = bf16(S), O = P V; |S| <= 64, so bf16 holds it. Two tiles of queries."""
    tiles = 2
    generator = torch.Generator().manual_seed(4)
    rows, keys, dv = 128 * ctas, 64 * blocks, 64 * ctas
    q = torch.randint(-1, 2, (tiles, rows, 64), generator=generator).to(torch.bfloat16)
    k = torch.randint(-1, 2, (tiles, keys, 64), generator=generator).to(torch.bfloat16)
    v = integers(tiles, keys, dv, seed=5, dtype=torch.bfloat16)
    boxes = (64, 128), (64, 64 // ctas), (64, 64)
    maps = []
    for tensor, box in zip((q, k, v), boxes, strict=True):
        flat = machine.tensor(tensor.view(-1, tensor.shape[-1]))
        dims, strides = [flat.shape[1], flat.shape[0]], [2 * flat.shape[1]]
        maps.append(machine.tensor_map(flat, dims, strides, list(box), swizzle=128))
    k_major = operand(q[0, :128], mn_major=False, span=128).umma()
    mn_major = operand(v[0, :64, :64].T, mn_major=True, span=128).umma()
    params = struct.pack(
        "<QQIIi4x",
        k_major,
        mn_major,
        umma_instruction(rows, 64, torch.bfloat16, False, False),
        umma_instruction(rows, dv, torch.bfloat16, False, True),
        blocks,
    )
    out = machine.zeros(tiles * rows, dv, dtype=torch.float32)
    name = "attention_one" if ctas == 1 else "attention_pair"
    shared = 128 * 128 + 3 * 64 * 128 + SLACK
    args = [*maps, out, params]
    program = machine.compile("tcgen05_attention.cu")
    program.launch(name, tiles * ctas, 192, args, shared_bytes=shared, cluster=ctas)
    scores = q.float() @ k.float().transpose(1, 2)
    assert torch.equal(out.cpu().view(tiles, rows, dv), scores @ v.float())


# ---- Dynamic scheduling --------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (40, 1), (7, 60)])
def test_steal_blocks(machine: Machine, grid: tuple[int, int]) -> None:
    """Each block runs once, whether a CTA starts for it or one that runs takes it over."""
    count, stolen = machine.zeros(grid[1], grid[0]), machine.zeros(1)
    program = machine.compile("cluster_launch.cu")
    program.launch("steal_blocks", grid, 64, [count, stolen])
    assert (count == 1).all()
    assert 0 <= stolen.item() < grid[0] * grid[1]


@pytest.mark.parametrize("blocks", [2, 60])
def test_steal_clusters(machine: Machine, blocks: int) -> None:
    count = machine.zeros(blocks)
    program = machine.compile("cluster_launch.cu")
    program.launch("steal_clusters", blocks, 64, [count], cluster=2)
    assert count.tolist() == [1] * blocks

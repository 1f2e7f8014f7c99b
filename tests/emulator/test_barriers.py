"""Barriers of CTA, warp and cluster, shared memory of other CTAs, registers, special registers."""

from __future__ import annotations

import itertools

import pytest
import torch
from machines import Machine

WORD = 2**32


@pytest.mark.parametrize("rounds", [1, 6])
def test_named_barriers(machine: Machine, rounds: int) -> None:
    out = machine.zeros(128)
    machine.compile("barriers.cu").launch("named_barriers", 1, 256, [out, rounds])
    expected = []
    for thread in range(128):
        pair, lane, total = thread // 32, thread % 32, 0
        for step in range(rounds):
            total = 7 * total + 1000 * pair + 10 * step + 31 - lane
        expected.append(total)
    assert [value % WORD for value in out.tolist()] == [value % WORD for value in expected]


def test_named_turns(machine: Machine) -> None:
    rounds = 5
    out = machine.zeros(3 * rounds)
    machine.compile("barriers.cu").launch("named_turns", 1, 384, [out, rounds])
    assert out.tolist() == list(range(3 * rounds))


@pytest.mark.parametrize("low", [-5, 0])
def test_barrier_reductions(machine: Machine, low: int) -> None:
    data = torch.randint(low, 5, (96,), generator=torch.Generator().manual_seed(3)).int()
    if low == 0:
        data[70] = 2000
    out = machine.zeros(96, 3)
    machine.compile("barriers.cu").launch("barrier_reductions", 1, 96, [machine.tensor(data), out])
    expected = [int((data != 0).sum()), int((data >= 0).all()), int((data > 1000).any())]
    assert out.tolist() == [expected] * 96


def test_warp_barriers(machine: Machine) -> None:
    out = machine.zeros(32)
    machine.compile("barriers.cu").launch("warp_barriers", 1, 32, [out])
    value = [2 * (15 - lane) + 1 if lane < 16 else 2 * lane for lane in range(32)]
    assert out.tolist() == [value[lane ^ 8] + value[31 - lane] for lane in range(32)]


@pytest.mark.parametrize(
    ("grid", "cluster"),
    [
        ((6, 1, 1), (2, 1, 1)),
        ((4, 4, 2), (2, 2, 1)),
        ((4, 2, 1), (4, 1, 1)),
        ((2, 2, 1), (1, 1, 1)),
    ],
)
def test_cluster_registers(
    machine: Machine, grid: tuple[int, int, int], cluster: tuple[int, int, int]
) -> None:
    blocks = grid[0] * grid[1] * grid[2]
    out = machine.zeros(blocks, 12)
    machine.compile("barriers.cu").launch("cluster_registers", grid, 32, [out], cluster=cluster)
    expected = []
    for z, y, x in itertools.product(range(grid[2]), range(grid[1]), range(grid[0])):
        cx, cy, cz = cluster
        place = x % cx, y % cy, z % cz
        rank, size = place[0] + cx * (place[1] + cy * place[2]), cx * cy * cz
        expected.append(
            [x // cx, y // cy, z // cz, grid[0] // cx, grid[1] // cy, *place, cx, cy, rank, size]
        )
    assert out.tolist() == expected


def test_thread_registers(machine: Machine) -> None:
    shape = (6, 4, 3)
    threads = 72
    out = machine.zeros(threads, 12)
    program = machine.compile("barriers.cu")
    program.launch("thread_registers", 1, shape, [out], shared_bytes=640)
    expected = []
    for z, y, x in itertools.product(range(3), range(4), range(6)):
        thread = x + 6 * (y + 4 * z)
        lane = thread % 32
        equal, below = 1 << lane, (1 << lane) - 1
        above = WORD - 1 - equal - below
        masks = [equal, below, below | equal, above, above | equal]
        expected.append([x, y, z, lane, thread // 32, *masks, 640, threads])
    rows = [[value % WORD for value in row] for row in out.tolist()]
    # %warpid is where the hardware put the warp: the same in all lanes, no more is promised.
    for row, wanted in zip(rows, expected, strict=True):
        wanted[4] = rows[32 * wanted[4]][4]
        assert row == wanted


@pytest.mark.parametrize("ranks", [2, 4])
def test_cluster_shared(machine: Machine, ranks: int) -> None:
    blocks = 4
    out = machine.zeros(blocks, 96)
    machine.compile("barriers.cu").launch("cluster_shared", blocks, 32, [out], cluster=ranks)
    for block in range(blocks):
        rank = block % ranks
        loaded = [100 * ((rank + 1) % ranks) + lane for lane in range(32)]
        received = [1000 + 100 * rank + lane for lane in range(32)]  # the sender read it from here
        generic = [5000 + 100 * ((rank - 1) % ranks) + 31 - lane for lane in range(32)]
        assert out[block].tolist() == loaded + received + generic, f"block {block}"


def test_cluster_relaxed(machine: Machine) -> None:
    out = machine.zeros(64)
    machine.compile("barriers.cu").launch("cluster_relaxed", 4, 64, [out], cluster=4)
    assert out.tolist() == [64 * (1 + 2 + 3 + 4) + thread**2 for thread in range(64)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_cluster_store_async(machine: Machine, ranks: int) -> None:
    out = machine.zeros(4, 32, 8)
    machine.compile("barriers.cu").launch("cluster_store_async", 4, 32, [out], cluster=ranks)
    for block in range(4):
        sender = (block % ranks - 1) % ranks
        expected = [[1000 * sender + 10 * lane + i for i in range(8)] for lane in range(32)]
        assert out[block].tolist() == expected, f"block {block}"


@pytest.mark.parametrize("steps", [2, 7])
def test_registers_moved(machine: Machine, steps: int) -> None:
    data = torch.arange(steps * 128, dtype=torch.float32) % 61
    out = machine.zeros(2, 128, dtype=torch.float32)
    args = [machine.tensor(data), out, steps]
    machine.compile("barriers.cu").launch("registers_moved", 1, 384, args)
    total = data.view(steps, 128).sum(0)
    assert torch.equal(out.cpu(), torch.stack([total, 2 * total]))


def test_dependent_launch(machine: Machine) -> None:
    data = torch.arange(64, dtype=torch.int32)
    out = machine.zeros(64)
    machine.compile("barriers.cu").launch("dependent_launch", 1, 64, [machine.tensor(data), out])
    assert torch.equal(out.cpu(), data + 1)

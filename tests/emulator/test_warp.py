"""Lanes of a warp: exchange, votes, reductions, and lanes that part ways and meet again."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from machines import Machine

WORD = 2**32
LANES = range(32)


def values(low: int = -100, high: int = 100, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, (32,), generator=torch.Generator().manual_seed(seed)).int()


def shuffled_lane(mode: str, lane: int, source: int, clamp: int) -> tuple[int, bool]:
    """The lane that is read, and whether it is in range (PTX ISA: shfl.sync)."""
    segment = clamp >> 8 & 31
    last = (lane & segment) | (clamp & 31 & ~segment)
    first = lane & segment
    source &= 31
    if mode == "up":
        other = lane - source
        valid = other >= last
    else:
        other = {
            "down": lane + source,
            "bfly": lane ^ source,
            "idx": first | (source & ~segment),
        }[mode]
        valid = other <= last
    return (other if valid else lane), valid


@pytest.mark.parametrize("mode", ["idx", "up", "down", "bfly"])
def test_shuffle(machine: Machine, mode: str) -> None:
    program = machine.compile("warp.cu")
    data = values()
    uniform = [torch.full((32,), n, dtype=torch.int32) for n in (0, 1, 5, 16, 31, 40)]
    # Segments of 32, 16, 8 and 4 lanes.
    segments = [(32 - width) << 8 for width in (32, 16, 8, 4)]
    for source in [*uniform, values(0, 32, seed=1)]:
        for segment in segments:
            clamp = segment | (0 if mode == "up" else 31)
            out = machine.zeros(2, 32)
            args = [machine.tensor(data), machine.tensor(source), clamp, out]
            program.launch(f"shfl_{mode}_lanes", 1, 32, args)
            lanes = [shuffled_lane(mode, lane, int(source[lane]), clamp) for lane in LANES]
            expected = [[int(data[lane]) for lane, _ in lanes], [int(valid) for _, valid in lanes]]
            assert out.tolist() == expected, f"source {source.tolist()}, clamp {clamp:#x}"


def test_shuffle_quads(machine: Machine) -> None:
    data = values(seed=2).float()
    out = machine.zeros(2, 32, dtype=torch.float32)
    machine.compile("warp.cu").launch("shfl_quads", 1, 32, [machine.tensor(data), out])
    quads = data.view(8, 4)
    expected = torch.stack([quads.amax(1), quads.sum(1)]).repeat_interleave(4, dim=1)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize(("low", "high"), [(-100, 100), (1, 100), (-100, 0)])
def test_votes(machine: Machine, low: int, high: int) -> None:
    data = values(low, high)
    out = machine.zeros(32, 6)
    machine.compile("warp.cu").launch("votes", 1, 32, [machine.tensor(data), out])
    positive = data > 0
    ballot = sum(1 << lane for lane in LANES if positive[lane])
    uniform = bool(positive.all() or not positive.any())
    for lane in LANES:
        odd = sum(1 << i for i in range(20) if data[i] & 1)
        negative = sum(1 << i for i in range(20, 32) if data[i] < 0)
        part = odd if lane < 20 else negative
        wanted = [bool(positive.any()), bool(positive.all()), ballot, uniform, part, WORD - 1]
        assert [value % WORD for value in out[lane].tolist()] == wanted, f"lane {lane}"


def test_reductions(machine: Machine) -> None:
    data = values(-(2**31), 2**31 - 1)
    out = machine.zeros(32, 9)
    machine.compile("warp.cu").launch("reductions", 1, 32, [machine.tensor(data), out])
    numbers = data.tolist()
    words = [number % WORD for number in numbers]
    common = [sum(numbers), min(numbers), max(numbers), min(words), max(words)]
    common += [functools.reduce(op, words) for op in (operator.and_, operator.or_, operator.xor)]
    for lane in LANES:
        wanted = [*common, sum(numbers[:8]) if lane < 8 else 0]
        assert [v % WORD for v in out[lane].tolist()] == [v % WORD for v in wanted], f"lane {lane}"


def test_elections(machine: Machine) -> None:
    out = machine.zeros(4, 32, 3)
    machine.compile("warp.cu").launch("elections", 1, 128, [out])
    for warp in range(4):
        first, second, leader = out[warp].cpu().unbind(1)
        assert first.sum() == 1
        assert torch.equal(first, second)
        assert (leader == first.argmax()).all()


@pytest.mark.parametrize("kinds", [1, 5, 100])
def test_matches(machine: Machine, kinds: int) -> None:
    data = values(0, kinds)
    out = machine.zeros(3, 32)
    machine.compile("warp.cu").launch("matches", 1, 32, [machine.tensor(data), out])
    numbers = data.tolist()
    same = [sum(1 << i for i in LANES if numbers[i] == number) for number in numbers]
    everywhere = WORD - 1 if kinds == 1 else 0
    expected = [same, [everywhere] * 32, [int(kinds == 1)] * 32]
    assert [[v % WORD for v in row] for row in out.tolist()] == expected


def test_loops(machine: Machine) -> None:
    out = machine.zeros(64)
    data = torch.arange(1, 65, dtype=torch.int32)
    machine.compile("warp.cu").launch("loops", 1, 64, [machine.tensor(data), out])
    expected = []
    for value in range(1, 65):
        rounds = 0
        while value != 1:
            value = 3 * value + 1 if value & 1 else value // 2
            rounds += 1
        expected.append(rounds)
    assert out.tolist() == expected


def branched(value: int, lane: int) -> int:
    if value > 0:
        if value & 1:
            i = 0
            while i < value & 7:  # the bound moves with the value
                value += (value % WORD).bit_count() + i
                i += 1
        else:
            value = -value if value > 50 else 3 * value
            if lane & 4:
                value ^= 0x55
    elif value < -20:
        value = -(-value // 3) - lane  # C truncates
    return value


def test_branches(machine: Machine) -> None:
    data = values(-100, 100, seed=3)
    out = machine.zeros(32)
    machine.compile("warp.cu").launch("branches", 1, 32, [machine.tensor(data), out])
    numbers = data.tolist()
    between = [branched(number, lane) for lane, number in enumerate(numbers)]
    expected = []
    for lane, number in enumerate(numbers):
        value, other = between[lane], between[lane ^ 5]
        expected.append([value + other, value - other, value ^ other, other][number & 3])
    assert out.tolist() == expected


def test_early_return(machine: Machine) -> None:
    data = values(-30, 100, seed=4)
    out = machine.tensor(torch.full((32,), -1, dtype=torch.int32))
    machine.compile("warp.cu").launch("early_return", 1, 32, [machine.tensor(data), out])
    numbers = data.tolist()
    stay = [lane for lane in LANES if numbers[lane] >= 0]
    result = sum(numbers[lane] for lane in stay) + stay[-1]
    assert out.tolist() == [result if lane in stay else -1 for lane in LANES]


def test_spins(machine: Machine) -> None:
    """A lane waits for a lane of another warp, which waits for a lane of the first's warp."""
    out = machine.zeros(65)
    machine.compile("warp.cu").launch("spins", 1, 64, [out])
    assert out.tolist() == [6, *[11] * 64]


def test_locks(machine: Machine) -> None:
    lock, counter = machine.zeros(1), machine.zeros(1)
    machine.compile("warp.cu").launch("locks", 2, 64, [lock, counter, 3])
    assert counter.item() == 2 * 64 * 3
    assert lock.item() == 0


def test_local_memory(machine: Machine) -> None:
    data = values(0, 1000, seed=5)
    out = machine.zeros(32)
    machine.compile("warp.cu").launch("local_memory", 1, 32, [machine.tensor(data), out])
    numbers = data.tolist()
    expected = []
    for thread in LANES:
        total = 0
        for i in range(16):
            total = (total * 31 + numbers[(thread + (numbers[i] & 15)) % 32]) % WORD
        expected.append(total)
    assert [value % WORD for value in out.tolist()] == expected

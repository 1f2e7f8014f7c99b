"""mbarriers: counts, parity and tokens, transactions, rings, arrivals from other CTAs."""

from __future__ import annotations

import pytest
import torch
from machines import Machine

WORD = 2**32


def signed(values: list[int]) -> torch.Tensor:
    """Unsigned 32-bit values as int32."""
    return torch.tensor([v - WORD if v >= WORD // 2 else v for v in values], dtype=torch.int32)


def test_counts(machine: Machine) -> None:
    out = machine.zeros(9)
    machine.compile("mbarrier.cu").launch("mbarrier_counts", 1, 1, [out])
    assert out.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1]


def test_tokens(machine: Machine) -> None:
    out = machine.zeros(7)
    machine.compile("mbarrier.cu").launch("mbarrier_tokens", 1, 1, [out])
    # Pending counts before each arrival; the phase is complete after the third.
    assert out.tolist() == [3, 0, 2, 1, 1, 1, 0]


def test_transactions(machine: Machine) -> None:
    data = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    out = machine.zeros(6)
    machine.compile("mbarrier.cu").launch(
        "mbarrier_transactions", 1, 32, [machine.tensor(data), out]
    )
    assert out.tolist() == [0, 255, 0, 128, 255, 1]


@pytest.mark.parametrize(("threads", "phases"), [(32, 5), (256, 9)])
def test_phases(machine: Machine, threads: int, phases: int) -> None:
    out = machine.zeros(threads)
    machine.compile("mbarrier.cu").launch("mbarrier_phases", 1, threads, [out, phases])
    value = list(range(threads))
    for phase in range(phases):
        value = [(3 * value[(i + 1) % threads] + phase) % WORD for i in range(threads)]
    assert torch.equal(out.cpu(), signed(value))


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_ring(machine: Machine, steps: int) -> None:
    data = torch.arange(32 * steps, dtype=torch.int32) * 11 + 3
    out = machine.zeros(96)
    machine.compile("mbarrier.cu").launch(
        "mbarrier_ring", 1, 160, [machine.tensor(data), out, steps]
    )
    expected = []
    for thread in range(64, 160):
        total = 0
        for step in range(steps):
            total = (5 * total + 11 * (32 * step + (thread + thread // 32) % 32) + 3) % WORD
        expected.append(total)
    assert torch.equal(out.cpu(), signed(expected))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_remote_arrivals(machine: Machine, ranks: int) -> None:
    rounds = 6
    out = machine.zeros(rounds)
    machine.compile("mbarrier.cu").launch(
        "mbarrier_remote", ranks, 32, [out, rounds], cluster=ranks
    )
    expected = [sum(100 * rank + step for rank in range(ranks)) for step in range(rounds)]
    assert out.tolist() == expected


def test_leader_by_mask(machine: Machine) -> None:
    """All threads of both CTAs reach the even CTA's barrier; the odd one's stays as it was."""
    out = machine.zeros(4, 64)
    machine.compile("mbarrier.cu").launch("mbarrier_leader_by_mask", 4, 64, [out], cluster=2)
    assert out.cpu().sum(1).tolist() == [64, 0, 64, 0]

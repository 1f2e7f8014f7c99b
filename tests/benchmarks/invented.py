"""A stopwatch with invented times, for the tests of the GPU benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpu_cells import Setup
from gpu_timing import Measurement, Reading
from peers import Peer

PER_CLOCK = 132 * 4096


class FakeStopwatch:
    """The n-th function it is asked about takes times[n] microseconds."""

    flops_per_clock = PER_CLOCK
    no_clock = ""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)
        self.events: list[str] = []

    def new_graphs(self) -> None:
        self.events.append("new graphs")

    def burst(self, function: Callable[[], object]) -> Measurement:
        self.events.append("graph")
        function()
        us = next(self.times)
        return lambda: Reading(us, 1750.0)

    def sustained(self, function: Callable[[], object]) -> Measurement:
        return self.burst(function)


def invented_setup(ours: Any, others: Mapping[str, Peer], *times: float, **options: Any) -> Setup:
    return Setup(ours, others, FakeStopwatch(*times), rounds=2, device="cpu", **options)

"""GPU time of a call: in bursts on a card that has idled, and sustained on a hot one.

Both replay CUDA graphs, so that no function is charged what its Python costs the host.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sm_clock import SmClock

BURST_MS = 10.0  # calls in the graph of a burst
IDLE_SECONDS = 0.05  # before each burst
WARM_UP_MS = 20.0  # calls before a sustained round
SUSTAINED_MS = 60.0  # calls of a sustained round
FLUSH_BYTES = 256 << 20  # written between sustained calls: several times any L2 cache
SLEEP_CYCLES = 2_000_000  # about 1 ms in which the host gets ahead of the GPU
# Dense 16-bit tensor-core operations per clock and SM, by compute capability.
TENSOR_FLOPS = {(9, 0): 4096, (10, 0): 8192, (10, 3): 8192}

Function = Callable[[], object]

_cuda: Any = torch.cuda  # where torch has no types


@dataclass(frozen=True)
class Reading:
    """One round of one function."""

    us: float  # per call
    mhz: float | None  # mean clock of the SMs meanwhile


Measurement = Callable[[], Reading]


def interleave(measurements: Mapping[str, Measurement], rounds: int) -> dict[str, list[Reading]]:
    """Takes every measurement once per round, in an order that rotates."""
    order = list(measurements)
    readings: dict[str, list[Reading]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            readings[name].append(measurements[name]())
        order.append(order.pop(0))
    return readings


class Stopwatch:
    """Prepares measurements on the current GPU."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        per_sm = TENSOR_FLOPS.get((properties.major, properties.minor))
        self.flops_per_clock = per_sm and per_sm * properties.multi_processor_count
        self.clock: SmClock | None = None
        self.no_clock = ""  # the reason why there is none
        try:
            self.clock = SmClock()
        except Exception as error:  # a figure less, no reason to stop
            self.no_clock = f"{type(error).__name__}: {error}"
        self.new_graphs()

    def new_graphs(self) -> None:
        """Gives back the memory of the graphs so far. They share a pool, which ends with them."""
        torch.cuda.empty_cache()
        self._pool: Any = torch.cuda.graph_pool_handle()

    def burst(self, function: Function) -> Measurement:
        return Burst(function, call_ms(function), self.clock, self._pool)

    def sustained(self, function: Function) -> Measurement:
        return Sustained(function, call_ms(function), self.clock, self._pool)


class Burst:
    """About BURST_MS of calls in one graph, replayed after IDLE_SECONDS."""

    def __init__(
        self, function: Function, call_ms: float, clock: SmClock | None, pool: Any
    ) -> None:
        self.calls = max(1, round(BURST_MS / call_ms))
        self.clock = clock

        def body() -> None:
            _mark(clock, 0)
            for _ in range(self.calls):
                function()
            _mark(clock, 1)

        self._graph = capture(body, pool)
        self._graph.replay()  # the first replay also copies the graph to the GPU

    def __call__(self) -> Reading:
        if self.clock is not None:
            self.clock.clear()
        torch.cuda.synchronize()
        time.sleep(IDLE_SECONDS)
        start, end = _event(), _event()
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        mhz = None if self.clock is None else self.clock.mhz()
        return Reading(1e3 * start.elapsed_time(end) / self.calls, mhz)


class Sustained:
    """Calls one after the other for SUSTAINED_MS, each with a cold L2 cache; their median."""

    def __init__(
        self, function: Function, call_ms: float, clock: SmClock | None, pool: Any
    ) -> None:
        self.calls = max(3, round(SUSTAINED_MS / call_ms))
        self.warm_up_calls = max(1, round(WARM_UP_MS / call_ms))
        self.clock = clock
        self._flush = _flush_buffer()
        self._graph = capture(function, pool)

    def __call__(self) -> Reading:
        for _ in range(self.warm_up_calls):
            self._call(_event(), _event())
        events = [(_event(), _event()) for _ in range(self.calls)]
        if self.clock is not None:
            self.clock.clear()
        _mark(self.clock, 0)
        for start, end in events:
            self._call(start, end)
        _mark(self.clock, 1)
        torch.cuda.synchronize()
        times = sorted(start.elapsed_time(end) for start, end in events)
        mhz = None if self.clock is None else self.clock.mhz()
        return Reading(1e3 * times[len(times) // 2], mhz)

    def _call(self, start: Any, end: Any) -> None:
        self._flush.zero_()
        start.record()
        self._graph.replay()
        end.record()


def call_ms(function: Function, calls: int = 3) -> float:
    """GPU time of a call, roughly. The calls wait behind a sleep until all are launched."""
    function()
    start, end = _event(), _event()
    _cuda._sleep(SLEEP_CYCLES)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def capture(body: Function, pool: Any) -> torch.cuda.CUDAGraph:
    """The graph of what body launches.

    torch.cuda.graph would collect garbage and empty the allocator's cache each time, which takes
    longer than the calls.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(_capture_stream()):
        graph.capture_begin(pool=pool)
        try:
            body()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # body's own error says more
                graph.capture_end()
            raise
        graph.capture_end()
    return graph


def _mark(clock: SmClock | None, point: int) -> None:
    if clock is not None:
        clock.mark(point)


def _event() -> Any:
    return _cuda.Event(enable_timing=True)


@functools.cache
def _capture_stream() -> Any:
    return _cuda.Stream()


@functools.cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

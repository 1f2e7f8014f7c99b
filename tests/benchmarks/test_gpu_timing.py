"""The stopwatch of the GPU benchmarks: with a fake GPU, and on a real one where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import gpu_timing
import host_gpu
import pytest
import sm_clock
import torch
from gpu_timing import Reading

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_rounds_rotate_the_order() -> None:
    taken: list[str] = []

    def measurement(name: str) -> Callable[[], Reading]:
        def take() -> Reading:
            taken.append(name)
            return Reading(len(taken), None)

        return take

    readings = gpu_timing.interleave({name: measurement(name) for name in "abc"}, rounds=3)
    assert "".join(taken) == "abcbcacab"
    assert [r.us for r in readings["a"]] == [1, 6, 8]


class FakeGpu:
    """Counts what is launched; an event's time is the launches before it, in milliseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        monkeypatch.setattr(gpu_timing, "capture", self.capture)
        monkeypatch.setattr(gpu_timing, "_event", lambda: FakeEvent(self))
        monkeypatch.setattr(gpu_timing, "_flush_buffer", lambda: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))
        monkeypatch.setattr(time, "sleep", lambda seconds: self.log.append("idle"))

    def capture(self, body: Callable[[], object], pool: object) -> FakeGraph:
        before = self.log
        self.log = []
        body()
        graph, self.log = FakeGraph(self, self.log), before
        return graph

    def launch(self) -> None:
        self.log.append("call")

    def zero_(self) -> None:
        self.log.append("flush")

    # The clock.
    def clear(self) -> None:
        self.log.append("clear")

    def mark(self, point: int) -> None:
        self.log.append(f"mark{point}")

    def mhz(self) -> float:
        return 1700.0


class FakeGraph:
    def __init__(self, gpu: FakeGpu, nodes: list[str]) -> None:
        self.gpu, self.nodes = gpu, nodes

    def replay(self) -> None:
        self.gpu.log += self.nodes


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.at = self.gpu.log.count("call")

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_a_burst_is_one_graph_of_calls_between_two_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu(monkeypatch)
    burst = gpu_timing.Burst(gpu.launch, 2.4, gpu, None)  # type: ignore[arg-type]
    assert burst.calls == 4
    gpu.log.clear()
    assert burst() == Reading(us=1000.0, mhz=1700.0)
    assert gpu.log == ["clear", "wait", "idle", "mark0", *["call"] * 4, "mark1"]


def test_sustained_calls_are_flushed_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    sustained = gpu_timing.Sustained(gpu.launch, 10.0, gpu, None)  # type: ignore[arg-type]
    assert sustained() == Reading(us=1000.0, mhz=1700.0)
    pair = ["flush", "call"]
    assert gpu.log == [*pair * 2, "clear", "mark0", *pair * 6, "mark1", "wait"]


def test_clock_is_cycles_over_time_of_the_sms_seen_twice() -> None:
    before, after = torch.zeros(2, 5, 2, dtype=torch.int64)
    for sm, cycles in ((0, 17_000), (1, 17_500), (3, 18_000)):
        before[sm] = torch.tensor([2**40 + sm, 10**18])
        after[sm] = before[sm] + torch.tensor([cycles, 10_000])
    after[4] = torch.tensor([5, 10**18])  # missed at the first point
    assert sm_clock.megahertz(before, after) == 1750
    assert sm_clock.megahertz(before, torch.zeros_like(after)) is None


@pytest.mark.cpu_only("runs in the emulator in any case")
def test_kernel_writes_the_slot_of_its_sm_alone() -> None:
    emulator = pytest.importorskip(
        "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
    )
    module = emulator.Module(sm_clock.PTX.read_text(), sm_clock.PTX.name)
    slots = torch.full((sm_clock.SLOTS, 2), -1, dtype=torch.int64)
    module.launch(sm_clock.KERNEL.decode(), 8, 1, [slots])
    assert (slots[:8] >= 0).all()
    assert (slots[8:] == -1).all()


def test_host_time_is_that_of_all_calls_and_one_wait() -> None:
    now = [0.0]

    def work(seconds: float) -> None:
        now[0] += seconds

    functions = {"a": (lambda: work(2e-6), nullcontext), "b": (lambda: work(5e-6), nullcontext)}
    rounds = host_gpu.interleave(functions, lambda: work(1e-3), lambda: now[0])
    assert rounds["a"] == pytest.approx([3.0] * host_gpu.ROUNDS)
    assert rounds["b"] == pytest.approx([6.0] * host_gpu.ROUNDS)


@pytest.mark.cpu_only("starts processes that compute on the CPU")
def test_first_call_is_timed_in_its_own_process() -> None:
    records = list(host_gpu.first_call("cpu", processes=2))
    assert [record["unit"] for record in records] == ["ms"] * 3
    assert all(min(record["rounds"]) > 0 for record in records)


@needs_gpu
def test_burst_and_sustained_agree_on_a_matmul() -> None:
    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    stopwatch = gpu_timing.Stopwatch()
    assert stopwatch.no_clock == ""
    readings = [m() for m in (stopwatch.burst(lambda: a @ a), stopwatch.sustained(lambda: a @ a))]
    assert 0.5 < readings[0].us / readings[1].us < 2
    for reading in readings:
        assert reading.mhz is not None
        assert 300 < reading.mhz < 3000

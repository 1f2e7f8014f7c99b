"""What the emulator must refuse: wrong kernels, each with one mistake. A report says what went
wrong and where: line of the PTX and its text, kernel, block, warp and lanes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import machines
import pytest
import torch
from machines import Emulated, Machine
from torch import Tensor

emulator = pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")

SLACK = 1024


@pytest.fixture(autouse=True)
def _only_emulated(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--device") == "cuda":
        pytest.skip("a GPU does not name mistakes")


def words(count: int, value: int = 0) -> Tensor:
    return torch.full((count,), value, dtype=torch.int32)


def report(machine: Machine, name: str, args: Sequence[Any], **launch: Any) -> str:
    """The text of the error that the kernel ends with."""
    assert isinstance(machine, Emulated)
    program = machine.compile("failures.cu")
    options = replace(machine.options, **launch.pop("options", {}))
    shape = launch.pop("grid", 1), launch.pop("block", 32)
    with pytest.raises(emulator.EmulatorError) as error:
        program.module.launch(name, *shape, args, options=options, **launch)
    text = str(error.value)
    assert name in text, f"the report does not name the kernel:\n{text}"
    return text


def check_place(text: str, opcode: str) -> None:
    """The report quotes the line of the PTX."""
    assert re.search(r"line \d+", text), text
    assert opcode in text, text


# ---- Memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    kernel: str
    args: Callable[[], Sequence[Any]]
    says: str  # regular expression
    at: str = ""  # opcode in the quoted line
    shared_bytes: int = 0
    block: int = 32
    grid: int = 1
    cluster: int = 1

    def __str__(self) -> str:
        return self.kernel


BEYOND = r"global memory: 4 bytes .* out of bounds"
MEMORY = [
    Mistake("global_store", lambda: [words(64), 64], BEYOND, "st.global"),
    Mistake("global_store", lambda: [words(64), -1], BEYOND, "st.global"),
    Mistake("global_load", lambda: [words(64), words(32), 1 << 40], BEYOND, "ld.global"),
    Mistake("global_reduce", lambda: [torch.zeros(8), 8], BEYOND, "add"),
    Mistake(
        "global_misaligned", lambda: [words(64), words(32)], r"misaligned.*4 bytes", "ld.global"
    ),
    Mistake("shared_store", lambda: [256], r"shared memory: 4 bytes", "st.shared", 256),
    Mistake("shared_misaligned", lambda: [words(32)], r"misaligned.*8 bytes", "ld.shared.v2", 64),
    Mistake("shared_uninitialized", lambda: [words(32)], r"never written", "ld.shared", 128),
    Mistake("shared_remote", lambda: [3], r"CTA 3", "", 64, grid=2, cluster=2),
    Mistake("local_store", lambda: [words(32), words(32), 100], r"local memory: 4 bytes", "st"),
    Mistake("bulk_size", lambda: [words(64), 24], r"multiples? of 16.*24", "cp.async.bulk", 256),
]


@pytest.mark.parametrize("mistake", MEMORY, ids=str)
def test_memory(machine: Machine, mistake: Mistake) -> None:
    launch = {"shared_bytes": mistake.shared_bytes, "block": mistake.block}
    launch |= {"grid": mistake.grid, "cluster": mistake.cluster}
    text = report(machine, mistake.kernel, mistake.args(), **launch)
    assert re.search(mistake.says, text), text
    check_place(text, mistake.at)


def test_memory_list_is_the_limit(machine: Machine) -> None:
    """Memory of the process that the launch does not list is out of bounds."""
    tensor = words(64)
    report(machine, "global_store", [tensor, 40], memory=[tensor[:32]])
    assert isinstance(machine, Emulated)
    module = machine.compile("failures.cu").module
    module.launch("global_store", 1, 32, [tensor, 40], options=machine.options, memory=[tensor])
    assert tensor[40] == 1


def tensor_map(rows: int = 8) -> Any:
    tensor = torch.zeros(rows, 64, dtype=torch.bfloat16)
    return emulator.tensor_map(tensor, [64, rows], [128], [64, 8], swizzle=128)


@pytest.mark.parametrize(
    ("map_of", "offset", "says"),
    [
        (lambda: bytes(128), 0, r"tensor map"),
        (tensor_map, 64, r"multiple of 128"),
        (tensor_map, 4096, r"shared memory"),
    ],
    ids=["no_map", "misaligned_box", "box_beyond_the_end"],
)
def test_tensor_copy(machine: Machine, map_of: Callable[[], Any], offset: int, says: str) -> None:
    text = report(machine, "tensor_box", [map_of(), 1024, offset], shared_bytes=1024 + SLACK)
    assert re.search(says, text), text
    check_place(text, "cp.async.bulk.tensor.2d")


def test_tensor_copy_beyond_the_listed_memory(machine: Machine) -> None:
    tensor = torch.zeros(16, 64, dtype=torch.bfloat16)
    whole = emulator.tensor_map(tensor, [64, 16], [128], [64, 8], swizzle=128)
    text = report(
        machine, "tensor_box", [whole, 1024, 0], shared_bytes=1024 + SLACK, memory=[tensor[:8]]
    )
    assert "out of bounds" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"box": [64, 300]}, "box"),
        ({"strides": [100]}, "strides"),
        ({"box": [128, 8]}, "swizzle"),
        ({"dims": [64]}, "strides"),
        ({"dims": [0, 8]}, "dims"),
    ],
)
def test_tensor_map_request(changes: dict[str, Any], says: str) -> None:
    request = {"dims": [64, 8], "strides": [128], "box": [64, 8], "swizzle": 128} | changes
    tensor = torch.zeros(8, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=says):
        emulator.tensor_map(tensor, **request)


# ---- Warps and control ---------------------------------------------------------------------------


def test_divergent_ldmatrix(machine: Machine) -> None:
    text = report(machine, "divergent_ldmatrix", [words(32)], shared_bytes=512)
    assert re.search(r"lanes? ", text), text
    check_place(text, "ldmatrix")


def test_divergent_cluster_arrive(machine: Machine) -> None:
    text = report(machine, "divergent_cluster_arrive", [words(64)], grid=2, cluster=2)
    check_place(text, "barrier.cluster.arrive")


def test_assert(machine: Machine) -> None:
    values = words(32, 1)
    values[9] = 4
    text = report(machine, "failed_assert", [values])
    assert "in[threadIdx.x] < 4" in text
    assert "failures.cu" in text
    assert "lane 9" in text
    report(machine, "failed_assert", [words(32, 5)])


def test_trap(machine: Machine) -> None:
    text = report(machine, "trapped", [words(32, 7)])
    check_place(text, "trap")
    assert isinstance(machine, Emulated)
    module = machine.compile("failures.cu").module
    module.launch("trapped", 1, 32, [words(32, 6)], options=machine.options)


def test_endless_loop(machine: Machine) -> None:
    text = report(machine, "endless_loop", [words(64)], options={"max_steps": 50_000})
    assert "max_steps = 50000" in text


def test_endless_poll(machine: Machine) -> None:
    text = report(machine, "endless_poll", [words(1), words(32)], options={"stall_steps": 100_000})
    assert "hung" in text
    assert re.search(r"warp 0, all lanes: line \d+", text), text


# ---- Barriers ------------------------------------------------------------------------------------


def test_mbarrier_deadlock(machine: Machine) -> None:
    """Every waiting warp with the barrier, its phase, and what is missing."""
    text = report(machine, "mbarrier_deadlock", [words(64)], block=64)
    assert "deadlock" in text
    assert len(set(re.findall(r"warp (\d)", text))) == 2, text
    assert re.search(r"mbarrier 0x[0-9a-f]+", text), text
    assert "phase 0" in text
    assert re.search(r"1 of 33 arrivals|pending.* 1\b", text), text
    check_place(text, "mbarrier.try_wait.parity")


def test_barriers_have_names(machine: Machine) -> None:
    names = {address: f"barrier_{address:#x}" for address in range(0x400, 0x800, 8)}
    options = {"barrier_names": names}
    text = report(machine, "mbarrier_deadlock", [words(64)], block=64, options=options)
    assert re.search(r"mbarrier (0x[0-9a-f]+) barrier_\1 \(init in line \d+\)", text), text


def test_missing_bytes(machine: Machine) -> None:
    text = report(machine, "missing_bytes", [words(64), words(32)])
    assert "deadlock" in text
    assert "128 bytes" in text


def test_too_many_bytes(machine: Machine) -> None:
    text = report(machine, "too_many_bytes", [words(64), words(32)])
    assert re.search(r"-128|128 bytes (too many|more)", text), text


def test_arrival_overflow(machine: Machine) -> None:
    text = report(machine, "arrival_overflow", [words(32)])
    assert "more arrivals than expected" in text
    check_place(text, "mbarrier.arrive")


def test_uninitialized_barrier(machine: Machine) -> None:
    text = report(machine, "uninitialized_barrier", [words(32)])
    assert "no initialised barrier" in text
    check_place(text, "mbarrier.arrive")


def test_named_barrier_deadlock(machine: Machine) -> None:
    text = report(machine, "named_barrier_deadlock", [words(64)], block=64)
    assert "deadlock" in text
    for number in (5, 6):
        assert re.search(rf"barrier {number}\b.*32 of 64", text), text
    check_place(text, "bar.sync")


def test_cluster_barrier_deadlock(machine: Machine) -> None:
    text = report(machine, "cluster_barrier_deadlock", [words(32)], grid=2, cluster=2)
    assert "deadlock" in text
    assert re.search(r"32 of 64", text), text
    check_place(text, "barrier.cluster.wait")
    check_place(text, "mbarrier.try_wait")


# ---- Tensor memory -------------------------------------------------------------------------------

# As enum Mistake in failures.cu.
TENSOR_MEMORY = {
    "columns": (1, r"columns 60 to|column 6\d", "tcgen05.ld"),
    "uninitialized": (2, r"never written", "ld.sync.aligned"),  # of the load or its wait
    "quadrant": (3, r"warp \d may access lanes", "tcgen05.st"),
    "leak": (4, r"64 columns|not (been )?(freed|deallocated|given back)|dealloc", ""),
    "other_address": (5, r"no allocation", "tcgen05.dealloc"),
    "other_columns": (6, r"no allocation", "tcgen05.dealloc"),
    "count": (7, r"power of two.*48", "tcgen05.alloc"),
    "after_relinquish": (8, r"permit", "tcgen05.alloc"),
    "shape": (9, r"no shape M = 112", ""),
}


@pytest.mark.archs("sm100")
@pytest.mark.parametrize("mistake", TENSOR_MEMORY)
def test_tensor_memory(machine: Machine, mistake: str) -> None:
    number, says, opcode = TENSOR_MEMORY[mistake]
    text = report(machine, "tmem_mistake", [words(128), number], block=128, shared_bytes=1024)
    assert re.search(says, text), text
    if opcode:
        check_place(text, opcode)


@pytest.mark.archs("sm100")
def test_tensor_memory_without_mistake(machine: Machine) -> None:
    assert isinstance(machine, Emulated)
    out = words(128)
    module = machine.compile("failures.cu").module
    module.launch("tmem_mistake", 1, 128, [out, 0], options=machine.options)
    assert out.tolist() == [8] * 128


# ---- Text that is no PTX -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (r"bar\.warp\.sync", "bar.warp.sink", NotImplementedError),
        (r"mul\.wide\.u32", "frobnicate.u32", NotImplementedError),
        (r"\.visible \.entry", ".visible .entrance", ValueError),
    ],
    ids=["modifier", "opcode", "syntax"],
)
def test_unknown_text(old: str, new: str, error: type[Exception]) -> None:
    """The error names file and line and holds the line."""
    text = machines.compiled("barriers.cu", "sm90", "ptx").decode()
    changed, count = re.subn(old, new, text, count=1)
    assert count == 1
    line = changed[: changed.index(new)].count("\n") + 1
    with pytest.raises(error) as caught:
        emulator.Module(changed, "changed.ptx")
    assert f"changed.ptx:{line}" in str(caught.value)
    assert new.split()[-1] in str(caught.value)

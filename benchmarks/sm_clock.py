"""The clock that the SMs run at, read on the GPU: cycles over time between two points of a stream.

The driver's clock is a value before or after a burst, when the GPU idles at its highest clock. The
cycle counter of an SM keeps counting between kernels, so two tiny kernels around a burst are
enough, and they may stand in the same CUDA graph.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_cuda: Any = torch.cuda  # where torch has no types

PTX = Path(__file__).parent / "kernels" / "read_clocks.ptx"
KERNEL = b"fa4_bench_read_clocks"
SLOTS = 512  # more than %smid reaches
TRIAL_CYCLES = 2_000_000  # about 1 ms
MIN_MHZ, MAX_MHZ = 100, 5000  # that can be true
BLOCKS_PER_SM = 2  # of one thread; any SM that is missed at one point is left out


class SmClock:
    """Raises OSError or RuntimeError where the kernel cannot be loaded."""

    def __init__(self) -> None:
        self._stamps = torch.zeros(2, SLOTS, 2, dtype=torch.int64, device="cuda")
        self._blocks = BLOCKS_PER_SM * torch.cuda.get_device_properties().multi_processor_count
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.cuLaunchKernel.argtypes = [
            ctypes.c_void_p,
            *[ctypes.c_uint] * 7,
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_void_p,
        ]
        self._kernel = self._load()
        self.mark(0)
        _cuda._sleep(TRIAL_CYCLES)
        self.mark(1)
        mhz = self.mhz()
        if mhz is None or not MIN_MHZ < mhz < MAX_MHZ:
            raise RuntimeError(f"the SMs' counters tell a clock of {mhz} MHz")

    def clear(self) -> None:
        self._stamps.zero_()

    def mark(self, point: int) -> None:
        """Reads all clocks, in the order of the current stream. point: 0 before, 1 after."""
        slots = ctypes.c_uint64(self._stamps[point].data_ptr())
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(slots))
        stream = torch.cuda.current_stream().cuda_stream
        grid, block, shared_bytes = (self._blocks, 1, 1), (1, 1, 1), 0
        launch = self._driver.cuLaunchKernel
        self._check(launch(self._kernel, *grid, *block, shared_bytes, stream, arguments, None))

    def mhz(self) -> float | None:
        """Mean clock between the two points, which this waits for."""
        return megahertz(*self._stamps.cpu())

    def _load(self) -> ctypes.c_void_p:
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        load = self._driver.cuModuleLoadData
        try:
            self._check(load(ctypes.byref(module), PTX.read_bytes() + b"\0"))
        except RuntimeError:  # a driver without its compiler
            self._check(load(ctypes.byref(module), _assemble()))
        self._check(self._driver.cuModuleGetFunction(ctypes.byref(kernel), module, KERNEL))
        return kernel

    def _check(self, status: int) -> None:
        if status != 0:
            name = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(name))
            text = (name.value or b"unknown").decode()
            raise RuntimeError(f"CUDA driver error {status} ({text})")


def megahertz(before: Tensor, after: Tensor) -> float | None:
    """Median over the SMs. before, after: (SMs, 2), cycles and nanoseconds, zero where not read."""
    seen = (before[:, 1] > 0) & (after[:, 1] > before[:, 1])
    if not seen.any():
        return None
    cycles, ns = (after - before)[seen].double().unbind(1)
    return float((1e3 * cycles / ns).median())


def _assemble() -> bytes:
    """The machine code of the kernel, by the first ptxas there is."""
    triton = importlib.util.find_spec("triton")
    candidates = [shutil.which("ptxas")]
    if triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        candidates.append(shutil.which("ptxas", path=str(bundled)))
    ptxas = next((path for path in candidates if path is not None), None)
    if ptxas is None:
        raise RuntimeError("the driver does not compile PTX, and no ptxas was found")
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "read_clocks.cubin"
        command = [ptxas, f"-arch=sm_{major}{minor}", str(PTX), "-o", str(cubin)]
        subprocess.run(command, check=True, capture_output=True)
        return cubin.read_bytes()

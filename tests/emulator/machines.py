"""Where the kernels of tests/emulator/kernels run: the emulator or a GPU, behind one interface.

A test compiles a source, makes tensors and tensor maps and launches, and does not know which it is.
nvcc's output is kept in build/emulator-kernels by a hash of all that goes into it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(__file__).resolve().parent / "kernels"
BUILDS = ROOT / "build" / "emulator-kernels"

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import find_nvcc  # noqa: E402

# Architecture -> what nvcc compiles for.
TARGETS = {"sm90": "90a", "sm100": "100f"}

# In which order things happen. Right kernels give the same result in all of them.
SCHEDULES: dict[str, dict[str, Any]] = {
    "eager": {"policy": "eager"},
    "lazy": {"policy": "lazy", "order": "descending", "accumulate": "exact"},
    **{
        f"random{seed}": {
            "policy": "random",
            "seed": seed,
            "order": "random",
            "random_election": True,
        }
        for seed in (1, 2)
    },
}

Extent = int | tuple[int, ...]


class NoCompiler(Exception):
    """The text says what is missing."""


# ---- Compiling -----------------------------------------------------------------------------------


@functools.cache
def _nvcc() -> tuple[str, str]:
    """Path and version text."""
    path = find_nvcc()
    if path is None:
        raise NoCompiler("no nvcc on this machine")
    banner = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return str(path), banner


@functools.cache
def compiled(source: str, arch: str, kind: str, defines: tuple[str, ...] = ()) -> bytes:
    """Output of nvcc for kernels/SOURCE: kind is "ptx" or "cubin". Warnings are errors."""
    nvcc, banner = _nvcc()
    target = TARGETS[arch]
    options = ["-std=c++20", "-O3", "-ftz=true", f"-{kind}", "-Werror=all-warnings"]
    options += [f"-gencode=arch=compute_{target},code=sm_{target}", *(f"-D{d}" for d in defines)]
    texts = [(KERNELS / name).read_text() for name in (source, "ptx.cuh")]
    key = hashlib.sha256("\0".join([banner, *options, *texts]).encode()).hexdigest()[:20]
    result = BUILDS / f"{Path(source).stem}-{arch}-{key}.{kind}"
    if not result.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(suffix=f".{kind}", dir=BUILDS)
        os.close(handle)
        done = subprocess.run(
            [nvcc, *options, "-o", work, str(KERNELS / source)], capture_output=True, text=True
        )
        if done.returncode != 0:
            os.unlink(work)
            raise AssertionError(f"{source} for {arch}:\n{done.stdout}{done.stderr}")
        os.replace(work, result)  # whole or not at all, also beside another run
    return result.read_bytes()


# ---- The interface -------------------------------------------------------------------------------


class Program(ABC):
    """A compiled source on one machine."""

    @abstractmethod
    def launch(
        self,
        name: str,
        grid: Extent,
        block: Extent,
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        cluster: Extent = 1,
    ) -> None:
        """Runs a kernel to its end. args: Tensor, tensor map, int, float or bytes per parameter."""


class Machine(ABC):
    """What launches: `arch` is "sm90" or "sm100", tensors live on `device`."""

    arch: str
    device: torch.device

    @abstractmethod
    def compile(self, source: str, defines: tuple[str, ...] = ()) -> Program:
        """kernels/SOURCE, ready to launch. Raises NoCompiler."""

    @abstractmethod
    def tensor_map(
        self,
        base: Tensor,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        *,
        swizzle: int = 0,
        fill: str = "zeros",
    ) -> Any:
        """As flash_attn4.emulator.tensor_map: innermost dimension first, strides in bytes."""

    def tensor(self, data: Tensor) -> Tensor:
        """A copy of the data where kernels can reach it."""
        return data.contiguous().clone().to(self.device)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self.device)


# ---- The emulator --------------------------------------------------------------------------------


@functools.cache
def _emulated_module(source: str, arch: str, defines: tuple[str, ...]) -> Any:
    from flash_attn4 import emulator

    return emulator.Module(compiled(source, arch, "ptx", defines).decode(), source)


@dataclass
class EmulatedProgram(Program):
    module: Any  # flash_attn4.emulator.Module
    options: Any

    def launch(
        self,
        name: str,
        grid: Extent,
        block: Extent,
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        cluster: Extent = 1,
    ) -> None:
        # Every tensor a test gives is reachable through an argument: anything else is an error.
        tensors = [getattr(value, "tensor", value) for value in args]
        self.module.launch(
            name,
            grid,
            block,
            args,
            shared_bytes=shared_bytes,
            cluster=cluster,
            options=self.options,
            memory=[tensor for tensor in tensors if isinstance(tensor, Tensor)],
        )


class Emulated(Machine):
    device = torch.device("cpu")

    def __init__(self, arch: str, schedule: str) -> None:
        from flash_attn4 import emulator

        self.arch = arch
        self.schedule = schedule
        self.options = emulator.Options(**SCHEDULES[schedule])
        self._tensor_map = emulator.tensor_map

    def compile(self, source: str, defines: tuple[str, ...] = ()) -> EmulatedProgram:
        return EmulatedProgram(_emulated_module(source, self.arch, defines), self.options)

    def tensor_map(
        self,
        base: Tensor,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        *,
        swizzle: int = 0,
        fill: str = "zeros",
    ) -> Any:
        return self._tensor_map(base, dims, strides, box, swizzle=swizzle, fill=fill)


# ---- A GPU ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuTensorMap:
    bytes: bytes = field(repr=False)
    tensor: Tensor  # kept alive: the map holds its address


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a driver call, or RuntimeError."""
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA driver: {error!r}")
    return values[0] if values else None


def _encoded(size: int, value: Any) -> bytes:
    """The bytes of an argument for a parameter of `size` bytes."""
    if isinstance(value, Tensor):
        value = value.data_ptr()
    elif isinstance(value, GpuTensorMap):
        value = value.bytes
    if isinstance(value, int):
        value = (value % 2 ** (8 * size)).to_bytes(size, "little")
    elif isinstance(value, float):
        value = struct.pack("<f" if size == 4 else "<d", value)
    assert len(value) == size, f"an argument of {len(value)} bytes for a parameter of {size}"
    return value


def _triple(extent: Extent) -> tuple[int, int, int]:
    x, y, z = (*((extent,) if isinstance(extent, int) else extent), 1, 1)[:3]
    return x, y, z


class GpuProgram(Program):
    def __init__(self, driver: Any, image: bytes) -> None:
        self._driver = driver
        self._image = image
        self._module = _checked(driver.cuModuleLoadData(image))

    def launch(
        self,
        name: str,
        grid: Extent,
        block: Extent,
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        cluster: Extent = 1,
    ) -> None:
        driver = self._driver
        function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, most, shared_bytes))
        values = []
        for i, value in enumerate(args):
            error, _, size = driver.cuFuncGetParamInfo(function, i)
            _checked((error,))
            values.append(ctypes.create_string_buffer(_encoded(size, value), size))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = _triple(grid)
        config.blockDimX, config.blockDimY, config.blockDimZ = _triple(block)
        config.sharedMemBytes = shared_bytes
        config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        if _triple(cluster) != (1, 1, 1):
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            shape = attribute.value.clusterDim
            shape.x, shape.y, shape.z = _triple(cluster)
            config.attrs = [attribute]
            config.numAttrs = 1
        _checked(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))
        torch.cuda.synchronize()


class Gpu(Machine):
    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self.device = torch.device("cuda", 0)
        torch.zeros(1, device=self.device)  # makes torch's context current
        major = torch.cuda.get_device_capability(self.device)[0]
        self.arch = {9: "sm90", 10: "sm100"}.get(major, f"sm{major}0")
        self._programs: dict[tuple[str, tuple[str, ...]], GpuProgram] = {}

    def compile(self, source: str, defines: tuple[str, ...] = ()) -> GpuProgram:
        key = source, defines
        if key not in self._programs:
            image = compiled(source, self.arch, "cubin", defines)
            self._programs[key] = GpuProgram(self._driver, image)
        return self._programs[key]

    def tensor_map(
        self,
        base: Tensor,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        *,
        swizzle: int = 0,
        fill: str = "zeros",
    ) -> GpuTensorMap:
        driver = self._driver
        types = driver.CUtensorMapDataType
        dtype = {
            torch.uint8: types.CU_TENSOR_MAP_DATA_TYPE_UINT8,
            torch.int32: types.CU_TENSOR_MAP_DATA_TYPE_INT32,
            torch.float16: types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            torch.float32: types.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            torch.bfloat16: types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        }[base.dtype]
        swizzles = driver.CUtensorMapSwizzle
        fills = driver.CUtensorMapFloatOOBfill
        encoded = _checked(
            driver.cuTensorMapEncodeTiled(
                dtype,
                len(dims),
                base.data_ptr(),
                [driver.cuuint64_t(n) for n in dims],
                [driver.cuuint64_t(n) for n in strides or [16]],  # rank 1 has none, but no null
                [driver.cuuint32_t(n) for n in box],
                [driver.cuuint32_t(1)] * len(dims),
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{f'{swizzle}B' if swizzle else 'NONE'}"),
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
                fills.CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
                if fill == "nan"
                else fills.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )
        return GpuTensorMap(ctypes.string_at(encoded.getPtr(), 128), base)

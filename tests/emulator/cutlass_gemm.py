"""Collective GEMMs of CUTLASS for the emulator: variants, their build, and parameters of a launch.

A build compiles cutlass/gemm.cu once: its PTX is what the emulator runs, and the shared library
beside it makes the parameters by CUTLASS's own host code, which needs no GPU: tensor maps are
encoded by a function that the caller gives. Builds are kept in build/cutlass_gemm.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).resolve().parent / "cutlass" / "gemm.cu"
BUILDS = ROOT / "build" / "cutlass_gemm"

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import find_nvcc  # noqa: E402


class Unavailable(Exception):
    """What a build needs and this machine lacks."""


# ---- Variants -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How a kernel cuts up the problem."""

    schedule: str  # "1sm", "2sm" (tcgen05), "pingpong", "cooperative" (wgmma)
    tile: tuple[int, int, int]  # of the MMA, M N K; of both CTAs of a pair
    cluster: tuple[int, int] = (1, 1)
    scheduler: str = "PersistentScheduler"  # on SM100 by cluster launch control
    float_output: bool = False  # D in float32 instead of the inputs' type

    @property
    def sm90(self) -> bool:
        return self.schedule in ("pingpong", "cooperative")

    @property
    def takes_over_clusters(self) -> bool:
        """Whether the kernel asks for tiles by clusterlaunchcontrol.try_cancel."""
        return not self.sm90 and self.scheduler == "PersistentScheduler"


@dataclass(frozen=True)
class Variant:
    shape: Shape
    dtype: torch.dtype
    a_major: str  # "k" or "m": what is contiguous
    b_major: str  # "k" or "n"

    def __str__(self) -> str:
        tile = "x".join(map(str, self.shape.tile))
        cluster = "x".join(map(str, self.shape.cluster))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.shape.schedule}-{tile}-cluster{cluster}-{dtype}-{self.a_major}{self.b_major}"

    @property
    def output(self) -> torch.dtype:
        return torch.float32 if self.shape.float_output else self.dtype


STATIC = "StaticPersistentScheduler"

# Three tile shapes each. Clusters larger than the MMA needs share operands by multicast.
ONE_SM = (
    Shape("1sm", (128, 128, 64)),
    Shape("1sm", (64, 256, 128), scheduler=STATIC),
    Shape("1sm", (128, 64, 64), cluster=(2, 2), float_output=True),
)
TWO_SM = (
    Shape("2sm", (256, 128, 64), cluster=(2, 1)),
    Shape("2sm", (256, 64, 128), cluster=(2, 1), scheduler=STATIC),
    Shape("2sm", (128, 256, 64), cluster=(4, 2), float_output=True),
)
PINGPONG = Shape("pingpong", (64, 128, 64), cluster=(2, 1))
COOPERATIVE = Shape("cooperative", (128, 256, 64), cluster=(1, 2), float_output=True)

DTYPES = (torch.bfloat16, torch.float16)
MATRIX = tuple(
    Variant(shape, dtype, a_major, b_major)
    for shape, dtype, a_major, b_major in itertools.product(ONE_SM + TWO_SM, DTYPES, "km", "kn")
) + tuple(
    Variant(shape, dtype, a_major, b_major)
    for shape, (dtype, a_major, b_major) in itertools.product(
        (PINGPONG, COOPERATIVE), ((torch.bfloat16, "k", "n"), (torch.float16, "m", "k"))
    )
)
# Every value of every axis of the matrix.
SAMPLE = (
    Variant(ONE_SM[0], torch.bfloat16, "k", "k"),
    Variant(ONE_SM[1], torch.float16, "m", "n"),
    Variant(TWO_SM[0], torch.float16, "m", "k"),
    Variant(TWO_SM[2], torch.bfloat16, "k", "n"),
    Variant(PINGPONG, torch.bfloat16, "k", "n"),
)


# ---- Build --------------------------------------------------------------------------------------

_ELEMENTS = {
    torch.bfloat16: "cutlass::bfloat16_t",
    torch.float16: "cutlass::half_t",
    torch.float32: "float",
}
_SCHEDULES = {  # of the kernel and of its epilogue
    "1sm": ("KernelTmaWarpSpecialized1SmSm100", "TmaWarpSpecialized1Sm"),
    "2sm": ("KernelTmaWarpSpecialized2SmSm100", "TmaWarpSpecialized2Sm"),
    "pingpong": ("KernelTmaWarpSpecializedPingpong", "TmaWarpSpecialized"),
    "cooperative": ("KernelTmaWarpSpecializedCooperative", "TmaWarpSpecializedCooperative"),
}


def flags(variant: Variant) -> list[str]:
    """What nvcc is told, without paths."""
    shape = variant.shape
    arch = "compute_90a" if shape.sm90 else "compute_100a"
    schedule, epilogue = _SCHEDULES[shape.schedule]
    macros = {
        "NDEBUG": 1,
        "CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL": 1,
        "GEMM_SM90": int(shape.sm90),
        "GEMM_ELEMENT": _ELEMENTS[variant.dtype],
        "GEMM_OUTPUT": _ELEMENTS[variant.output],
        "GEMM_A_K_MAJOR": int(variant.a_major == "k"),
        "GEMM_B_K_MAJOR": int(variant.b_major == "k"),
        **{f"GEMM_TILE_{axis}": n for axis, n in zip("MNK", shape.tile, strict=True)},
        **{f"GEMM_CLUSTER_{axis}": n for axis, n in zip("MN", shape.cluster, strict=True)},
        "GEMM_SCHEDULE": schedule,
        "GEMM_EPILOGUE": epilogue,
        "GEMM_SCHEDULER": shape.scheduler,
    }
    return [
        "-std=c++17",
        "--expt-relaxed-constexpr",
        f"-gencode=arch={arch},code={arch}",
        "-shared",
        "-cudart=static",
        "-Xcompiler=-fPIC,-fvisibility=hidden",
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]


@dataclass(frozen=True)
class Build:
    ptx: Path
    library: Path


def build(variant: Variant) -> Build:
    """The variant's PTX and host library, compiled unless an earlier run has. About a minute and
    3.5 GB, so one at a time on this machine."""
    nvcc, cutlass, version = _tools()
    options = flags(variant)
    key = hashlib.sha256(SOURCE.read_bytes() + "\0".join([version, *options]).encode())
    folder = BUILDS / f"{variant}-{key.hexdigest()[:16]}"
    result = Build(folder / "gemm.ptx", folder / "libgemm.so")
    if folder.is_dir():
        return result
    BUILDS.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{cutlass / 'include'}", f"-I{cutlass / 'tools/util/include'}"]
    with open(BUILDS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # another process may have made it meanwhile
            _compile([str(nvcc), *options, *includes], folder)
    return result


@functools.cache
def _tools() -> tuple[Path, Path, str]:
    """nvcc, the folder of CUTLASS, and the versions of both."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise Unavailable("no nvcc on this machine")
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("no CUTLASS headers: pip install nvidia-cutlass==4.2.0.0")
    cutlass = Path(spec.submodule_search_locations[0]) / "source"
    banner = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return nvcc, cutlass, banner + importlib.metadata.version("nvidia-cutlass")


def _compile(command: list[str], folder: Path) -> None:
    """Fills the folder, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=BUILDS) as name:
        work, made = Path(name), Path(name) / "made"
        made.mkdir()
        keep = ["--keep", f"--keep-dir={work}"]  # the PTX is one of nvcc's intermediate files
        output = ["-o", str(made / "libgemm.so"), str(SOURCE)]
        done = subprocess.run([*command, *keep, *output], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")
        os.replace(work / "gemm.ptx", made / "gemm.ptx")
        os.replace(made, folder)


# ---- Launches -----------------------------------------------------------------------------------


class _Request(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("a", "b", "d")),
        *((name, ctypes.c_int32) for name in ("m", "n", "k", "matrices")),
        ("alpha", ctypes.c_float),
        ("sms", ctypes.c_int32),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32 * 3) for name in ("grid", "block", "cluster")),
        ("shared_bytes", ctypes.c_uint32),
        ("parameter_bytes", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Launch:
    """Arguments of Module.launch for the kernel "gemm"."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    cluster: tuple[int, ...]
    shared_bytes: int
    parameters: bytes

    @property
    def clusters(self) -> int:
        ctas = self.grid[0] * self.grid[1] * self.grid[2]
        return ctas // (self.cluster[0] * self.cluster[1] * self.cluster[2])


@dataclass(frozen=True)
class Operands:
    """Matrices in memory: a is [L, M, K] if K-major, else [L, K, M]; b [L, N, K] or [L, K, N];
    d [L, M, N]."""

    a: Tensor
    b: Tensor
    d: Tensor


def operands(variant: Variant, a: Tensor, b: Tensor) -> Operands:
    """a [L, M, K] and b [L, N, K] in the variant's type and order of elements, D full of NaN."""
    d = torch.full((a.shape[0], a.shape[1], b.shape[1]), torch.nan, dtype=variant.output)
    a, b = a.to(variant.dtype), b.to(variant.dtype)
    if variant.a_major != "k":
        a = a.transpose(1, 2)
    if variant.b_major != "k":
        b = b.transpose(1, 2)
    return Operands(a.contiguous(), b.contiguous(), d)


def prepare(variant: Variant, x: Operands, alpha: float, encode: int) -> Launch:
    """The launch of D = alpha * A * B. `encode`: address of a function with the signature of
    cuTensorMapEncodeTiled. ValueError if CUTLASS refuses the problem."""
    host = ctypes.CDLL(str(build(variant).library))
    host.gemm_prepare.restype = ctypes.c_char_p
    matrices, m, n = x.d.shape
    pointers = (x.a.data_ptr(), x.b.data_ptr(), x.d.data_ptr())
    # A machine for two clusters, so that kernels which fill it give each several tiles.
    sms = 2 * variant.shape.cluster[0] * variant.shape.cluster[1]
    k = x.a.numel() // (matrices * m)
    request = _Request(*pointers, m, n, k, matrices, alpha, sms)
    launch = _Launch()
    parameters = ctypes.create_string_buffer(4096)  # what a kernel may have at least
    error = host.gemm_prepare(
        ctypes.byref(request),
        ctypes.c_void_p(encode),
        parameters,
        ctypes.c_size_t(len(parameters)),
        ctypes.byref(launch),
    )
    if error is not None:
        raise ValueError(f"{variant}, M {m}, N {n}, K {k}: {error.decode()}")
    return Launch(
        tuple(launch.grid),
        tuple(launch.block),
        tuple(launch.cluster),
        launch.shared_bytes,
        parameters.raw[: launch.parameter_bytes],
    )

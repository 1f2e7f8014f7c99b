"""The emulator: PTX for sm_90a and sm_100 on the CPU.

Module runs kernels of any PTX file. use() sends calls of this library on CPU tensors through the
dispatch, launch code and kernels of an emulated GPU. What is modelled and what is not:
csrc/emulator/README.md.

    python -m flash_attn4.emulator FILE.ptx    lists kernels, parameters, resources, instructions
"""

from __future__ import annotations

import argparse
import builtins
import ctypes
import json
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flash_attn4 import _C
from flash_attn4._emulator_listing import kernel_lines
from flash_attn4._emulator_plan import Plan, PlanBarrier, PlanRole, kernel_plans  # noqa: F401
from flash_attn4._library import LIBRARY_PATH

if not hasattr(_C, "emulator"):
    raise ImportError(
        "flash_attn4.emulator: this build has no GPU kernels and no emulator (FA4_ARCHS=cpu): "
        "build with FA4_ARCHS='cpu;sm90a;sm100f'"
    )

_native = _C.emulator

Extent = int | Sequence[int]

LOWEST_ADDRESS = 2**16  # Linux maps nothing below (vm.mmap_min_addr)


class EmulatorError(RuntimeError):
    """A launch that failed. The text is the report: what went wrong, the line of the PTX, block and
    warp; for a deadlock every waiting warp with what it waits for."""


# ---- Options -------------------------------------------------------------------------------------

_CHOICES = {
    "policy": ("eager", "lazy", "random"),
    "accumulate": ("sequential", "exact"),
    "order": ("ascending", "descending", "random"),
    "check": ("off", "deployed", "strict"),
    "ctas": (0, 1, 2),
}
_LEAST = {
    "seed": 0,
    "threads": 0,
    "max_steps": 0,
    "stall_steps": 1,
    "resident_clusters": 0,
    "max_findings": 1,
}
_INT32 = ("threads", "resident_clusters", "max_findings")


@dataclass(frozen=True)
class Options:
    """How a launch runs. Right kernels give right results with all of them.

    policy: when asynchronous operations (copies, MMAs, tensor-memory loads and stores) take effect:
        "eager" at once, "lazy" as late as the program's waits allow, "random" in between, by the
        seed; warps interleave at random as well.
    accumulate: rounding inside an MMA, which hardware does not document: "sequential" is a chain of
        fused multiply-adds in order of k, "exact" sums 16 products and the accumulator exactly.
    order: in which order clusters start: "ascending", "descending" or "random".
    perturbation: largest relative error of approximate functions (ex2, lg2, rcp, ...), by the seed,
        at most 0.1; 0 gives the float nearest to the exact result.
    random_election: whether elect.sync picks any lane instead of the lowest.
    check_uninitialized: whether reading shared or tensor memory that was never written fails.
    threads: host threads; 0: one per core.
    max_steps: warp instructions after which the launch fails; 0: no bound.
    stall_steps: warp instructions without any event before the launch counts as hung.
    resident_clusters: clusters in progress at a time when some poll; 0: as many as a GPU holds.
    trace: whether to record LaunchResult.trace.
    check: whether accesses to shared and tensor memory must be ordered by barriers, waits and
        fences, whatever this schedule did: "off", "deployed" (tcgen05 fences are taken as implied
        by barriers, as widely used kernels do) or "strict" (the letter of the PTX ISA). The first
        finding ends the launch.
    max_findings: findings of the checker before the launch ends with all of them.
    plans: what check compares the barriers of a kernel with, by the kernel's name.
    barrier_names: names of mbarriers by their address in shared memory, 0x400 and up, for reports
        and traces.
    ctas: of use() alone: kernels with so many CTAs per tile, 1 or 2 (a pair), where there are both;
        0: the ones that dispatch chooses.
    images: of use() alone: PTX texts by kernel. A launch of that kernel runs the text instead of
        what the library holds.

    Raises ValueError for a value outside its range; the message names it.
    """

    policy: Literal["eager", "lazy", "random"] = "eager"
    seed: int = 0
    accumulate: Literal["sequential", "exact"] = "sequential"
    order: Literal["ascending", "descending", "random"] = "ascending"
    perturbation: float = 0.0
    random_election: bool = False
    check_uninitialized: bool = True
    threads: int = 0
    max_steps: int = 0
    stall_steps: int = 20_000_000
    resident_clusters: int = 0
    trace: bool = False
    check: Literal["off", "deployed", "strict"] = "off"
    max_findings: int = 1
    plans: Mapping[str, Plan] = field(default_factory=dict, hash=False, repr=False)
    barrier_names: Mapping[int, str] = field(default_factory=dict, hash=False)
    ctas: Literal[0, 1, 2] = 0
    images: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(map(repr, choices))
                raise ValueError(f"Options: {name}: must be one of {known}, got {value!r}")
        for name, least in _LEAST.items():
            most = 2**31 - 1 if name in _INT32 else 2**64 - 1
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(
                    f"Options: {name}: must be an int from {least} to {most}, got {value!r}"
                )
        for name in ("random_election", "check_uninitialized", "trace"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"Options: {name}: must be a bool, got {value!r}")
        for name, plan in self.plans.items():
            if not isinstance(name, str) or not isinstance(plan, Plan):
                raise ValueError(
                    "Options: plans: must map kernels' names to Plan, got "
                    f"{name!r}: {type(plan).__name__}"
                )
        for address, name in self.barrier_names.items():
            if (
                not isinstance(address, int)
                or not 0 <= address < 2**24
                or not isinstance(name, str)
            ):
                raise ValueError(
                    "Options: barrier_names: must map addresses below 2**24 to names, got "
                    f"{address!r}: {name!r}"
                )
        for name, text in self.images.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise ValueError(
                    "Options: images: must map kernels' names to PTX texts, got "
                    f"{name!r}: {type(text).__name__}"
                )
        if not isinstance(self.perturbation, float | int) or not 0 <= self.perturbation <= 0.1:
            raise ValueError(
                f"Options: perturbation: must lie in [0, 0.1], got {self.perturbation!r}"
            )


_DEFAULT_OPTIONS = Options()


# ---- Tensor maps ---------------------------------------------------------------------------------

# As CUtensorMapDataType numbers them.
_ELEMENT_TYPES = {
    torch.uint8: 0,
    torch.uint16: 1,
    torch.uint32: 2,
    torch.int32: 3,
    torch.uint64: 4,
    torch.int64: 5,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}


@dataclass(frozen=True, eq=False)
class TensorMap:
    """What tensor_map() makes: an argument of a launch.

    bytes: 128 bytes that stand for a CUtensorMap. Valid in this process only.
    tensor: what the map describes, None where an address was given.
    """

    bytes: builtins.bytes = field(repr=False)
    tensor: Tensor | None = None


def tensor_map(
    base: Tensor | int,
    dims: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    swizzle: Literal[0, 32, 64, 128] = 0,
    steps: Sequence[int] | None = None,
    fill: Literal["zeros", "nan"] = "zeros",
) -> TensorMap:
    """A tensor map, as cuTensorMapEncodeTiled makes it. Dimensions are innermost first.

    base: tensor on the CPU, or an address (then dtype is required); a multiple of 16.
    dims: 1 to 5 extents, in elements.
    strides: of dimensions 1 and up, in bytes, multiples of 16; one less than dims.
    box: extents of the box, each 1 to 256 elements.
    dtype: element type; None means that of base.
    swizzle: span in bytes, 0 (none), 32, 64 or 128.
    steps: element strides, each 1 to 8; None means 1.
    fill: what elements out of bounds read as.

    Raises ValueError for a value that the driver refuses, TypeError for a dtype; the message names
    argument, rule and value.
    """
    if isinstance(base, Tensor):
        address, dtype = _address("tensor_map: base", base), dtype or base.dtype
    else:
        address = base
    if dtype not in _ELEMENT_TYPES:
        known = ", ".join(str(t).removeprefix("torch.") for t in _ELEMENT_TYPES)
        raise TypeError(f"tensor_map: dtype: must be one of {known}, got {dtype}")
    if fill not in ("zeros", "nan"):
        raise ValueError(f"tensor_map: fill: must be 'zeros' or 'nan', got {fill!r}")
    for name, values in (("dims", dims), ("strides", strides), ("box", box), ("steps", steps)):
        if any(not 0 <= value < 2**40 for value in values or ()):
            raise ValueError(f"tensor_map: {name}: must lie in 0 to 2**40, got {values}")
    layout = list(dims), list(strides), list(box), list(steps or (1,) * len(dims))
    encoded = _native.encode_tensor_map(
        address, _ELEMENT_TYPES[dtype], layout, swizzle, fill == "nan"
    )
    return TensorMap(encoded, base if isinstance(base, Tensor) else None)


def _address(name: str, tensor: Tensor) -> int:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: must be on cpu, got {tensor.device}")
    return tensor.data_ptr()


# ---- Modules -------------------------------------------------------------------------------------

Triple = tuple[int, int, int]
Argument = Tensor | TensorMap | int | float | bytes


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: where it lies in the parameter block."""

    name: str
    offset: int
    bytes: int
    align: int


@dataclass(frozen=True)
class Kernel:
    """What the PTX says of a kernel. Of thread and cluster extents, 0 means not declared."""

    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    static_shared_bytes: int
    max_threads: Triple
    required_threads: Triple
    required_cluster: Triple
    instructions: int
    registers: int  # virtual, of the PTX
    register_slots: int  # 32-bit registers per thread after allocation in the emulator
    forms: dict[str, int]  # opcode with modifiers -> how often it stands in the text


class LaunchResult:
    """What a launch leaves besides memory."""

    def __init__(self, native: _C.emulator.Result) -> None:
        self._native = native

    @property
    def statistics(self) -> dict[str, float]:
        """Counts over all clusters: warp_instructions, mma (instructions), fma (multiply-adds in
        them), bytes by kind of copy, clusters, seconds."""
        return self._native.statistics()

    @property
    def trace(self) -> list[dict[str, Any]]:
        """One dict per warp: cluster, cta, warp, classes (instruction class -> warp instructions)
        and waits (line, what, begin, end). Empty without Options(trace=True)."""
        return self._native.trace()

    def json(self) -> str:
        """Statistics and trace as JSON text."""
        return self._native.json()


class Module:
    """A PTX file, parsed and lowered.

    text: the PTX, for sm_90, sm_90a, sm_100a or sm_100f.
    name: what messages call it.

    Raises ValueError where the text is not PTX, NotImplementedError for an instruction that is not
    modelled; the message names file and line and holds the text of the line.
    """

    def __init__(self, text: str, name: str = "kernel.ptx") -> None:
        self._native = _native.Module(text, name)
        self.name = name
        self.target = self._native.target()
        self.kernels: dict[str, Kernel] = {}
        for facts in self._native.kernels():
            parameters = [Parameter(**p) for p in facts.pop("parameters")]
            kernel = Kernel(parameters=parameters, **facts)
            self.kernels[kernel.name] = kernel

    def launch(
        self,
        kernel_name: str,
        grid: Extent,
        block: Extent,
        args: bytes | Sequence[Argument],
        *,
        shared_bytes: int = 0,
        cluster: Extent = (1, 1, 1),
        options: Options = _DEFAULT_OPTIONS,
        memory: Sequence[Tensor] | None = None,
    ) -> LaunchResult:
        """Runs a kernel to its end. Other Python threads run meanwhile.

        grid, block, cluster: extents in blocks, threads, blocks: an int or up to three.
        args: the parameter block as bytes, or one value per parameter: a Tensor (its address), a
            TensorMap, an int, a float (parameters of 4 bytes: float32; of 8: float64), or bytes.
        shared_bytes: dynamic shared memory per block.
        memory: tensors the kernel may touch, from their first to their last element. None means
            those in args, unless args may hold another address: 8 bytes or more, a TensorMap of an
            address, an int from 2**16 for a parameter of 8 bytes. Then, and where args hold no
            tensor, the kernel may touch any memory of the process.

        Raises EmulatorError when the kernel fails, ValueError for a wrong shape or argument,
        TypeError for an argument of another type.
        """
        kernel = self.kernels.get(kernel_name)
        if kernel is None:
            known = ", ".join(self.kernels)
            raise ValueError(f"launch: kernel_name: must be one of {known}, got {kernel_name}")
        shape = _extent("grid", grid), _extent("block", block), _extent("cluster", cluster)
        if memory is None and not isinstance(args, bytes):
            memory = _tensors_of(kernel, args)
        if options.images:
            raise ValueError(
                f"launch: options: images: must be {{}}, got {[*options.images]}: see use"
            )
        if options.ctas:
            raise ValueError(f"launch: options: ctas: must be 0, got {options.ctas}: see use")
        regions = None if memory is None else [_region(tensor) for tensor in memory]
        block_bytes = args if isinstance(args, bytes) else _parameter_block(kernel, args)
        if not 0 <= shared_bytes < 2**32:
            raise ValueError(f"launch: shared_bytes: must be >= 0, got {shared_bytes}")
        try:
            native = self._native.launch(
                kernel_name, shape, shared_bytes, block_bytes, regions, options
            )
        except NotImplementedError:
            raise
        except RuntimeError as error:
            raise EmulatorError(str(error)) from None
        return LaunchResult(native)


def load(path: str | Path) -> Module:
    """The module of a PTX file."""
    return Module(Path(path).read_text(), str(path))


def _extent(name: str, value: Extent) -> Triple:
    extents = (value,) if isinstance(value, int) else tuple(value)
    if not 1 <= len(extents) <= 3 or not all(isinstance(n, int) and 0 < n < 2**32 for n in extents):
        raise ValueError(f"launch: {name}: must be 1 to 3 ints from 1, got {value}")
    x, y, z = (*extents, 1, 1)[:3]
    return x, y, z


def _region(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes from the first to the last element."""
    address = _address("launch: memory", tensor)
    if tensor.numel() == 0:
        return address, 0
    spans = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return address, (1 + sum(spans)) * tensor.element_size()


def _tensors_of(kernel: Kernel, args: Sequence[Argument]) -> list[Tensor] | None:
    """The tensors whose addresses args hold; None if there may be addresses of other things."""
    tensors: list[Tensor] = []
    for parameter, value in zip(kernel.parameters, args, strict=False):
        tensor = value.tensor if isinstance(value, TensorMap) else value
        if isinstance(tensor, Tensor):
            tensors.append(tensor)
        elif _may_be_address(value, parameter):
            return None
    return tensors or None


def _may_be_address(value: Argument, parameter: Parameter) -> bool:
    if isinstance(value, int):
        return parameter.bytes == 8 and value >= LOWEST_ADDRESS
    return isinstance(value, TensorMap) or (isinstance(value, bytes) and len(value) >= 8)


def _parameter_block(kernel: Kernel, args: Sequence[Argument]) -> bytes:
    if len(args) != len(kernel.parameters):
        raise ValueError(
            f"launch: args: {kernel.name} has {len(kernel.parameters)} parameters, got {len(args)}"
        )
    block = bytearray(kernel.parameter_bytes)
    for i, (parameter, value) in enumerate(zip(kernel.parameters, args, strict=True)):
        name = f"launch: args[{i}]"
        block[parameter.offset : parameter.offset + parameter.bytes] = _encoded(
            name, parameter.bytes, value
        )
    return bytes(block)


def _encoded(name: str, size: int, value: Argument) -> bytes:
    """The bytes of one argument, for a parameter of `size` bytes."""
    if isinstance(value, Tensor):
        encoded = struct.pack("<Q", _address(name, value))
    elif isinstance(value, TensorMap):
        encoded = value.bytes
    elif isinstance(value, bytes):
        encoded = value
    elif isinstance(value, float):
        encoded = struct.pack("<f" if size == 4 else "<d", value)
    elif isinstance(value, int):
        if size > 8 or not -(2 ** (8 * size - 1)) <= value < 2 ** (8 * size):
            raise ValueError(f"{name}: must fit the parameter's {size} bytes, got {value}")
        encoded = (value % 2 ** (8 * size)).to_bytes(size, "little")
    else:
        raise TypeError(
            f"{name}: must be Tensor, TensorMap, int, float or bytes, got {type(value).__name__}"
        )
    if len(encoded) != size:
        raise ValueError(
            f"{name}: must have the parameter's {size} bytes, got {type(value).__name__} of "
            f"{len(encoded)}"
        )
    return encoded


# ---- This library on an emulated GPU -------------------------------------------------------------


class Session:
    """What use() yields.

    arch: "sm90" or "sm100".
    options: of all launches.
    """

    def __init__(self, arch: str, options: Options) -> None:
        self.arch = arch
        self.options = options
        self._lock = threading.Lock()
        self._total = dict.fromkeys(_native.take_statistics(), 0.0)
        self._open = True

    @property
    def statistics(self) -> dict[str, float]:
        """LaunchResult.statistics, summed over the launches so far. Stays after use() has ended."""
        with self._lock:
            if self._open:
                for name, value in _native.take_statistics().items():
                    self._total[name] += value
            return dict(self._total)

    def _close(self) -> None:
        _ = self.statistics
        self._open = False


@contextmanager
def use(arch: Literal["sm90", "sm100"], options: Options = _DEFAULT_OPTIONS) -> Iterator[Session]:
    """While it lasts, calls of this library on CPU tensors run on an emulated GPU.

    Checks, dispatch, launch code and kernels are those of the GPU; only the driver and the GPU are
    replaced. A call that no kernel of that GPU serves raises NotImplementedError, also where the
    CPU backend serves it. A kernel may touch the memory of its call's tensors, from their first to
    their last element; anything else, and every other failure of a kernel, raises RuntimeError with
    the emulator's report.

    It holds for all threads of the process. There is one use at a time, and no call may be under
    way when it begins or ends. CUDA tensors are refused meanwhile.

    arch: "sm90" (Hopper) or "sm100" (Blackwell).
    options: of all launches; trace must be False. With images={name: text} the PTX text of a
        variant, compiled with other flags or broken on purpose, goes through dispatch and launch
        code of the kernel `name`. It must hold a kernel of that name, for the same architecture,
        with the same parameters. Texts of kernels that no call launches are without effect.

    Raises ValueError for a wrong arch or option or an image that is not PTX or holds no such
    kernel, NotImplementedError for an image with an instruction that is not modelled, RuntimeError
    where a use has begun already.
    """
    if arch not in ("sm90", "sm100"):
        raise ValueError(f"use: arch: must be 'sm90' or 'sm100', got {arch!r}")
    if options.trace:
        raise ValueError("use: options: trace: must be False, got True: see Module.launch")
    _switch(arch)
    force_ctas = ctypes.CDLL(str(LIBRARY_PATH)).fa4_force_ctas
    try:
        force_ctas(options.ctas)
        _native.set_driver_options(options)
        _set_images(options.images)
        session = Session(arch, options)
        try:
            yield session
        finally:
            session._close()
    finally:
        force_ctas(0)
        _native.set_driver_options(_DEFAULT_OPTIONS)
        _set_images({})
        _switch(None)


def _set_images(images: Mapping[str, str]) -> None:
    try:
        _native.set_driver_images(dict(images))
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"use: {error}") from None


def _switch(arch: str | None) -> None:
    """Calls on the CPU go to the emulated GPU, or (None) to the CPU backend again."""
    function = ctypes.CDLL(str(LIBRARY_PATH)).fa4_use_emulator
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    message = ctypes.create_string_buffer(4096)
    if function(None if arch is None else arch.encode(), message, len(message)) != 0:
        raise RuntimeError(f"use: {message.value.decode()}")


# ---- Command line --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flash_attn4.emulator",
        description="Lists the kernels of a PTX file: parameters, resources, instruction forms.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.ptx")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    options = parser.parse_args(arguments)
    try:
        module = load(options.file)
    except (OSError, ValueError, NotImplementedError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    kernels = list(module.kernels.values())
    if options.json:
        facts = {"file": module.name, "target": module.target, "kernels": [*map(asdict, kernels)]}
        print(json.dumps(facts, indent=1))
        return 0
    plural = "" if len(kernels) == 1 else "s"
    print(f"{module.name}: target {module.target}, {len(kernels)} kernel{plural}")
    for kernel in kernels:
        print("\n".join(["", *kernel_lines(kernel)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

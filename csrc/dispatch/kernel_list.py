"""The list of kernels: one row per kernel that a build may hold.

CMake generates the GPU instantiations and the C++ table from it, dispatch chooses among its rows,
tests and the README's support table read it. A row that is not here does not exist.

    python kernel_list.py --names sm90a          kernel names of a target, one per line
    python kernel_list.py --instantiate NAME     the CUDA source of one GPU kernel
    python kernel_list.py --table sm90a sm100f   the C++ rows of a build with these GPU targets
    python kernel_list.py --markdown             the README's support table
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

TARGETS = {
    "cpu": "any x86-64 or aarch64 CPU",
    "sm90a": "Hopper: H100, H200, GH200 (compute capability 9.0)",
    "sm100f": "Blackwell: B200, B300 (compute capability 10.x)",
}

DTYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
HALF_DTYPES = ("bfloat16", "float16")
DTYPE_NAMES = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}  # of enum DType
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

# What a call may ask of a kernel beyond shapes and element type, in the order of enum Feature.
FEATURES = (
    "gqa",
    "causal",
    "window",
    "softcap",
    "sink",
    "varlen",
    "seqused",
    "paged",
    "splits",
    "dlse",
    "deterministic",
)

# Operations that no call chooses: a backward on a GPU launches them around its main kernel.
PARTS = ("bwd_prepare", "bwd_finish", "bwd_sink")


@dataclass(frozen=True)
class Kernel:
    """One kernel and what it serves. Head dims are inclusive ranges in steps of 8."""

    name: str  # the symbol in the GPU image; on the CPU a name for messages
    op: str  # fwd, bwd, combine, or one of PARTS
    target: str  # a key of TARGETS
    dtypes: tuple[str, ...]  # of q, k, v; combine: of the partial outputs
    head_dim: tuple[int, int]
    head_dim_v: tuple[int, int]
    features: tuple[str, ...] = ()
    header: str = ""  # GPU: the header with the kernel body
    body: str = ""  # GPU: the call in the instantiated kernel
    args: str = ""  # GPU: the parameter struct
    bounds: str = ""  # GPU: of __launch_bounds__, constants of the header
    ctas: int = 1  # GPU: that share a tile; 2: a cluster of two, a pair


def combine_kernel(arch: str, target: str, dtype: str) -> Kernel:
    return Kernel(
        name=f"fa4_combine_{arch}_{SHORT[dtype]}",
        op="combine",
        target=target,
        dtypes=(dtype,),
        head_dim=(8, 1024),
        head_dim_v=(8, 1024),
        header="csrc/common/combine.cuh",
        body=f"combine_body<{DTYPES[dtype]}>(args)",
        args="fa4::CombineArgs",
        bounds="fa4::kCombineThreads, fa4::kCombineBlocksPerSm",
    )


GPU_FORWARD_FEATURES = ("gqa", "causal", "window", "softcap", "sink", "varlen", "seqused")


def gpu_forward_kernel(
    arch: str, target: str, head_dim: int, head_dim_v: int, dtype: str, ctas: int = 1
) -> Kernel:
    form, argument = ("_pair", ", 2") if ctas == 2 else ("", "")
    config = f"fa4::{arch}::fwd_config(fa4::DType::k{DTYPE_NAMES[dtype]}, {head_dim}{argument})"
    return Kernel(
        name=f"fa4_fwd_{arch}_hd{head_dim}{form}_{SHORT[dtype]}",
        op="fwd",
        target=target,
        dtypes=(dtype,),
        head_dim=(8, head_dim),
        head_dim_v=(8, head_dim_v),
        features=GPU_FORWARD_FEATURES,
        header=f"csrc/{arch}/fwd/kernel.cuh",
        body=f"{arch}::fwd_body<{config}>(args)",
        args="fa4::FwdArgs",
        bounds=f"fa4::{arch}::FwdPlan<{config}>::kThreads, 1",
        ctas=ctas,
    )


def gpu_backward_kernel(
    arch: str, target: str, head_dim: int, head_dim_v: int, dtype: str, ctas: int = 1
) -> Kernel:
    form, argument = ("_pair", ", 2") if ctas == 2 else ("", "")
    config = f"fa4::{arch}::bwd_config(fa4::DType::k{DTYPE_NAMES[dtype]}, {head_dim}{argument})"
    return Kernel(
        name=f"fa4_bwd_{arch}_hd{head_dim}{form}_{SHORT[dtype]}",
        op="bwd",
        target=target,
        dtypes=(dtype,),
        head_dim=(8, head_dim),
        head_dim_v=(8, head_dim_v),
        features=BACKWARD_FEATURES,
        header=f"csrc/{arch}/bwd/kernel.cuh",
        body=f"{arch}::bwd_body<{config}>(args)",
        args="fa4::BwdArgs",
        bounds=f"fa4::{arch}::BwdPlan<{config}>::kThreads, 1",
        ctas=ctas,
    )


def backward_parts(
    arch: str, target: str, head_dim: int, head_dim_v: int, layout: str
) -> list[Kernel]:
    """What runs around the main kernels of a target, for head dims up to these.

    layout: of the accumulator of dq, a struct of core/dq_layout.h.
    """

    def part(op: str, dtypes: tuple[str, ...], body: str) -> Kernel:
        name = op.removeprefix("bwd_")
        suffix = f"_{SHORT[dtypes[0]]}" if len(dtypes) == 1 else ""
        threads = "kBwdSinkThreads" if op == "bwd_sink" else "kBwdRowThreads"
        return Kernel(
            name=f"fa4_{op}_{arch}{suffix}",
            op=op,
            target=target,
            dtypes=dtypes,
            head_dim=(8, head_dim),
            head_dim_v=(8, head_dim_v),
            header=f"csrc/common/{op}.cuh",
            body=body,
            args=f"fa4::Bwd{name.capitalize()}Args",
            bounds=f"fa4::{threads}",
        )

    enum = {dtype: f"fa4::DType::k{DTYPE_NAMES[dtype]}" for dtype in HALF_DTYPES}
    return [
        *(part("bwd_prepare", (d,), f"bwd_prepare_body<{enum[d]}>(args)") for d in HALF_DTYPES),
        *(
            part("bwd_finish", (d,), f"bwd_finish_body<{enum[d]}, fa4::{layout}>(args)")
            for d in HALF_DTYPES
        ),
        part("bwd_sink", HALF_DTYPES, "bwd_sink_body(args)"),
    ]


SM90_HEAD_DIMS = ((64, 64), (128, 128))
SM100_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128))
SM100_PAIR_HEAD_DIMS = ((128, 128), (192, 128))
SM100_BACKWARD_HEAD_DIMS = ((64, 64), (96, 96), (128, 128))
SM100_BACKWARD_PAIR_HEAD_DIMS = ((128, 128), (192, 128))

FORWARD_FEATURES = tuple(name for name in FEATURES if name not in ("dlse", "deterministic"))
BACKWARD_FEATURES = tuple(name for name in FEATURES if name not in ("paged", "splits"))

KERNELS: tuple[Kernel, ...] = (
    Kernel("fwd_cpu", "fwd", "cpu", tuple(DTYPES), (8, 256), (8, 256), FORWARD_FEATURES),
    Kernel("bwd_cpu", "bwd", "cpu", tuple(DTYPES), (8, 256), (8, 256), BACKWARD_FEATURES),
    Kernel("combine_cpu", "combine", "cpu", tuple(DTYPES), (8, 1024), (8, 1024)),
    *(
        gpu_forward_kernel("sm90", "sm90a", *dims, dtype)
        for dims in SM90_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *(
        gpu_forward_kernel("sm100", "sm100f", *dims, dtype)
        for dims in SM100_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *(
        gpu_forward_kernel("sm100", "sm100f", *dims, dtype, ctas=2)
        for dims in SM100_PAIR_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *(
        gpu_backward_kernel("sm90", "sm90a", *dims, dtype)
        for dims in SM90_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *backward_parts("sm90", "sm90a", 128, 128, "DqLayoutSm90"),
    *(
        gpu_backward_kernel("sm100", "sm100f", *dims, dtype)
        for dims in SM100_BACKWARD_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *(
        gpu_backward_kernel("sm100", "sm100f", *dims, dtype, ctas=2)
        for dims in SM100_BACKWARD_PAIR_HEAD_DIMS
        for dtype in HALF_DTYPES
    ),
    *backward_parts("sm100", "sm100f", 192, 128, "DqLayoutSm100"),
    *(combine_kernel("sm90", "sm90a", dtype) for dtype in DTYPES),
    *(combine_kernel("sm100", "sm100f", dtype) for dtype in DTYPES),
)

INSTANTIATION = """\
// Generated from csrc/dispatch/kernel_list.py.
#include "{header}"

extern "C" __global__ void {cluster}__launch_bounds__({bounds}) {name}(
    const __grid_constant__ {args} args) {{
  fa4::{body};
}}
"""


def instantiate(name: str) -> str:
    """CUDA source of the GPU kernel `name`."""
    kernel = next(k for k in KERNELS if k.name == name)
    cluster = f"__cluster_dims__({kernel.ctas}, 1, 1) " if kernel.ctas > 1 else ""
    return INSTANTIATION.format(cluster=cluster, **vars(kernel))


def table(targets: list[str]) -> str:
    """C++ rows for a build with the given GPU targets, included by kernel_list.cpp."""
    held = [k for k in KERNELS if k.target == "cpu" or k.target in targets]
    gpu = [k for k in held if k.target != "cpu"]
    lines = [
        f'extern "C" const unsigned char {k.name}_{kind}_{end}[];'
        for k in gpu
        for kind in ("cubin", "ptx")
        for end in ("begin", "end")
    ]
    lines.append("static const KernelRow kRows[] = {")
    for k in held:
        dtypes = " | ".join(f"bit(DType::k{DTYPE_NAMES[d]})" for d in k.dtypes)
        features = " | ".join(f"bit(Feature::k{f.capitalize()})" for f in k.features) or "0"
        image = (
            f"{{{k.name}_cubin_begin, {k.name}_cubin_end, {k.name}_ptx_begin, {k.name}_ptx_end}}"
            if k in gpu
            else "{}"
        )
        op = "".join(word.capitalize() for word in k.op.split("_"))
        place = f"Op::k{op}, Target::k{k.target.capitalize()}"
        dims, dims_v = (f"{{{low}, {high}}}" for low, high in (k.head_dim, k.head_dim_v))
        lines.append(f'    {{"{k.name}", {place},')
        lines.append(f"     {dtypes}, {dims}, {dims_v},")
        ctas = f", {k.ctas}" if k.ctas > 1 else ""
        lines.append(f"     {features}, {image}{ctas}}},")
    lines.append("};")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The README's support table, one line per (operation, target)."""
    lines = [
        "| operation | runs on | kernels | element types | head dims (q, k / v) | options |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for k in KERNELS:
        if k.op not in PARTS:
            groups.setdefault((k.op, k.target), []).append(k)
    for (op, target), kernels in groups.items():
        dtypes = ", ".join(d for d in DTYPES if any(d in k.dtypes for k in kernels))
        low, high = min(k.head_dim[0] for k in kernels), max(k.head_dim[1] for k in kernels)
        low_v, high_v = min(k.head_dim_v[0] for k in kernels), max(k.head_dim_v[1] for k in kernels)
        dims = f"{low}..{high} / {low_v}..{high_v}" if op != "combine" else f"- / {low_v}..{high_v}"
        options = ", ".join(f for f in FEATURES if all(f in k.features for k in kernels)) or "-"
        lines.append(
            f"| `{op}` | {TARGETS[target]} | {len(kernels)} | {dtypes} | {dims} | {options} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--names", metavar="TARGET")
    action.add_argument("--instantiate", metavar="NAME")
    action.add_argument("--table", metavar="TARGET", nargs="*")
    action.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.names:
        text = "".join(f"{k.name}\n" for k in KERNELS if k.target == options.names)
    elif options.instantiate:
        text = instantiate(options.instantiate)
    elif options.markdown:
        text = markdown()
    else:
        text = table(options.table)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

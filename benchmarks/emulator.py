"""`run.py emulator`: how fast the emulator runs the instructions of attention, and loads them; what
its check of ordering costs."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import report
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "benchmarks" / "kernels" / "emulator.cu"
ROUNDS = 9
STEPS = 1000  # of the loops in SOURCE: a tenth of a second or so
MMA_SHARED_BYTES = 2 * 16384 + 1024
THREADS = 128

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import find_nvcc  # noqa: E402


def compile_ptx() -> str:
    """PTX of SOURCE for sm_100f, as the library's own kernels are compiled."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("run.py emulator: nvcc 13 is needed to compile the kernels, found none")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "emulator.ptx"
        flags = ["-std=c++20", "-O3", "-ftz=true", "-gencode=arch=compute_100f,code=sm_100f"]
        subprocess.run([str(nvcc), *flags, "-ptx", "-o", str(out), str(SOURCE)], check=True)
        return out.read_text()


def rate_record(case: str, unit: str, measure: Callable[[], float]) -> report.Record:
    """The record of a case that `measure` gives one figure of per round."""
    rounds = [measure() for _ in range(ROUNDS)]
    fifths = statistics.quantiles(rounds, n=5, method="inclusive")
    return {
        "case": case,
        "unit": unit,
        "rate": statistics.median(rounds),
        "spread": [fifths[0], fifths[3]],
        "rounds": rounds,
    }


def check_cost(arch: str, backward: bool) -> float:
    """CPU time of attention with the strict check, in times of the one without. One head, 1024
    queries and keys, head dim 128."""
    from flash_attn4 import emulator, flash_attn_func

    seeds = torch.Generator().manual_seed(1)
    q, k, v, dout = (
        torch.randn(1, 1024, 1, 128, generator=seeds).to(torch.bfloat16) for _ in range(4)
    )
    seconds = []
    for check in ("off", "strict"):
        options = emulator.Options(check=check, plans=emulator.kernel_plans(), threads=1)
        with emulator.use(arch, options):
            flash_attn_func(q, k, v)  # the first call sets things up
            leaves = [x.detach().requires_grad_(backward) for x in (q, k, v)]
            start = time.process_time()
            out = flash_attn_func(*leaves)
            if backward:  # that alone
                start = time.process_time()
                out.backward(dout)
            seconds.append(time.process_time() - start)
    return seconds[1] / seconds[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", choices=("eager", "lazy", "random"), default="eager")


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    from flash_attn4 import emulator

    text = compile_ptx()
    module = emulator.Module(text, SOURCE.name)
    sums = torch.zeros(2 * THREADS)

    def launch(kernel: str, blocks: int, threads: int) -> dict[str, float]:
        options = emulator.Options(policy=args.policy, threads=threads)
        arguments = [sums, STEPS, 0.1] if kernel == "softmax_rows" else [STEPS]
        shared = 0 if kernel == "softmax_rows" else MMA_SHARED_BYTES
        result = module.launch(
            kernel, blocks, THREADS, arguments, shared_bytes=shared, options=options
        )
        return result.statistics

    def instructions(blocks: int, threads: int) -> float:
        counts = launch("softmax_rows", blocks, threads)
        return counts["warp_instructions"] / counts["seconds"] / 1e6

    def multiply_adds(blocks: int, threads: int) -> float:
        counts = launch("mma_chain", blocks, threads)
        return counts["fma"] / counts["seconds"] / 1e9

    def load() -> float:
        start = time.perf_counter()
        emulator.Module(unrolled, SOURCE.name)
        return (time.perf_counter() - start) * 1e3

    # One kernel alone: the directives at the top of the file, and the kernel's own text.
    head, *kernels = text.split(".visible .entry ")
    unrolled = next(
        f"{head}.visible .entry {k}" for k in kernels if k.startswith("softmax_unrolled")
    )
    count = module.kernels["softmax_unrolled"].instructions
    for cores in (1, 2):
        case = f"softmax, threads: {cores}"
        yield rate_record(case, "M instructions/s", lambda n=cores: instructions(n, n))
    for cores in (1, 2):
        case = f"MMA 128x128x64, threads: {cores}"
        yield rate_record(case, "G FMA/s", lambda n=cores: multiply_adds(n, n))
    yield rate_record(f"parse and lower {count} instructions", "ms", load)
    for arch in ("sm90", "sm100"):
        for op in ("forward", "backward"):
            case = f"strict check, {arch} {op}"
            yield rate_record(
                case, "x CPU time without", lambda a=arch, o=op: check_cost(a, o == "backward")
            )

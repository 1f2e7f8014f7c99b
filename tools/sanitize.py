"""Runs the forward kernels under NVIDIA's compute-sanitizer and writes a report to be committed.

    python tools/sanitize.py --out docs/reports/sanitizer-h100.json
    python tools/sanitize.py --tools memcheck racecheck        without a report

The four tools watch kernels named fa4_*, through one list of small calls. Before them a control: a
call that reads past the end of a tensor, which memcheck must report, else it watches nothing.

Every tensor is an allocation of its own, so that its end is an end for memcheck, and comes from the
host by a copy, which initcheck counts as written; it does not see kernels it does not watch.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_report import LIBRARY, ROOT, gpus
from torch import Tensor

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import site_directories

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86  # exit status of compute-sanitizer that found something
LIMIT_SECONDS = 540
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")


# ---- Calls: in a process of their own, under the tool ------------------------------------------


def on_gpu(x: Tensor) -> Tensor:
    return x.to("cuda")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return on_gpu(torch.randn(*shape, generator=generator).to(dtype))


def int32(*values: int) -> Tensor:
    return on_gpu(torch.tensor(values, dtype=torch.int32))


def dense(
    rows: tuple[int, int],
    heads: tuple[int, int] = (2, 2),
    dims: tuple[int, int] = (128, 128),
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    used: tuple[int, ...] | None = None,
    sink: bool = False,
    **options: Any,
) -> None:
    from flash_attn4 import flash_attn_func

    q = normal(batch, rows[0], heads[0], dims[0], dtype=dtype)
    k = normal(batch, rows[1], heads[1], dims[0], dtype=dtype)
    v = normal(batch, rows[1], heads[1], dims[1], dtype=dtype)
    if used is not None:
        options["seqused_k"] = int32(*used)
    if sink:
        options["learnable_sink"] = normal(heads[0], dtype=torch.float32)
    flash_attn_func(q, k, v, **options)


def packed(
    offsets_q: tuple[int, ...],
    offsets_k: tuple[int, ...],
    rows: tuple[int, int],
    used: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    **options: Any,
) -> None:
    from flash_attn4 import flash_attn_varlen_func

    q, k, v = (normal(n, heads, 128) for n, heads in ((rows[0], 4), (rows[1], 2), (rows[1], 2)))
    if used is not None:
        options |= {"seqused_q": int32(*used[0]), "seqused_k": int32(*used[1])}
    flash_attn_varlen_func(q, k, v, int32(*offsets_q), int32(*offsets_k), *rows, **options)


def into_strided_buffers() -> None:
    q, k, v = (normal(2, n, 2, 64) for n in (130, 200, 200))
    out = on_gpu(torch.zeros(2, 2, 140, 66, dtype=q.dtype)).transpose(1, 2)[:, 5:135, :, :64]
    lse = on_gpu(torch.zeros(2, 130, 2)).transpose(1, 2)
    torch.ops.fa4.fwd_out(q, k, v, causal=True, out=out, lse=lse)


CALLS: dict[str, Callable[[], None]] = {
    "full": partial(dense, (300, 300)),
    "causal": partial(dense, (200, 333), dtype=torch.float16, causal=True),
    "more queries than keys": partial(dense, (200, 90), causal=True),
    "head dim 64, window, softcap": partial(
        dense, (260, 300), dims=(64, 64), window_size=(100, 20), softcap=5.0
    ),
    "head dims 40 and 24, sink": partial(dense, (70, 130), dims=(40, 24), sink=True, causal=True),
    "packed heads": partial(dense, (3, 300), heads=(8, 1)),
    "packed heads that do not divide a tile": partial(dense, (40, 200), heads=(5, 1), causal=True),
    "used keys": partial(dense, (130, 300), batch=4, used=(0, 1, 129, 300)),
    "sequences": partial(
        packed, (0, 130, 130, 131, 259), (0, 130, 150, 150, 300), (270, 310), causal=True
    ),
    "used queries and keys": partial(
        packed, (0, 130, 200), (0, 100, 300), (200, 300), used=((77, 0), (65, 200))
    ),
    "strided buffers": into_strided_buffers,
    "more tiles than multiprocessors": partial(dense, (257, 257), heads=(10, 10), batch=8),
}


def run_calls() -> None:
    import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

    for name, call in CALLS.items():
        call()
        torch.cuda.synchronize()
        print(f"call: {name}", flush=True)


def read_past_the_end() -> None:
    import flash_attn4  # noqa: F401

    out, lse = normal(3, 40, 2, 64, dtype=torch.float32), normal(3, 40, 2, dtype=torch.float32)
    storage = out.untyped_storage()
    storage.resize_(storage.nbytes() - 4096)
    torch.ops.fa4.combine(out, lse)
    torch.cuda.synchronize()


# ---- The tools ----------------------------------------------------------------------------------


def find_sanitizer() -> Path:
    home = os.environ.get("CUDA_HOME")
    candidates = [Path(home) / "bin" / "compute-sanitizer"] if home else []
    if on_path := shutil.which("compute-sanitizer"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/compute-sanitizer"))
    candidates.extend(
        site / "nvidia" / "cu13" / "bin" / "compute-sanitizer" for site in site_directories()
    )
    for path in candidates:
        if path.is_file():
            return path
    raise SystemExit(
        "sanitize: needs compute-sanitizer in CUDA_HOME/bin, on the PATH or from the package "
        "nvidia-cuda-sanitizer-api, found none"
    )


def run_tool(sanitizer: Path, tool: str, job: str) -> dict[str, Any]:
    """Runs `job`, an option of this file, under a tool."""
    command = [
        *(str(sanitizer), "--tool", tool, "--kernel-name", "regex=^fa4_"),
        *("--error-exitcode", str(FOUND), "--print-limit", "20", "--show-backtrace", "device"),
        # A call of the driver that fails is an error of the program, or a question it may ask.
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        *(sys.executable, str(Path(__file__).resolve()), job),
    ]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        held = expired.stdout or b""
        output = held.decode(errors="replace") if isinstance(held, bytes) else held
        status = -1
    return read_output(tool, output, status, round(time.monotonic() - started, 1))


def read_output(tool: str, output: str, status: int, seconds: float) -> dict[str, Any]:
    """What a run of a tool came to. Clean: it saw all calls and summed up to nothing."""
    summaries = [int(n) for n in SUMMARY.findall(output)]
    calls = output.count("call: ")
    clean = status == 0 and summaries != [] and not any(summaries) and calls == len(CALLS)
    outcome = "clean" if clean else "found" if any(summaries) else "failed"
    if status == -1:
        outcome = f"no end within {LIMIT_SECONDS} s"
    return {
        "tool": tool,
        "outcome": outcome,
        "reports": sum(summaries),
        "calls": calls,
        "seconds": seconds,
        "output": [] if clean else output.splitlines()[:200],
    }


def check_control(sanitizer: Path) -> None:
    result = run_tool(sanitizer, "memcheck", "--past-the-end")
    if result["reports"] == 0 or not any("fa4_combine" in line for line in result["output"]):
        print("\n".join(result["output"]))
        raise SystemExit("sanitize: memcheck must report a read past a tensor's end, got nothing")
    print(f"{'control':<10} memcheck reports a read past a tensor's end")


def write_report(path: Path, sanitizer: Path, results: list[dict[str, Any]]) -> None:
    version = subprocess.run(
        [sanitizer, "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"Version (\S+)", version)
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpus": gpus(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compute_sanitizer": found[1] if found else version.strip(),
        "library_sha256": hashlib.sha256(LIBRARY.read_bytes()).hexdigest(),
        "calls": list(CALLS),
        "tools": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--calls", action="store_true", help="only make the calls, without a tool")
    job.add_argument("--past-the-end", action="store_true", help="only the call of the control")
    options = parser.parse_args()
    if options.calls:
        run_calls()
        return
    if options.past_the_end:
        read_past_the_end()
        return
    sanitizer = find_sanitizer()
    if not torch.cuda.is_available():
        raise SystemExit("sanitize: needs a CUDA device, found none")
    check_control(sanitizer)
    results = []
    for tool in options.tools:
        result = run_tool(sanitizer, tool, "--calls")
        results.append(result)
        print(
            f"{tool:<10} {result['outcome']:<8} {result['reports']} reports, "
            f"{result['calls']} of {len(CALLS)} calls, {result['seconds']} s",
            flush=True,
        )
    if options.out is not None:
        write_report(options.out, sanitizer, results)
    for result in results:
        print("\n".join(result["output"]))
    raise SystemExit(0 if all(result["outcome"] == "clean" for result in results) else 1)


if __name__ == "__main__":
    main()

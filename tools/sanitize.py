"""Runs the kernels under NVIDIA's compute-sanitizer and writes a report to be committed.

    python tools/sanitize.py --out docs/reports/sanitizers-h100.json
    python tools/sanitize.py --tools memcheck racecheck        without a report
    python tools/sanitize.py --passes backward                 or forward: one of the two

The four tools watch kernels named fa4_*, through the small calls of sanitize_calls.py. Before them
a control: a call that reads past the end of a tensor, which memcheck must report, else it watches
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from provenance import ROOT, provenance
from sanitize_calls import CALLS

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import site_directories

PROGRAM = Path(__file__).with_name("sanitize_calls.py")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86  # exit status of compute-sanitizer that found something
LIMIT_SECONDS = 120  # many times what a tool takes, in case a kernel hangs
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")


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


def run_tool(sanitizer: Path, tool: str, words: list[str]) -> dict[str, Any]:
    """Runs sanitize_calls.py with these arguments under a tool."""
    command = [
        *(str(sanitizer), "--tool", tool, "--kernel-name", "regex=^fa4_"),
        *("--error-exitcode", str(FOUND), "--print-limit", "20", "--show-backtrace", "device"),
        # A call of the driver that fails is an error of the program, or a question it may ask.
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        *(sys.executable, str(PROGRAM), *words),
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
    expected = count_calls([word for word in words if word in CALLS])
    return read_output(tool, output, status, expected, round(time.monotonic() - started, 1))


def count_calls(passes: list[str]) -> int:
    return sum(len(CALLS[name]) for name in passes)


def read_output(
    tool: str, output: str, status: int, expected: int, seconds: float
) -> dict[str, Any]:
    """What a run of a tool came to. Clean: it saw all calls and summed up to nothing."""
    summaries = [int(n) for n in SUMMARY.findall(output)]
    calls = len(re.findall(r"^call: ", output, re.MULTILINE))
    clean = status == 0 and summaries != [] and not any(summaries) and calls == expected
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
    result = run_tool(sanitizer, "memcheck", ["--past-the-end"])
    if result["reports"] == 0 or not any("fa4_combine" in line for line in result["output"]):
        print("\n".join(result["output"]))
        raise SystemExit("sanitize: memcheck must report a read past a tensor's end, got nothing")
    print(f"{'control':<10} memcheck reports a read past a tensor's end")


def write_report(
    path: Path, sanitizer: Path, passes: list[str], results: list[dict[str, Any]]
) -> None:
    version = subprocess.run(
        [sanitizer, "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"Version (\S+)", version)
    report = {
        **provenance(),
        "compute_sanitizer": found[1] if found else version.strip(),
        "calls": {name: list(CALLS[name]) for name in passes},
        "tools": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--passes", nargs="+", choices=CALLS, default=[*CALLS])
    options = parser.parse_args()
    sanitizer = find_sanitizer()
    if not torch.cuda.is_available():
        raise SystemExit("sanitize: needs a CUDA device, found none")
    check_control(sanitizer)
    results = []
    for tool in options.tools:
        result = run_tool(sanitizer, tool, ["--passes", *options.passes])
        results.append(result)
        print(
            f"{tool:<10} {result['outcome']:<8} {result['reports']} reports, "
            f"{result['calls']} of {count_calls(options.passes)} calls, {result['seconds']} s",
            flush=True,
        )
    if options.out is not None:
        write_report(options.out, sanitizer, options.passes, results)
    for result in results:
        print("\n".join(result["output"]))
    raise SystemExit(0 if all(result["outcome"] == "clean" for result in results) else 1)


if __name__ == "__main__":
    main()

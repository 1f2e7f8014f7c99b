"""Runs the emulator's Python tests on a build with the sanitizers of addresses and behaviour.

    python tools/sanitize_emulator.py                            all of tests/emulator
    python tools/sanitize_emulator.py tests/emulator/test_tma.py -k store    what pytest is to get

The sanitized library lies in build/sanitized, in a copy of the package; a finding ends the process
that made it. `make build` has to come first: tests read the PTX of its kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "sanitize-address"
PREFIX = ROOT / "build" / "sanitized"
# Their run-time libraries have to be there before the program's.
RUNTIMES = ("libasan.so", "libubsan.so")

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import find_nvcc  # noqa: E402


def build() -> None:
    options = ["-DFA4_SANITIZE=address", "-DFA4_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    options.append(f"-DFA4_TORCH_DIR={Path(torch.__file__).parent}")
    package = PREFIX / "flash_attn4"
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(TREE), "-G", "Ninja", *options],
        ["cmake", "--build", str(TREE)],
        ["cmake", "--install", str(TREE), "--prefix", str(package), "--component", "python"],
    ):
        subprocess.run(command, check=True)
    for source in (ROOT / "flash_attn4").glob("*.py"):
        shutil.copy(source, package)


def write_compiler() -> None:
    """An nvcc that runs without the sanitizers, beside which it crashes; for CUDA_HOME."""
    nvcc, real = PREFIX / "bin" / "nvcc", find_nvcc()
    if real is None:
        return  # tests that need one skip
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    nvcc.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec "{real}" "$@"\n')
    nvcc.chmod(0o755)


def runtime(name: str) -> str:
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    build()
    write_compiler()
    environment = os.environ | {
        "CUDA_HOME": str(PREFIX),
        "PYTHONPATH": str(PREFIX),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has until it ends
        "LD_PRELOAD": " ".join(map(runtime, RUNTIMES)),
    }
    pytest = str(Path(sys.executable).with_name("pytest"))  # not -m: it would put ROOT first
    tests = sys.argv[1:] or ["tests/emulator"]
    raise SystemExit(subprocess.run([pytest, *tests], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()

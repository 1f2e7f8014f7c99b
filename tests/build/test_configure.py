"""What the build says when something is missing: one clear line, before anything compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake's configure step alone, without torch ops, tests and Python module."""
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, "-DFA4_PYTHON=OFF", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )


def message(run: subprocess.CompletedProcess[str]) -> str:
    return " ".join(run.stderr.split())


@pytest.fixture
def old_nvcc(tmp_path: Path) -> Path:
    script = tmp_path / "nvcc"
    script.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    script.chmod(0o755)
    return script


def test_old_nvcc_is_named_with_what_to_do(tmp_path: Path, old_nvcc: Path) -> None:
    run = configure(tmp_path / "build", f"-DFA4_NVCC={old_nvcc}")
    assert run.returncode != 0
    assert (
        f"FA4_ARCHS=cpu;sm90a;sm100f needs nvcc 13.0 or newer, found 12.4.131 at {old_nvcc}: set "
        "CUDA_HOME, or build without GPU kernels: FA4_ARCHS=cpu"
    ) in message(run)


def test_cpu_alone_needs_no_nvcc(tmp_path: Path, old_nvcc: Path) -> None:
    run = configure(tmp_path / "build", f"-DFA4_NVCC={old_nvcc}", "-DFA4_ARCHS=cpu")
    assert run.returncode == 0, run.stderr
    assert "fa4_combine" not in (tmp_path / "build/generated/kernel_list.inc").read_text()


def test_unknown_target_is_named(tmp_path: Path) -> None:
    run = configure(tmp_path / "build", "-DFA4_ARCHS=cpu;sm80")
    assert run.returncode != 0
    assert "FA4_ARCHS: must hold cpu, sm90a or sm100f, got sm80" in message(run)

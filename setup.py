"""Builds with CMake, which alone knows sources and flags, and packs what it installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import OLDEST_TORCH, archs, find_nvcc, find_torch, gpu_targets  # noqa: E402


class CMakeBuild(build_ext):
    """One CMake build per interpreter, kept under build/ so that the next one is incremental."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                f"flash_attn4: torch >= {'.'.join(map(str, OLDEST_TORCH))} is needed to build "
                "and was not found: pip install torch first"
            )
        into = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        tree = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        options = [
            f"-DFA4_ARCHS={archs()}",
            f"-DFA4_TORCH_DIR={torch}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFA4_TESTS={os.environ.get('FA4_TESTS', 'OFF')}",
        ]
        nvcc = find_nvcc()
        if gpu_targets() and nvcc is not None:
            options.append(f"-DFA4_NVCC={nvcc}")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        run = lambda *command: subprocess.run(command, check=True)  # noqa: E731
        try:
            run("cmake", "-S", str(ROOT), "-B", str(tree), *generator, *options)
            run("cmake", "--build", str(tree), "--parallel", jobs)
            run("cmake", "--install", str(tree), "--prefix", str(into), "--component", "python")
        except FileNotFoundError:
            raise SystemExit("flash_attn4: cmake was not found: pip install cmake ninja") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"flash_attn4: the build failed at: {' '.join(error.cmd)}") from None


setup(ext_modules=[Extension("flash_attn4._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

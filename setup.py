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

# One build per interpreter, kept so that the next one is incremental.
TREE = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class CMakeBuild(build_ext):
    """CMake in place of setuptools' own compiler calls."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                f"flash_attn4: torch >= {'.'.join(map(str, OLDEST_TORCH))} is needed to build "
                "and was not found: pip install torch first"
            )
        options = [
            f"-DFA4_ARCHS={archs()}",
            f"-DFA4_TORCH_DIR={torch}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFA4_TESTS={os.environ.get('FA4_TESTS', 'OFF')}",
            f"-DFA4_DEBUG_WAITS={os.environ.get('FA4_DEBUG_WAITS', 'OFF')}",
        ]
        nvcc = find_nvcc()
        if gpu_targets() and nvcc is not None:
            options.append(f"-DFA4_NVCC={nvcc}")
        # Named anew each time: an isolated build leaves a cache that names tools which are gone.
        if ninja := shutil.which("ninja"):
            options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        try:
            run("cmake", "-S", str(ROOT), "-B", str(TREE), *options)
            run("cmake", "--build", str(TREE), "--parallel", jobs)
        except FileNotFoundError:
            raise SystemExit("flash_attn4: cmake was not found: pip install cmake ninja") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"flash_attn4: the build failed at: {' '.join(error.cmd)}") from None
        self.install(Path(self.get_ext_fullpath(ext.name)).resolve().parent)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: the whole installation goes into the source tree."""
        self.install(ROOT / "flash_attn4")

    def install(self, into: Path) -> None:
        run("cmake", "--install", str(TREE), "--prefix", str(into), "--component", "python")


setup(ext_modules=[Extension("flash_attn4._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

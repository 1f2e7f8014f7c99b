"""Where torch and nvcc are, without importing torch. Used by the build backend and by setup.py."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

OLDEST_TORCH = (2, 10)
DEFAULT_ARCHS = "cpu;sm90a;sm100f"
# One minor version of everything that makes a compiler; about 150 MB installed.
NVCC_PACKAGES = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]


def archs() -> str:
    """What to build: FA4_ARCHS, or everything."""
    return os.environ.get("FA4_ARCHS", DEFAULT_ARCHS)


def gpu_targets() -> list[str]:
    return [name for name in archs().split(";") if name not in ("", "cpu")]


def site_directories() -> list[Path]:
    """Where packages may lie: the import path, and the environment that an isolated build hides."""
    names = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [Path(name) for name in dict.fromkeys(names) if name]


def find_torch() -> Path | None:
    """Directory of a torch package that is new enough to build against, or None."""
    for site in site_directories():
        version_file = site / "torch" / "version.py"
        if not version_file.is_file():
            continue
        found = re.search(r"__version__ = '(\d+)\.(\d+)", version_file.read_text())
        if found and (int(found[1]), int(found[2])) >= OLDEST_TORCH:
            return site / "torch"
    return None


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, the PATH, a usual place, or NVIDIA's Python packages."""
    home = os.environ.get("CUDA_HOME")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    candidates.extend(site / "nvidia" / "cu13" / "bin" / "nvcc" for site in site_directories())
    return next((path for path in candidates if path.is_file()), None)

"""Build backend: setuptools, plus build requirements that depend on what the machine already has.

torch is only needed for its headers and libtorch_cpu.so. An isolated build looks for it in the
environment that pip installs into, and asks for a copy of its own only where there is none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

sys.path.insert(0, str(Path(__file__).parent))
from fa4_environment import NVCC_PACKAGES, find_nvcc, find_torch, gpu_targets


def _missing() -> list[str]:
    wanted = []
    if find_torch() is None:
        wanted.append("torch>=2.10")
    if gpu_targets() and find_nvcc() is None:
        wanted.extend(NVCC_PACKAGES)
    return wanted


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _missing()


def get_requires_for_build_sdist(config_settings=None):
    return build_meta.get_requires_for_build_sdist(config_settings)

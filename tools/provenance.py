"""What every committed report of tools/ says of its origin: when, which GPUs, which build."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "flash_attn4" / "libfa4_ops.so"
GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def gpus() -> list[dict[str, str]]:
    """The machine's GPUs as nvidia-smi describes them."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [dict(zip(GPU_FIELDS, line.split(", "), strict=True)) for line in lines]


def digest(library: Path = LIBRARY) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def provenance() -> dict[str, Any]:
    """The first entries of a report."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpus": gpus(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library_sha256": digest(),
    }

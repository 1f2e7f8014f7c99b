"""`python -m flash_attn4`: what this installation is and what serves which device here."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any


def cuda_version(number: int) -> str:
    """The driver's version number in words: 13000 -> "CUDA 13.0"."""
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


def collect() -> dict[str, Any]:
    """Everything the command prints, as data."""
    import torch

    import flash_attn4
    from flash_attn4 import _C

    return {
        "version": flash_attn4.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "driver": _C.driver(),
        "devices": _C.devices(),
        "kernels": _C.kernels(),
    }


def device_lines(facts: dict[str, Any]) -> list[str]:
    """One block per device: which kernels serve it, and per other kernel why it does not."""
    cpu_kernels = [k["name"] for k in facts["kernels"] if k["target"] == "cpu"]
    lines = ["cpu", f"  serves: {', '.join(cpu_kernels)}"]
    gpu_kernels = [k for k in facts["kernels"] if k["target"] != "cpu"]
    for device in facts["devices"]:
        major, minor = device["capability"]
        lines.append(f"cuda:{device['ordinal']} {device['name']} (sm_{major}{minor})")
        lines.append(f"  serves: {', '.join(device['kernels']) or 'nothing'}")
        others: dict[str, list[str]] = {}
        for kernel in gpu_kernels:
            if kernel["name"] not in device["kernels"]:
                others.setdefault(kernel["target"], []).append(kernel["name"])
        lines.extend(f"  needs {target}: {', '.join(names)}" for target, names in others.items())
        for op in ("fwd", "bwd", "combine"):
            if not any(k["op"] == op and k["name"] in device["kernels"] for k in gpu_kernels):
                lines.append(f"  no {op} kernel of this build runs here")
    if not facts["devices"]:
        lines.append("no GPU found")
        if gpu_kernels:
            lines.append(f"  waiting for one: {', '.join(k['name'] for k in gpu_kernels)}")
    return lines


def driver_line(driver: dict[str, Any]) -> str:
    """Driver needed and found."""
    if not driver["needed"]:
        return str(driver["problem"])
    found = cuda_version(driver["found"]) if driver["found"] else f"none ({driver['problem']})"
    verdict = "" if not driver["found"] or driver["found"] >= driver["needed"] else ": too old"
    return f"needed for {cuda_version(driver['needed'])} (R580 or newer), found {found}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flash_attn4", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    options = parser.parse_args()
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    print(f"flash_attn4 {facts['version']}")
    print(f"torch {facts['torch']}, Python {facts['python']}, {facts['machine']}")
    print(f"driver: {driver_line(facts['driver'])}")
    print("\n".join(device_lines(facts)))


if __name__ == "__main__":
    main()
